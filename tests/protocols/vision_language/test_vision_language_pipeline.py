"""The small paper from its configuration to its tables, every stage for real."""

import pytest

from moebench.files import read_json, read_jsonl, write_json
from moebench.pipeline.baselines import baselines
from moebench.pipeline.evaluate import evaluate
from moebench.pipeline.plan import planned
from moebench.pipeline.prepare import prepare
from moebench.pipeline.tabulate import tables, tabulate
from moebench.pipeline.train import train
from moebench.protocols.vision_language.config import METRICS, MODALITIES, SCORES, TASKS
from moebench.results import records


@pytest.fixture(scope="module")
def finished(write_paper, methods, tmp_path_factory):
    """The paper, of two methods, after its last stage."""
    paper = write_paper(tmp_path_factory.mktemp("paper"), methods={name: methods[name] for name in ("moe", "heads")})
    for name, value in planned(paper).items():
        write_json(paper.plan_folder / f"{name}.json", value)
    prepare(paper)
    baselines(paper)
    for run in paper.runs:
        train(paper, run)
    evaluate(paper)
    tabulate(paper)
    return paper


def test_every_measure_is_a_record(finished):
    found = records.read_rows(finished.results / "records.csv", records.RECORDS)
    keys = {(row["method"], row["stage"], row["task"], row["language"], row["metric"]) for row in found}
    for method in finished.methods:
        for task in TASKS:
            for metric in SCORES[task]:
                if (task, metric) != ("vqa", "nll"):  # none where no test answer is among those of so few questions
                    assert (method, "finetune", task, "", metric) in keys
        for kind in ("all", *MODALITIES):
            for metric in ("nll", "perplexity", "accuracy"):
                assert (method, "pretrain", "masked", kind, metric) in keys
    assert ("moe", "pretrain", "routing", "all", "load_entropy") in keys
    assert {row["metric"] for row in found} <= set(METRICS)
    assert {row["data"] for row in found} == {read_json(finished.prepared / "manifest.json")["revision"]}
    accuracies = [row["value"] for row in found if row["metric"] == "accuracy"]
    assert 1 < max(accuracies) <= 100  # percent


def test_predictions_are_of_the_test_rows_and_of_what_can_be_said(finished):
    answers = set(read_json(finished.prepared / "answers.json"))
    for run in finished.runs:
        if run.stage == "finetune":
            said = read_jsonl(finished.folder(run) / "predictions" / f"{run.training_set}.jsonl")
            rows = read_jsonl(finished.prepared / run.training_set / "test/rows.jsonl")
            assert [row["id"] for row in said] == [row["id"] for row in rows]
            if run.training_set == "vqa":
                assert {row["answer"] for row in said} <= answers
            if run.training_set == "nlvr":
                assert all((row["label"] == "true") == (row["probability_true"] > 0.5) for row in said)


def test_tables_are_full_and_the_same_when_made_again(finished):
    before = {path.name: path.read_bytes() for path in finished.results.iterdir()}
    assert {"table1_masked.md", "table4_finetuned.md", "types.md", "routing.md", "costs.md", "load.svg"} <= before.keys()
    for name in ("table1_masked.md", "table4_finetuned.md", "types.md"):
        assert "missing: `dvc repro" not in before[name].decode().replace("questions, NLL, nats: missing", "")
    tables(finished)
    assert {path.name: path.read_bytes() for path in finished.results.iterdir()} == before

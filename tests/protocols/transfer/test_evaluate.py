"""The stage ``evaluate`` on a small made-up project: which records come out, and what it says about holes and damage."""

import hashlib
import re
import shutil

import numpy as np
import pytest
import yaml

from moebench import files
from moebench.data.catalogue import UPOS_LABELS
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.metrics.uncertainty import DIVERSITY, MEASURES
from moebench.pipeline.evaluate import data_name
from moebench.pipeline.evaluate import evaluate as evaluate_stage
from moebench.results import records

OPTIMISATION = {"steps": 10, "batch": 2, "rate": 0.001}
SETTING = {
    "seeds": [0, 1],
    "baseline": "dense",
    "encoder": {"layers": 2, "width": 8, "heads": 2, "inner": 16},
    "sparse": {"experts": 2, "inner": 8},
    "pretrain": OPTIMISATION,
    "finetune": {"constructed_pos": OPTIMISATION, "constructed_qa": OPTIMISATION},
}
METHODS = {
    "dense": {"label": "Dense", "layer": "none"},
    "dense_again": {"label": "Dense, fine-tuned again", "layer": "none", "pretrain_as": "dense"},
}
DATA = {
    "source": "constructed",
    "tasks": ["constructed_pos", "constructed_qa_parallel", "constructed_qa_cross"],
    "constructed": {},
    "corpus": {},
    "tokens": {"source": "trained", "vocabulary": 100},
}
COSTS = {"seconds": 1.5, "tokens_per_second": 10.0, "peak_memory_mb": 100.0, "parameters": 1000, "active_parameters": 900}
COSTS |= {"flops_per_token": 2000, "hardware": "a machine", "torch": "2", "lightning": "2", "python": "3", "moebench": "0", "commit": "abc"}
LANGUAGES = {"constructed_pos": ("aa", "bb"), "constructed_qa_parallel": ("aa", "bb"), "constructed_qa_cross": ("aa", "bb-aa")}
TAGGED = [{"id": "0", "words": ["x", "y", "z"], "tags": ["NOUN", "VERB", "NOUN"]}, {"id": "1", "words": ["w"], "tags": ["ADJ"]}]
ASKED = [{"id": "q", "context": "red green blue", "question": "?", "answers": [{"text": "green", "start": 4}]}]
RIGHT = [{"id": "0", "prediction": ["NOUN", "VERB", "NOUN"]}, {"id": "1", "prediction": ["ADJ"]}]
HALF = [{"id": "0", "prediction": ["NOUN", "VERB", "NOUN"]}, {"id": "1", "prediction": ["VERB"]}]
ANSWERED = [{"id": "q", "prediction": "green blue"}]


PLAN = "runs/cpu/xmoe/plan/finetune/dense-constructed_pos.json"


def yaml_at(path, value):
    files.write_text(path, yaml.safe_dump(value))


def experiment_of(root):
    """Whose configuration has not been read yet."""
    return Experiment(root, "xmoe", "cpu")


def evaluate(root, only=()):
    return evaluate_stage(experiment_of(root), only)


@pytest.fixture
def root(tmp_path, write_paper):
    experiment = write_paper("cpu", DATA, SETTING, METHODS)
    prepared = experiment.prepared
    manifest = {"source": "constructed", "revision": "constructed-1", "pivot": "aa", "languages": ["aa", "bb"]}
    files.write_json(prepared / "manifest.json", manifest | {"train_languages": dict.fromkeys(SETTING["finetune"], "aa")})
    for task, languages in LANGUAGES.items():
        folder = prepared / "tasks" / ("constructed_pos" if task == "constructed_pos" else "constructed_qa") / "test" / task
        for language in languages:
            files.write_jsonl(folder / f"{language}.jsonl", TAGGED if task == "constructed_pos" else ASKED)
    for run in experiment.runs:
        folder = experiment.folder(run)
        files.write_json(experiment.plan_file(run), {"config": {"method": run.method}, "fingerprint": "f" * 8})
        files.write_json(folder / "costs.json", COSTS)
        perplexity = {"stage": "pretrain", "task": "mlm", "language": "aa", "metric": "perplexity", "value": 20 + run.seed, "n": 50}
        files.write_json(folder / "measures.json", [perplexity] if run.stage == "pretrain" else [])
        if run.training_set == "constructed_pos":
            files.write_jsonl(folder / "predictions/constructed_pos/aa.jsonl", RIGHT)
            files.write_jsonl(folder / "predictions/constructed_pos/bb.jsonl", HALF)
        elif run.training_set:
            for task in ("constructed_qa_parallel", "constructed_qa_cross"):
                for language in LANGUAGES[task]:
                    files.write_jsonl(folder / f"predictions/{task}/{language}.jsonl", ANSWERED)
    for language in ("aa", "bb"):
        files.write_jsonl(experiment.baselines_folder / f"majority/constructed_pos/{language}.jsonl", HALF)
    return tmp_path


def result(root, name="records", form=records.RECORDS):
    return records.read(experiment_of(root).records_folder / f"{name}.csv", form)


def test_every_cell_becomes_records(root):
    evaluate(root)
    table = result(root)
    values = {tuple(row[:-2]): (row[-2], row[-1]) for row in table.drop(columns=["profile", "data", "paper"]).itertuples(index=False)}
    # pre-training: one language, two seeds, one method; fine-tuning: per method and seed 2 of tagging, each with its standard error, and
    # 4 x (F1, EM) of QA, without, since one question is one group; the baseline: 2
    assert len(values) == 2 + 2 * 2 * (4 + 8) + 2
    assert values["dense", 1, "pretrain", "mlm", "aa", "perplexity"] == (21.0, 50)
    assert values["dense_again", 0, "finetune", "constructed_pos", "aa", "f1"] == (100.0, 2)
    assert (
        values["majority", 0, "baseline", "constructed_pos", "bb", "f1"][0]
        == values["dense", 0, "finetune", "constructed_pos", "bb", "f1"][0]
    )
    assert values["dense", 0, "finetune", "constructed_qa_cross", "bb-aa", "f1"] == (pytest.approx(200 / 3, abs=1e-6), 1)
    assert values["dense", 0, "finetune", "constructed_qa_cross", "bb-aa", "em"] == (0.0, 1)
    assert set(table["data"]) == {"constructed-1"}


def test_fine_tuned_runs_carry_their_uncertainty_over_test_examples(root):
    asked = [{**ASKED[0], "id": str(number), "context": f"red green blue {number // 2}"} for number in range(8)]
    said = [{"id": str(number), "prediction": "green" if number // 2 % 2 else "red"} for number in range(8)]
    files.write_jsonl(root / "data/prepared/cpu/xmoe/tasks/constructed_qa/test/constructed_qa_parallel/aa.jsonl", asked)
    for path in (root / "runs/cpu/xmoe/trained/finetune").glob("*/predictions/constructed_qa_parallel/aa.jsonl"):
        files.write_jsonl(path, said)
    evaluate(root)
    table = result(root)
    errors = table[table["metric"].str.endswith("_bootstrap_se")]
    assert set(errors["stage"]) == {"finetune"}
    values = {tuple(row) for row in errors[["task", "language", "metric"]].itertuples(index=False)}
    assert values == {("constructed_pos", language, "f1_bootstrap_se") for language in ("aa", "bb")} | {
        ("constructed_qa_parallel", "aa", f"{metric}_bootstrap_se") for metric in ("f1", "em")
    }
    qa = errors[errors["task"] == "constructed_qa_parallel"]
    assert set(qa["n"]) == {4}  # contexts, not questions
    assert list(qa["value"]) == pytest.approx([25.0] * 8, rel=0.06)  # 100 sqrt(0.5 * 0.5 / 4): a mean of four contexts, two right
    right = errors[(errors["task"] == "constructed_pos") & (errors["language"] == "aa")]
    assert set(right["value"]) == {0.0}


def probabilities(*words):
    """(N, C) of the tagging task, float32 as a run leaves them: the chances of NOUN and VERB, the rest spread over the other tags."""
    array = np.zeros((len(words), len(UPOS_LABELS)))
    for row, (noun, verb) in zip(array, words, strict=True):
        row[:] = (1 - noun - verb) / (len(UPOS_LABELS) - 2)
        row[[UPOS_LABELS.index("NOUN"), UPOS_LABELS.index("VERB")]] = noun, verb
    return array.astype(np.float32)


VALIDATION = [{"id": "v", "words": ["x", "y"], "tags": ["NOUN", "VERB"]}]
SURE = {"validation": probabilities((0.9, 0.05), (0.6, 0.2)), "aa": probabilities((0.8, 0.1), (0.2, 0.7), (0.9, 0.05), (0.4, 0.3))}
TORN = {"validation": probabilities((0.7, 0.1), (0.1, 0.7)), "aa": probabilities((0.4, 0.5), (0.1, 0.8), (0.6, 0.1), (0.5, 0.2))}


def leave(root, method, seed, arrays):
    """Put arrays beside the predictions of a tagging run; ``bb`` gets what ``aa`` has."""
    files.write_jsonl(root / "data/prepared/cpu/xmoe/tasks/constructed_pos/validation.jsonl", VALIDATION)
    folder = root / f"runs/cpu/xmoe/trained/finetune/{method}-constructed_pos-{seed}/predictions"
    np.save(folder / "validation.npy", arrays["validation"])
    for language in ("aa", "bb"):
        np.save(folder / f"constructed_pos/{language}.npy", arrays["aa"])


def uncertain(root, method, stage, seed=0, language="aa"):
    table = result(root)
    mine = table[(table["method"] == method) & (table["stage"] == stage) & (table["seed"] == seed)]
    mine = mine[(mine["task"] == "constructed_pos") & (mine["language"] == language)]
    return {row["metric"]: (row["value"], row["n"]) for row in mine.to_dict("records")}


def test_runs_that_left_probabilities_carry_their_uncertainty_over_words(root):
    leave(root, "dense", 0, SURE)
    evaluate(root)
    found = uncertain(root, "dense", "finetune")
    assert found.keys() == {"f1", "f1_bootstrap_se", *MEASURES, "temperature"}
    right = [0.8, 0.7, 0.9, float(SURE["aa"][3, 0])]  # the fourth word is an ADJ
    assert found["nll"] == (pytest.approx(-np.log(right).mean(), abs=1e-6), 4)
    assert found["signed_ece"] == (pytest.approx((0.8 + 0.7 + 0.9 + 0.4) / 4 - 3 / 4, abs=1e-6), 4)
    assert found["temperature"][1] == 2  # words of the validation set
    assert "temperature" not in uncertain(root, "dense", "finetune", language="bb")
    for method, seed in (("dense", 1), ("dense_again", 0)):  # without arrays
        assert uncertain(root, method, "finetune", seed).keys() == {"f1", "f1_bootstrap_se"}
    assert "ensemble" not in set(result(root)["stage"])  # one seed of two


def test_all_seeds_together_are_an_ensemble(root):
    leave(root, "dense", 0, SURE)
    leave(root, "dense", 1, TORN)
    evaluate(root)
    table = result(root)
    ensemble = table[table["stage"] == "ensemble"]
    assert set(ensemble["method"]) == {"dense"}
    assert set(ensemble["seed"]) == {0}
    found = uncertain(root, "dense", "ensemble")
    assert found.keys() == {"f1", *MEASURES, *DIVERSITY, "temperature", "temperature_at_bound"}
    assert found["temperature"] == (0.01, 2)  # the mean is right on every validation word
    mean = [0.6, 0.75, 0.75, (float(SURE["aa"][3, 0]) + float(TORN["aa"][3, 0])) / 2]
    assert found["nll"] == (pytest.approx(-np.log(mean).mean(), abs=1e-6), 4)
    assert found["disagreement"] == (0.25, 4)
    # NOUN VERB NOUN, right, as the mean has it, and NOUN for ADJ: three spans right of four and four
    assert found["f1"] == (75.0, 2)


def test_an_ensemble_of_identical_members_is_the_member(root):
    for seed in (0, 1):
        leave(root, "dense", seed, SURE)
    evaluate(root)
    one, together = uncertain(root, "dense", "finetune", 1), uncertain(root, "dense", "ensemble")
    for metric in (*MEASURES, "temperature"):
        assert together[metric] == (pytest.approx(one[metric][0], abs=2e-6), one[metric][1])
    assert (together["disagreement"][0], together["mutual_information"][0]) == (0, 0)


def test_members_within_a_run_are_judged_by_their_mean_and_how_they_differ(root):
    together = {name: np.stack([SURE[name], TORN[name], TORN[name]]) for name in SURE}
    leave(root, "dense", 0, together)
    leave(root, "dense", 1, SURE)
    evaluate(root)
    found = uncertain(root, "dense", "finetune")
    assert found.keys() == {"f1", "f1_bootstrap_se", *MEASURES, *DIVERSITY, "temperature", "temperature_at_bound"}
    members = together["aa"].astype(np.float64)
    mean = members.mean(axis=0)
    gold = [UPOS_LABELS.index(tag) for row in TAGGED for tag in row["tags"]]
    assert found["nll"] == (pytest.approx(-np.log(mean[range(4), gold]).mean(), abs=1e-6), 4)
    assert found["brier"][0] == pytest.approx(((mean - np.eye(len(UPOS_LABELS))[gold]) ** 2).sum(axis=1).mean(), abs=1e-6)
    votes = members.argmax(axis=2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert found["disagreement"][0] == pytest.approx(np.mean([(votes[i] != votes[j]).mean() for i, j in pairs]), abs=1e-6)
    entropy = -(members * np.log(members)).sum(axis=2).mean(axis=0)
    assert found["mutual_information"][0] == pytest.approx((-(mean * np.log(mean)).sum(axis=1) - entropy).mean(), abs=1e-6)
    assert not uncertain(root, "dense", "finetune", seed=1).keys() & set(DIVERSITY)
    every = np.concatenate([members, SURE["aa"][None]]).mean(axis=0)  # the ensemble over seeds: all members of both
    assert uncertain(root, "dense", "ensemble")["nll"][0] == pytest.approx(-np.log(every[range(4), gold]).mean(), abs=1e-6)


def test_an_array_that_does_not_fit_is_named_and_nothing_is_written(root):
    leave(root, "dense", 0, SURE | {"aa": SURE["aa"][:3]})
    with pytest.raises(MoebenchError, match=r"constructed_pos/aa\.npy: has the shape \(3, 17\); should be \(4, 17\), the words"):
        evaluate(root)
    assert not experiment_of(root).records_folder.exists()


def test_a_language_without_an_array_has_no_uncertainty(root):
    leave(root, "dense", 0, SURE)
    (root / "runs/cpu/xmoe/trained/finetune/dense-constructed_pos-0/predictions/constructed_pos/bb.npy").unlink()
    evaluate(root)
    assert uncertain(root, "dense", "finetune", language="bb").keys() == {"f1", "f1_bootstrap_se"}
    assert "nll" in uncertain(root, "dense", "finetune")


def test_a_method_that_starts_elsewhere_does_not_repeat_the_other_ones_pretraining(root):
    runs = experiment_of(root).runs
    assert [(run.method, run.seed) for run in runs if run.stage == "pretrain"] == [("dense", 0), ("dense", 1)]
    assert len([run for run in runs if run.stage == "finetune"]) == 2 * 2 * 2


def test_provenance_and_costs_lie_beside_the_records(root):
    evaluate(root)
    provenance, costs = result(root, "provenance", records.PROVENANCE), result(root, "costs", records.COSTS)
    assert len(provenance) == len(costs) == 2 + 8
    row = provenance[(provenance["method"] == "dense_again") & (provenance["task"] == "constructed_qa")].iloc[0]
    plan = root / "runs/cpu/xmoe/plan/finetune/dense_again-constructed_qa.json"
    assert row["config_hash"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert (row["fingerprint"], row["commit"], row["hardware"], row["train_language"]) == ("f" * 8, "abc", "a machine", "aa")
    assert set(provenance[provenance["stage"] == "pretrain"]["task"]) == {"mlm"}
    assert set(costs["parameters"]) == {1000}


def test_the_same_runs_give_the_same_bytes(root):
    folder = experiment_of(root).records_folder
    evaluate(root)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    evaluate(root)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert set(first) == {"records.csv", "provenance.csv", "costs.csv"}


def test_missing_cells_are_all_listed_with_the_command_of_the_first(root):
    shutil.rmtree(root / "runs/cpu/xmoe/trained/finetune/dense-constructed_qa-1")
    (root / "runs/cpu/xmoe/trained/finetune/dense_again-constructed_pos-0/predictions/constructed_pos/bb.jsonl").unlink()
    with pytest.raises(MoebenchError) as error:
        evaluate(root)
    message = str(error.value)
    assert message.startswith("2 missing")
    assert "runs/cpu/xmoe/trained/finetune/dense-constructed_qa-1\n" in message
    assert "dense_again-constructed_pos-0/predictions/constructed_pos/bb.jsonl" in message
    assert message.endswith("dvc repro experiments/xmoe/cpu/dvc.yaml:finetune@dense-constructed_qa-1")
    assert not experiment_of(root).records_folder.exists()


def read_records(root):
    return {path.name: path.read_text().splitlines() for path in experiment_of(root).records_folder.iterdir()}


def keep_results(root):
    """As tabulate does: what was evaluated last is what later methods are compared with."""
    shutil.copytree(experiment_of(root).records_folder, experiment_of(root).results, dirs_exist_ok=True)


def with_another_method(root):
    """A method and its finished runs, half right where the others are right."""
    yaml_at(root / "experiments/xmoe/methods/dense_wide.yaml", {"label": "Wide", "layer": "none"})
    experiment = experiment_of(root)
    for run in experiment.runs:
        if run.method == "dense_wide":
            folder = experiment.folder(run)
            shutil.copytree(folder.parent / folder.name.replace("dense_wide", "dense"), folder)
            files.write_json(experiment.plan_file(run), {"config": {"method": run.method}, "fingerprint": "f" * 8})
            if run.training_set == "constructed_pos":
                files.write_jsonl(folder / "predictions/constructed_pos/aa.jsonl", HALF)


def test_one_method_is_added_to_records_whose_runs_are_gone(root):
    evaluate(root)
    keep_results(root)
    before = read_records(root)
    with_another_method(root)
    evaluate(root)
    whole = read_records(root)
    for folder in (root / "runs/cpu/xmoe/trained").glob("*/*"):
        if "dense_wide" not in folder.name:
            shutil.rmtree(folder)
    assert evaluate(root, only=["dense_wide"]) == []
    assert read_records(root) == whole
    assert {name: [line for line in lines if "dense_wide" not in line] for name, lines in whole.items()} == before
    assert sum("dense_wide" in line for line in whole["records.csv"]) == 2 * (1 + 4 + 8)


def test_one_method_alone_where_there_are_no_records(root):
    with_another_method(root)
    evaluate(root, only=["dense_wide"])
    assert set(result(root)["method"]) == {"dense_wide", "majority"}


def test_records_of_methods_that_are_gone_do_not_stay(root):
    with_another_method(root)
    evaluate(root)
    keep_results(root)
    (root / "experiments/xmoe/methods/dense_wide.yaml").unlink()
    evaluate(root, only=["dense", "dense_again"])
    assert set(result(root)["method"]) == {"dense", "dense_again", "majority"}


def test_it_is_told_whose_code_has_changed(root):
    with_another_method(root)
    evaluate(root)
    keep_results(root)
    plan = root / "runs/cpu/xmoe/plan/finetune/dense_again-constructed_qa.json"
    files.write_json(plan, files.read_json(plan) | {"fingerprint": "g" * 8})
    assert evaluate(root, only=["dense_wide"]) == ["dense_again"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: files.write_json(root / PLAN, {"config": {"method": "other"}, "fingerprint": "f" * 8}), f"'dense', seed 0.*{PLAN}"),
        (lambda root: yaml_at(root / "experiments/xmoe/profiles/cpu.yaml", SETTING | {"seeds": [0]}), "seed 1, .* than the plan has"),
        (lambda root: files.write_text(root / "results/cpu/xmoe/costs.csv", "seconds\n"), r"costs\.csv:1: the columns are"),
    ],
)
def test_records_that_cannot_be_compared_do_not_stay(root, change, message):
    with_another_method(root)
    evaluate(root)
    keep_results(root)
    change(root)
    before = read_records(root)
    with pytest.raises(MoebenchError, match=message):
        evaluate(root, only=["dense_wide"])
    assert read_records(root) == before


def test_a_method_that_does_not_run_is_refused(root):
    message = r"method 'dense_agin' \(did you mean 'dense_again'\?\) does not run in profile 'cpu'; dense, dense_again do"
    with pytest.raises(MoebenchError, match=message):
        evaluate(root, only=["dense_agin"])


def test_what_starts_from_a_methods_runs_has_to_be_named_with_it(root):
    evaluate(root, only=["dense"])  # no records of the other one are there
    evaluate(root)
    keep_results(root)
    with pytest.raises(MoebenchError, match="method 'dense_again' is made from the runs of 'dense': name it too, --method dense_again"):
        evaluate(root, only=["dense"])


def test_an_unfinished_run_is_missing(root):
    files.write_json(root / "runs/cpu/xmoe/trained/pretrain/dense-0/run.json", {"key": "k"})
    with pytest.raises(MoebenchError, match=r"made by: dvc repro experiments/xmoe/cpu/dvc\.yaml:pretrain@dense-0$"):
        evaluate(root)


def test_missing_baselines_are_missing_cells(root):
    shutil.rmtree(root / "runs/cpu/xmoe/baselines")
    with pytest.raises(
        MoebenchError, match=r"cpu/xmoe/baselines\nThe first is made by: dvc repro experiments/xmoe/cpu/dvc\.yaml:baselines$"
    ):
        evaluate(root)


def test_predictions_that_do_not_fit_are_named_and_nothing_is_written(root):
    path = root / "runs/cpu/xmoe/trained/finetune/dense-constructed_pos-0/predictions/constructed_pos/aa.jsonl"
    files.write_jsonl(path, RIGHT[:1])
    with pytest.raises(MoebenchError, match=r"dense-constructed_pos-0/predictions/constructed_pos/aa\.jsonl"):
        evaluate(root)
    assert not experiment_of(root).records_folder.exists()


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ({"stage": "pretrain"}, "entry 0"),
        ({"stage": "finetune", "task": "mlm", "language": "aa", "metric": "perplexity", "value": 1.0, "n": 5}, "key 'stage'"),
        ({"stage": "pretrain", "task": "mlm", "language": "aa", "metric": "perplexity", "value": "low", "n": 5}, "entry 0"),
        ({"stage": "pretrain", "task": "mlm", "language": "aa", "metric": "perplexity", "value": float("nan"), "n": 5}, "should be finite"),
    ],
)
def test_damaged_measures_are_named(root, measure, message):
    files.write_json(root / "runs/cpu/xmoe/trained/pretrain/dense-0/measures.json", [measure])
    with pytest.raises(MoebenchError, match=message):
        evaluate(root)
    assert not experiment_of(root).records_folder.exists()


def test_data_that_is_not_prepared_is_named(root):
    shutil.rmtree(root / "data/prepared/cpu/xmoe/tasks/constructed_pos")
    with pytest.raises(MoebenchError, match=r"no test data of task 'constructed_pos'; delete .*data/prepared/cpu/xmoe and run again"):
        evaluate(root)


def test_the_name_of_the_data():
    assert data_name({"source": "constructed", "revision": "constructed-2"}) == "constructed-2"
    assert data_name({"source": "files", "revision": "0123456789abcdef"}) == "files:0123456789ab"


FINISHED = "runs/cpu/xmoe/trained/finetune/dense-constructed_pos-0"
DAMAGE = {
    "data/prepared/cpu/xmoe/manifest.json": ["[]", "{}", '{"source": 1, "revision": "x"}', "[" * 100_000],
    f"{FINISHED}/costs.json": ["[]", "null", "{"],
    f"{FINISHED}/measures.json": ["{}", "[1]", '{"a": {}}', "3"],
    f"{FINISHED}/predictions/constructed_pos/aa.jsonl": ["[]\n", "1\n", '{"id": "0"}\n', "[" * 100_000],
    PLAN: ["[]", "{}"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts], ids=lambda text: text[:40])
def test_a_file_of_another_shape_is_named(root, name, text):
    (root / name).write_text(text)
    with pytest.raises(MoebenchError, match=re.escape(name)) as caught:
        evaluate(root)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", "archive", "objects"])
def test_an_array_of_another_kind_is_named(root, content):
    leave(root, "dense", 0, SURE)
    path = root / FINISHED / "predictions/validation.npy"
    if content == "archive":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    elif content == "objects":
        np.save(path, np.array([{}, []], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(content)
    with pytest.raises(MoebenchError, match=r"validation\.npy: not a readable array"):
        evaluate(root)


def test_a_gold_file_that_is_gone_is_named(root):
    path = experiment_of(root).prepared / "manifest.json"
    name = "constructed_pos/test/constructed_pos/bb.jsonl"
    files.write_json(path, files.read_json(path) | {"rows": {name: 2}})
    (path.parent / "tasks" / name).unlink()
    with pytest.raises(MoebenchError, match=re.escape(name)):
        evaluate(root)

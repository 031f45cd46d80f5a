"""The stage that writes the shallow baselines: which files, the same bytes, and nothing changed on a failure."""

import pytest

from moebench import files
from moebench.errors import MoebenchError
from moebench.pipeline.baselines import baselines
from moebench.protocols.transfer.shallow import BASELINES

DATA = {"source": "files", "tasks": ["panx", "pawsx"], "tokens": {"source": "bundled"}}


@pytest.fixture
def experiment(write_paper):
    experiment = write_paper("real", DATA)
    prepared = experiment.prepared / "tasks"
    tagged = [{"id": str(n), "words": ["Rome", "is"], "tags": ["B-LOC", "O"]} for n in range(4)]
    pairs = [{"id": str(n), "text_a": "a b", "text_b": "a b" if n % 2 else "c", "label": str(n % 2), "group": str(n)} for n in range(10)]
    for name, rows in {"panx": tagged, "pawsx": pairs}.items():
        files.write_jsonl(prepared / name / "train.jsonl", rows)
        files.write_jsonl(prepared / name / "test" / name / "en.jsonl", rows[:3])
        files.write_jsonl(prepared / name / "test" / name / "de.jsonl", rows[1:3])
    return experiment


def content(experiment):
    folder = experiment.baselines_folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_baseline_of_every_task_and_language(experiment):
    baselines(experiment)
    expected = {f"{name}/panx/{language}.jsonl" for name in BASELINES["tagging"] for language in ("de", "en")}
    expected |= {f"{name}/pawsx/{language}.jsonl" for name in BASELINES["pair"] for language in ("de", "en")}
    assert set(content(experiment)) == expected
    train = files.read_jsonl(experiment.prepared / "tasks/pawsx/train.jsonl")
    alone = files.read_jsonl(experiment.baselines_folder / "overlap/pawsx/de.jsonl")
    assert alone == BASELINES["pair"]["overlap"](train, train[1:3])
    assert [row["prediction"] for row in alone] == ["1", "0"]


def test_again_gives_the_same_bytes_and_no_stale_file(experiment):
    baselines(experiment)
    before = content(experiment)
    files.write_jsonl(experiment.baselines_folder / "overlap/pawsx/old.jsonl", [])
    baselines(experiment)
    assert content(experiment) == before


def test_missing_data_changes_nothing(experiment):
    baselines(experiment)
    before = content(experiment)
    for path in (experiment.prepared / "tasks/pawsx/test/pawsx").iterdir():
        path.unlink()
    with pytest.raises(MoebenchError, match=r"test/pawsx: no examples of task 'pawsx'"):
        baselines(experiment)
    (experiment.prepared / "tasks/panx/train.jsonl").unlink()
    with pytest.raises(MoebenchError, match=r"panx/train\.jsonl: cannot be read"):
        baselines(experiment)
    assert content(experiment) == before

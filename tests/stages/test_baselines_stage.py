"""The stage that writes the shallow baselines: which files, the same bytes, and nothing changed on a failure."""

import pytest

from moebench import files
from moebench.errors import MoebenchError
from moebench.stages.baselines import baselines
from moebench.tasks.baselines import BASELINES

PROFILE = "source: files\ntasks: [panx, pawsx]\ntokens: {source: bundled}\n"


@pytest.fixture
def root(tmp_path):
    files.write_text(tmp_path / "data/profiles/real.yaml", PROFILE)
    prepared = tmp_path / "data/prepared/real/tasks"
    tagged = [{"id": str(n), "words": ["Rome", "is"], "tags": ["B-LOC", "O"]} for n in range(4)]
    pairs = [{"id": str(n), "text_a": "a b", "text_b": "a b" if n % 2 else "c", "label": str(n % 2), "group": str(n)} for n in range(10)]
    for name, rows in {"panx": tagged, "pawsx": pairs}.items():
        files.write_jsonl(prepared / name / "train.jsonl", rows)
        files.write_jsonl(prepared / name / "test" / name / "en.jsonl", rows[:3])
        files.write_jsonl(prepared / name / "test" / name / "de.jsonl", rows[1:3])
    return tmp_path


def content(root):
    folder = root / "runs/real/baselines"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_baseline_of_every_task_and_language(root):
    baselines(root, "real")
    expected = {f"{name}/panx/{language}.jsonl" for name in BASELINES["tagging"] for language in ("de", "en")}
    expected |= {f"{name}/pawsx/{language}.jsonl" for name in BASELINES["pair"] for language in ("de", "en")}
    assert set(content(root)) == expected
    train = files.read_jsonl(root / "data/prepared/real/tasks/pawsx/train.jsonl")
    alone = files.read_jsonl(root / "runs/real/baselines/overlap/pawsx/de.jsonl")
    assert alone == BASELINES["pair"]["overlap"](train, train[1:3])
    assert [row["prediction"] for row in alone] == ["1", "0"]


def test_again_gives_the_same_bytes_and_no_stale_file(root):
    baselines(root, "real")
    before = content(root)
    files.write_jsonl(root / "runs/real/baselines/overlap/pawsx/old.jsonl", [])
    baselines(root, "real")
    assert content(root) == before


def test_missing_data_changes_nothing(root):
    baselines(root, "real")
    before = content(root)
    for path in (root / "data/prepared/real/tasks/pawsx/test/pawsx").iterdir():
        path.unlink()
    with pytest.raises(MoebenchError, match=r"test/pawsx: no examples of task 'pawsx'"):
        baselines(root, "real")
    (root / "data/prepared/real/tasks/panx/train.jsonl").unlink()
    with pytest.raises(MoebenchError, match=r"panx/train\.jsonl: cannot be read"):
        baselines(root, "real")
    assert content(root) == before

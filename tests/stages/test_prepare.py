"""Stage prepare, end to end with a tiny source."""

import json
import random
import runpy
from pathlib import Path

import numpy as np
import pytest

from moebench.data import bundled
from moebench.data.tokenizer import Tokenizer
from moebench.errors import MoebenchError
from moebench.files import read_jsonl
from moebench.stages import prepare as stage

write_bundle = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_bundle.py"))["write_bundle"]

PROFILE = """
source: constructed
tasks: [constructed_pos, constructed_qa_parallel, constructed_qa_cross]
constructed: {languages: 5}
corpus: {sequence_length: 16, validation_rows: 3}
tokens: {source: trained, vocabulary: 80}
"""
FILES = """
source: files
tasks: [xnli]
tokens: {source: bundled}
"""
WORDS = ["".join(random.Random(number).choices("abdegiklmnoprstu", k=4)) for number in range(60)]


class Source:
    """Two languages; every example has a number of its own in it."""

    name, revision, pivot, languages = "tiny", "1", "aa", ("aa", "bb")

    def sentence(self, *key):
        return " ".join(random.Random(repr(key)).choices(WORDS, k=9))

    def rows(self, name, split, language, count):
        for number in range(count):
            text = self.sentence(name, split, language, number)
            row = {"id": str(number)}
            if name == "constructed_pos":
                yield row | {"words": text.split(), "tags": ["NOUN"] * 9}
            elif name == "xnli":
                yield row | {"text_a": text, "text_b": text[5:], "label": "neutral", "group": "0"}
            else:
                yield row | {"context": text, "question": "who?", "answers": [{"text": text[5:9], "start": 5}]}

    def train(self, name):
        return self.rows(name, "train", "aa", 6)

    def validation(self, name):
        return self.rows(name, "validation", "aa", 4)

    def test(self, name):
        languages = ("bb-aa", "aa") if name.endswith("cross") else ("bb", "aa")
        return {language: self.rows(name, "test", language, 5) for language in languages}

    def documents(self, split):
        for number in range(40):
            yield from ((language, self.sentence("document", split, language, number)) for language in self.languages)

    def parallel(self, split):
        return ((*("aa", self.sentence("a", number)), *("bb", self.sentence("b", number))) for number in range(10))


class Files(Source):
    """As a source of real files: with choices and reports."""

    def choices(self):
        return {"xnli": "the test set stands in for training"}

    def reports(self):
        return {"xnli": {"kept": 5}}


def project(root, text=PROFILE):
    (root / "data" / "profiles").mkdir(parents=True)
    (root / "data" / "profiles" / "smoke.yaml").write_text(text)
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "build_source", lambda root, data, step: Source())
    return project(tmp_path)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everything_is_written(root, capfd):
    stage.prepare(root, "smoke")
    assert capfd.readouterr() == ("", "")  # quiet where nobody watches
    folder = root / "data" / "prepared" / "smoke"
    tasks = {
        "tasks/constructed_pos/train.jsonl": 6,
        "tasks/constructed_pos/validation.jsonl": 4,
        "tasks/constructed_pos/test/constructed_pos/aa.jsonl": 5,
        "tasks/constructed_pos/test/constructed_pos/bb.jsonl": 5,
        "tasks/constructed_qa/train.jsonl": 6,
        "tasks/constructed_qa/validation.jsonl": 4,
        "tasks/constructed_qa/test/constructed_qa_parallel/aa.jsonl": 5,
        "tasks/constructed_qa/test/constructed_qa_parallel/bb.jsonl": 5,
        "tasks/constructed_qa/test/constructed_qa_cross/aa.jsonl": 5,
        "tasks/constructed_qa/test/constructed_qa_cross/bb-aa.jsonl": 5,
    }
    rest = {f"corpus/{split}.{end}" for split in ("train", "validation") for end in ("npy", "json")}
    rest |= {"tokenizer/sentencepiece.model", "tokenizer/tokenizer.json", "manifest.json"}
    written = contents(folder)
    assert set(written) == set(tasks) | rest
    for name, count in tasks.items():
        assert len(written[name].splitlines()) == count
    example = json.loads(written["tasks/constructed_pos/test/constructed_pos/bb.jsonl"].splitlines()[2])
    assert example == list(Source().rows("constructed_pos", "test", "bb", 5))[2]

    manifest = json.loads(written["manifest.json"])
    pieces = Tokenizer.load(folder / "tokenizer")
    rows = np.load(folder / "corpus" / "train.npy")
    assert {key: manifest[key] for key in ("profile", "source", "revision", "pivot", "languages")} == {
        "profile": "smoke",
        "source": "tiny",
        "revision": "1",
        "pivot": "aa",
        "languages": ["aa", "bb"],
    }
    assert manifest["rows"] == {name.removeprefix("tasks/"): count for name, count in tasks.items()}
    assert manifest["overlap"] == {}
    assert manifest["tokenizer"] == {"kind": "trained", "size": pieces.size, "sha256": pieces.sha256}
    assert manifest["corpus"]["train"]["rows"] == len(rows)
    assert manifest["corpus"]["train"]["translation"] == 10
    assert manifest["corpus"]["validation"]["rows"] == 6
    assert pieces.unk not in rows  # trained on documents and both sides of the pairs
    assert rows.max() < pieces.size
    assert str(root) not in str(manifest)


def test_again_gives_the_same_bytes_and_nothing_is_left_beside(root):
    stage.prepare(root, "smoke")
    folder = root / "data" / "prepared" / "smoke"
    first = contents(folder)
    (folder / "stray").write_text("from another version")
    stage.prepare(root, "smoke")
    assert contents(folder) == first
    assert [path.name for path in folder.parent.iterdir()] == ["smoke"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["train", "test", "parallel"])
def test_a_failure_in_the_middle_leaves_the_old_result(root, monkeypatch, where, error):
    stage.prepare(root, "smoke")
    folder = root / "data" / "prepared" / "smoke"
    before = contents(folder)

    def fail(*_):
        raise error

    monkeypatch.setattr(Source, where, fail)
    with pytest.raises(error):
        stage.prepare(root, "smoke")
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["smoke"]


def test_a_failed_rename_brings_the_old_result_back(root, monkeypatch):
    stage.prepare(root, "smoke")
    folder = root / "data" / "prepared" / "smoke"
    before = contents(folder)
    replace = Path.replace

    def broken(path, target):
        if path.name == ".smoke.new":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(MoebenchError, match="smoke: cannot be written: No space left"):
        stage.prepare(root, "smoke")
    assert contents(folder) == before


def test_what_a_killed_run_left_is_cleared(root):
    beside = root / "data" / "prepared"
    (beside / ".smoke.new" / "tasks").mkdir(parents=True)
    (beside / ".smoke.new" / "tasks" / "half").write_text("x")
    (beside / ".smoke.old").mkdir()
    stage.prepare(root, "smoke")
    assert [path.name for path in beside.iterdir()] == ["smoke"]
    assert not (beside / "smoke" / "tasks" / "half").exists()


def test_a_constructed_test_example_in_the_training_set_is_refused(root, monkeypatch):
    monkeypatch.setattr(Source, "test", lambda self, name: {"bb": self.rows(name, "train", "aa", 2)})
    with pytest.raises(MoebenchError, match=r"test/constructed_pos/bb\.jsonl: 2 examples are also in the training set"):
        stage.prepare(root, "smoke")
    assert not (root / "data" / "prepared" / "smoke").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["NOUN"] * 8}, r"constructed_pos/train\.jsonl: row '0'.*a list of 9 tags"),
        ({"id": "7"}, r"constructed_pos/train\.jsonl: the id '7' occurs twice"),
    ],
)
def test_a_bad_row_is_refused_with_its_file(root, monkeypatch, change, message):
    monkeypatch.setattr(Source, "train", lambda self, name: (row | change for row in self.rows(name, "train", "aa", 6)))
    with pytest.raises(MoebenchError, match=message):
        stage.prepare(root, "smoke")


def test_an_empty_file_is_refused(root, monkeypatch):
    monkeypatch.setattr(Source, "train", lambda self, name: iter(()))
    with pytest.raises(MoebenchError, match=r"constructed_pos/train\.jsonl: the source gives no examples"):
        stage.prepare(root, "smoke")


def test_files_with_the_bundled_vocabulary(tmp_path, monkeypatch):
    root = project(tmp_path, FILES)
    source = Files()
    monkeypatch.setattr(stage, "build_source", lambda root, data, step: source)
    monkeypatch.setattr(Files, "test", lambda self, name: {"de": self.rows(name, "test", "de", 5), "en": self.rows(name, "train", "aa", 2)})
    asked = []

    def fetch(folder):
        asked.append(folder)
        write_bundle(tmp_path / "tiny.bin")
        return tmp_path / "tiny.bin"

    monkeypatch.setattr(bundled, "fetch", fetch)
    stage.prepare(root, "smoke")
    folder = root / "data" / "prepared" / "smoke"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert asked == [root / "data" / "downloads"]
    assert not (folder / "corpus").exists()
    assert manifest["tokenizer"]["kind"] == "bundled"
    pieces = Tokenizer.load(folder / "tokenizer")
    rows = [row for path in (folder / "tasks").rglob("*.jsonl") for row in read_jsonl(path)]
    used = {piece for row in rows for key in ("text_a", "text_b") for piece in pieces.encode(row[key])[0]}
    special = {pieces.bos, pieces.pad, pieces.eos, pieces.unk, pieces.mask}
    assert used | special == set(range(pieces.size))
    assert manifest["tokenizer"]["size"] == pieces.size
    assert manifest["overlap"] == {"xnli/test/xnli/en.jsonl": 2}  # real files do repeat sentences: counted, not refused
    assert manifest["choices"] == source.choices()
    assert manifest["reports"] == source.reports()
    assert "corpus" not in manifest

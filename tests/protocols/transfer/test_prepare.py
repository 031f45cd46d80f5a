"""Stage prepare, end to end with a tiny source."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_bundle

from moebench.data import bundled
from moebench.data.tokenizer import Tokenizer
from moebench.errors import MoebenchError
from moebench.files import read_jsonl
from moebench.pipeline.prepare import prepare
from moebench.protocols.transfer import prepare as protocol

DATA = {
    "source": "constructed",
    "tasks": ["constructed_pos", "constructed_qa_parallel", "constructed_qa_cross"],
    "constructed": {"languages": 5},
    "corpus": {"sequence_length": 16, "validation_rows": 3},
    "tokens": {"source": "trained", "vocabulary": 80},
}
FILES = {"source": "files", "tasks": ["xnli"], "tokens": {"source": "bundled"}}
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


@pytest.fixture
def experiment(write_paper, monkeypatch):
    monkeypatch.setattr(protocol, "build_source", lambda root, data, step: Source())
    return write_paper("smoke", DATA)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everything_is_written(experiment, capfd):
    prepare(experiment)
    assert capfd.readouterr() == ("", "")  # quiet where nobody watches
    folder = experiment.prepared
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
    rest |= {f"parts/{name}.json" for name in ("corpus", "constructed_pos", "constructed_qa")}
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
    assert str(experiment.root) not in str(manifest)


def test_a_part_lists_what_its_runs_read_with_checksums(experiment, monkeypatch):
    prepare(experiment)
    folder = experiment.prepared
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents(folder).items()}
    prefixes = {"corpus": "corpus/", "constructed_pos": "tasks/constructed_pos/", "constructed_qa": "tasks/constructed_qa/"}
    for part, prefix in prefixes.items():
        expected = {name: value for name, value in files.items() if name.startswith((prefix, "tokenizer/"))}
        assert json.loads(experiment.part_file(part).read_text()) == expected
    before = {part: experiment.part_file(part).read_bytes() for part in prefixes}
    monkeypatch.setattr(Source, "train", lambda self, name: self.rows(name, "train", "aa", 6 + name.startswith("constructed_qa")))
    prepare(experiment)
    assert {part for part in prefixes if experiment.part_file(part).read_bytes() != before[part]} == {"constructed_qa"}


def test_without_a_corpus_the_part_of_pretraining_is_the_tokenizer(write_paper):
    experiment = write_paper("smoke", FILES)
    assert protocol.parts(experiment) == {"corpus": ["tokenizer"], "xnli": ["tasks/xnli", "tokenizer"]}


def test_again_gives_the_same_bytes_and_nothing_is_left_beside(experiment):
    prepare(experiment)
    folder = experiment.prepared
    first = contents(folder)
    (folder / "stray").write_text("from another version")
    prepare(experiment)
    assert contents(folder) == first
    assert sorted(path.name for path in folder.parent.iterdir()) == [".xmoe.lock", "xmoe"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["train", "test", "parallel"])
def test_a_failure_in_the_middle_leaves_the_old_result(experiment, monkeypatch, where, error):
    prepare(experiment)
    folder = experiment.prepared
    before = contents(folder)

    def fail(*_):
        raise error

    monkeypatch.setattr(Source, where, fail)
    with pytest.raises(error):
        prepare(experiment)
    assert contents(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [".xmoe.lock", "xmoe"]


def test_a_failed_rename_brings_the_old_result_back(experiment, monkeypatch):
    prepare(experiment)
    folder = experiment.prepared
    before = contents(folder)
    replace = Path.replace

    def broken(path, target):
        if path.name == ".xmoe.new":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(MoebenchError, match="xmoe: cannot be written: No space left"):
        prepare(experiment)
    assert contents(folder) == before


def test_what_a_killed_run_left_is_cleared(experiment):
    beside = experiment.prepared.parent
    (beside / ".xmoe.new" / "tasks").mkdir(parents=True)
    (beside / ".xmoe.new" / "tasks" / "half").write_text("x")
    (beside / ".xmoe.old").mkdir()
    prepare(experiment)
    assert sorted(path.name for path in beside.iterdir()) == [".xmoe.lock", "xmoe"]
    assert not (beside / "xmoe" / "tasks" / "half").exists()


def test_a_constructed_test_example_in_the_training_set_is_refused(experiment, monkeypatch):
    monkeypatch.setattr(Source, "test", lambda self, name: {"bb": self.rows(name, "train", "aa", 2)})
    with pytest.raises(MoebenchError, match=r"test/constructed_pos/bb\.jsonl: 2 examples are also in the training set"):
        prepare(experiment)
    assert not experiment.prepared.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["NOUN"] * 8}, r"constructed_pos/train\.jsonl: row '0'.*a list of 9 tags"),
        ({"id": "7"}, r"constructed_pos/train\.jsonl: the id '7' occurs twice"),
    ],
)
def test_a_bad_row_is_refused_with_its_file(experiment, monkeypatch, change, message):
    monkeypatch.setattr(Source, "train", lambda self, name: (row | change for row in self.rows(name, "train", "aa", 6)))
    with pytest.raises(MoebenchError, match=message):
        prepare(experiment)


def test_an_empty_file_is_refused(experiment, monkeypatch):
    monkeypatch.setattr(Source, "train", lambda self, name: iter(()))
    with pytest.raises(MoebenchError, match=r"constructed_pos/train\.jsonl: the source gives no examples"):
        prepare(experiment)


def test_files_with_the_bundled_vocabulary(write_paper, tmp_path, monkeypatch):
    experiment = write_paper("smoke", FILES)
    source = Files()
    monkeypatch.setattr(protocol, "build_source", lambda root, data, step: source)
    monkeypatch.setattr(Files, "test", lambda self, name: {"de": self.rows(name, "test", "de", 5), "en": self.rows(name, "train", "aa", 2)})
    asked = []

    def fetch(folder):
        asked.append(folder)
        write_bundle(tmp_path / "tiny.bin")
        return tmp_path / "tiny.bin"

    monkeypatch.setattr(bundled, "fetch", fetch)
    prepare(experiment)
    folder = experiment.prepared
    manifest = json.loads((folder / "manifest.json").read_text())
    assert asked == [tmp_path / "data" / "downloads"]
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

"""Texts from files, from benchmark files and from a stream become packed rows; what a plan says of them changes with them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.data import lm_tokenizer
from moebench.errors import MoebenchError
from moebench.pipeline.plan import planned
from moebench.pipeline.prepare import prepare
from moebench.protocols.language_model.batches import open_rows
from moebench.protocols.language_model.prepare import _cut

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def sentence(generator):
    return " ".join(generator.choice(WORDS, 12))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of text in two languages."""
    generator = np.random.default_rng(0)
    for language in ("de", "en"):
        (tmp_path / "texts" / language).mkdir(parents=True)
        text = "\n\n".join(f"{language} {sentence(generator)}" for _ in range(400))
        (tmp_path / "texts" / language / "one.txt").write_text(text, encoding="utf-8")
    monkeypatch.setenv("MOEBENCH_FOLDER", str(tmp_path))
    return tmp_path / "texts"


def files_of(**texts):
    return (
        ("data", "texts", texts),
        ("data", "constructed", None),
        ("data", "tasks", {}),
        ("data", "validation_rows", 4),
    )


def test_texts_of_a_folder_are_packed_by_language_and_lose_nothing(write, folder):
    paper = write(*files_of(de={"source": "files", "path": "texts", "language": "de"}, both={"source": "files", "path": "texts"}))
    prepare(paper)
    pieces = lm_tokenizer.load(paper.prepared / "tokenizer")
    rows = {(split, name): open_rows(paper.prepared / split, name)[:] for split in ("train", "validation") for name in ("de", "both")}
    text = pieces.decode(rows["train", "de"].ravel().tolist())
    assert " en " not in text
    assert text.count("de ") > 300
    assert len(rows["train", "both"]) > 1.9 * len(rows["train", "de"])
    assert len(rows["validation", "de"]) == 4
    whole = (folder / "de" / "one.txt").read_text()
    assert all(document in whole for document in text.split("de ")[1:-1])  # documents follow each other as they stand
    manifest = json.loads((paper.prepared / "manifest.json").read_text())
    assert manifest["texts"]["de"]["validation"]["rows"] == 4


def test_a_plan_changes_with_the_files_and_a_folder_that_is_not_there_is_named(write, folder):
    changes = files_of(own={"source": "files", "path": "texts"})
    before = planned(write(*changes))["prepare"]
    (folder / "en" / "two.txt").write_text("more of it\n", encoding="utf-8")
    assert planned(write(*changes))["prepare"] != before
    with pytest.raises(MoebenchError, match="nowhere: no such folder or file of text"):
        planned(write(*files_of(own={"source": "files", "path": "nowhere"})))


@given(lengths=st.lists(st.integers(0, 9), min_size=40, max_size=60), rows=st.integers(1, 4), length=st.integers(3, 20))
def test_held_out_text_is_cut_to_the_rows_that_are_asked_for(lengths, rows, length):
    documents = list(_cut(([0] * one for one in lengths), rows * length + 2))
    tokens = sum(len(document) + 2 for document in documents)
    assert tokens // length == min(rows, sum(one + 2 for one in lengths) // length)


def test_too_little_text_is_an_error_that_names_it(write, folder):
    (folder / "little.txt").write_text("only this\n", encoding="utf-8")
    with pytest.raises(MoebenchError, match="do not fill a row of 32"):
        prepare(write(*files_of(big={"source": "files", "path": "texts/en"}, own={"source": "files", "path": "texts/little.txt"})))


def test_a_stream_is_packed_below_downloads_and_linked_into_the_data(write, folder):
    trained = write(*files_of(own={"source": "files", "path": "texts"}))
    prepare(trained)
    downloads = trained.root / "data" / "downloads"
    downloads.mkdir(parents=True)
    (trained.prepared / "tokenizer").rename(downloads / "pieces")
    (model,) = (downloads / "pieces").glob("*.model")
    model.rename(downloads / "pieces" / "tokenizer.model")
    generator = np.random.default_rng(1)
    home = downloads / "owner" / "corpus"
    home.mkdir(parents=True)
    lines = [json.dumps({"text": f"{number} {sentence(generator)}"}) for number in range(1500)]
    (home / "part.jsonl").write_text("\n".join(lines), encoding="utf-8")
    stream = {"source": "stream", "dataset": "owner/corpus", "sources": {"*.jsonl": 1}, "tokens": 6400}
    paper = write(*files_of(web=stream), ("data", "tokens", {"source": "checkpoint", "checkpoint": "pieces"}))
    prepare(paper)
    rows = open_rows(paper.prepared / "train", "web")
    assert rows[:].shape == (200, 32)
    assert len(open_rows(paper.prepared / "validation", "web")) >= 1  # one document in 200
    pieces = lm_tokenizer.load(paper.prepared / "tokenizer")
    packed = sorted((downloads / "packed").glob("*/00000.npy"))
    assert {path.stat().st_ino for path in packed} == {
        (paper.prepared / split / "web" / "00000.npy").stat().st_ino for split in ("train", "validation")
    }
    text = pieces.decode(rows[:].ravel().tolist())
    assert all(word in text for word in WORDS)


def test_a_stream_needs_a_tokenizer_that_is_there_before(write):
    stream = {"source": "stream", "dataset": "owner/corpus", "sources": {"*": 1}, "tokens": 6400}
    with pytest.raises(MoebenchError, match=r"tokens\.source 'trained': should be 'checkpoint' beside a stream"):
        write(*files_of(web=stream)).check()


@pytest.mark.slow
def test_the_real_profile_packs_sixteen_languages(project, tmp_path):
    if not (Path(os.environ.get("MOEBENCH_FOLDER", "nowhere")) / "ntrex").is_dir():
        pytest.skip("the original files are not here; MOEBENCH_FOLDER names their folder")
    import shutil

    from moebench.experiment import Experiment

    shutil.copytree(
        project / "experiments" / "aoe", tmp_path / "experiments" / "aoe", ignore=shutil.ignore_patterns("dvc.*", "params.yaml")
    )
    paper = Experiment(tmp_path, "aoe", "real")
    prepare(paper)
    manifest = json.loads((paper.prepared / "manifest.json").read_text())
    assert len(manifest["texts"]) == 16
    assert all(counts[split]["rows"] for counts in manifest["texts"].values() for split in ("train", "validation"))

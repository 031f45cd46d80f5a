"""Packing: against one long list per language cut into rows."""

import json
import random

import numpy as np
import pytest
from tiny_bundle import EVERY_TEXT, write_bundle

from moebench.data import corpus, tokenizer
from moebench.data.bundled import Bundle
from moebench.errors import MoebenchError

BOS, PAD, EOS = 0, 1, 2
WORDS = ["the", "cat", "sat", "on", "mat", "hello", "world", "日本"]


class Source:
    """Documents of three languages, interleaved at random."""

    def __init__(self, documents=300, pairs=40, seed=0):
        generator = random.Random(seed)

        def text(longest):
            return " ".join(generator.choices(WORDS, k=generator.randint(1, longest)))

        self.texts = {split: [(generator.choice("abc"), text(30)) for _ in range(documents)] for split in ("train", "validation")}
        self.pairs = [("a", text(12), generator.choice("bc"), text(12)) for _ in range(pairs)]

    def documents(self, split):
        return iter(self.texts[split])

    def parallel(self, split):
        assert split == "train", "validation has no translations"
        return iter(self.pairs)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_bundle(folder / "tiny.bin")
    return tokenizer.from_bundle(Bundle(folder / "tiny.bin"), EVERY_TEXT, folder)


def read(folder, name):
    rows = np.load(folder / f"{name}.npy")
    about = json.loads((folder / f"{name}.json").read_text())
    assert rows.dtype == np.int32
    assert len(rows) == len(about["language"]) == len(about["kind"])
    return [(language, kind, row) for language, kind, row in zip(about["language"], about["kind"], rows.tolist(), strict=True)]


def reference(source, pieces, split, length):
    """Language → its rows: one list of all ids, cut."""
    rows = {}
    for language in "abc":
        stream = []
        for other, text in source.texts[split]:
            if other == language:
                stream += [*pieces.encode(text)[0], EOS]
        cuts = [stream[start : start + length - 1] for start in range(0, len(stream), length - 1)]
        rows[language] = [([BOS, *cut] + [PAD] * length)[:length] for cut in cuts]
    return rows


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_text_rows_are_the_cut_stream_of_each_language(pieces, tmp_path, monkeypatch, batch):
    monkeypatch.setattr(corpus, "BATCH", batch)
    source = Source()
    counts = corpus.pack(source, pieces, 24, 9, tmp_path)
    train, validation = read(tmp_path, "train"), read(tmp_path, "validation")
    expected = reference(source, pieces, "train", 24)
    held_out = reference(source, pieces, "validation", 24)
    for language in "abc":
        assert [row for other, kind, row in train if (other, kind) == (language, "text")] == expected[language]
        assert len(held_out[language]) > 9
        assert [row for other, _, row in validation if other == language] == held_out[language][:9]
    assert {kind for _, kind, _ in validation} == {"text"}
    text, pairs = sum(map(len, expected.values())), len(packed(source, pieces, 24)[0])
    assert counts["train"] == {"rows": text + pairs, "text": text, "translation": pairs, "truncated": counts["train"]["truncated"]}
    assert counts["validation"] == {"rows": 27, "text": 27, "translation": 0, "truncated": 0}


def test_fewer_held_out_documents_give_fewer_rows(pieces, tmp_path):
    source = Source(documents=12)
    corpus.pack(source, pieces, 24, 10**6, tmp_path)
    expected = reference(source, pieces, "validation", 24)
    assert [row for other, _, row in read(tmp_path, "validation") if other == "b"] == expected["b"]


def truncate(a, b, room):
    """Drop the last id of the longer one until both fit; of two as long, the second gives way."""
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return a, b


def packed(source, pieces, length):
    """(languages, row) of all rows, languages by languages, and how many pairs were truncated: pairs taken while they fit."""
    rows, truncated = [], 0
    for other in "bc":
        row = [BOS]
        for _, text_a, language, text_b in source.pairs:
            if language != other:
                continue
            whole_a, whole_b = pieces.encode(text_a)[0], pieces.encode(text_b)[0]
            a, b = truncate(whole_a, whole_b, length - 3)
            truncated += (a, b) != (whole_a, whole_b)
            pair = [*a, EOS, *b, EOS]
            if len(row + pair) > length:
                rows.append((f"a-{other}", row))
                row = [BOS]
            row = row + pair
        rows.append((f"a-{other}", row))
    return [(languages, (row + [PAD] * length)[:length]) for languages, row in rows], truncated


@pytest.mark.parametrize("batch", [3, 1000])
@pytest.mark.parametrize("length", [5, 6, 16, 19, 64])
def test_translation_rows(pieces, tmp_path, monkeypatch, length, batch):
    monkeypatch.setattr(corpus, "BATCH", batch)
    source = Source()
    counts = corpus.pack(source, pieces, length, 5, tmp_path)
    rows = [(languages, row) for languages, kind, row in read(tmp_path, "train") if kind == "translation"]
    expected, truncated = packed(source, pieces, length)
    assert sorted(rows) == sorted(expected)
    assert counts["train"]["truncated"] == truncated
    assert (truncated > 0) == (length < 64)
    assert length < 64 or len(rows) < len(source.pairs)


def test_the_same_source_gives_the_same_bytes(pieces, tmp_path):
    for name in ("one", "two"):
        corpus.pack(Source(), pieces, 24, 5, tmp_path / name)
    for file in ("train.npy", "train.json", "validation.npy", "validation.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_progress_is_reported_once_a_batch(pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH", 100)
    steps = []
    corpus.pack(Source(documents=250, pairs=40), pieces, 24, 5, tmp_path, lambda: steps.append(1))
    assert len(steps) == 3 + 1 + 3


def test_impossible_requests_are_errors(pieces, tmp_path):
    with pytest.raises(MoebenchError, match="sequence_length is 4"):
        corpus.pack(Source(), pieces, 4, 5, tmp_path)
    with pytest.raises(MoebenchError, match="no document of split 'train'"):
        corpus.pack(Source(documents=0), pieces, 24, 5, tmp_path)

"""Text to piece ids and back to character ranges: a SentencePiece model, trained here (BPE) or taken from the bundled encoder (unigram).

On disk, byte for byte the same for the same input: ``sentencepiece.model`` and ``tokenizer.json`` (kind, ids, normalisation, hash of the
model).

A text is normalised first: each code point is replaced by what the table says (white space becomes a space; the bundled table also
flattens full-width forms, ligatures and the like and drops control characters), then runs of spaces become one and the outer ones go.
The replacement is per code point, so every normalised character has one original character and ranges stay exact.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from moebench.data.bundled import Bundle
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_json, write_json

MARK = "\u2581"
"""Stands for a space at the beginning of a piece; every text gets one at its start."""
SURROGATES = range(0xD800, 0xE000)
MODEL, DESCRIPTION = "sentencepiece.model", "tokenizer.json"


def train(texts: Iterable[str], vocabulary: int, folder: Path) -> Tokenizer:
    """Train a tokenizer, write it to ``folder`` and return it.

    The result has at most ``vocabulary`` pieces, fewer where the text supports no more. Ids: bos 0, pad 1, eos 2, unk 3, mask 4.
    The same texts give the same bytes in every process: one thread, and no sampling inside the trainer, whose sampler cannot be seeded.
    The trainer holds all texts in memory.

    The pieces are those of byte-pair encoding. The unigram trainer takes its candidates from what recurs in the list of *different* words,
    where a word that has no other forms stands once, however frequent: in a text of a few hundred words it cuts the commonest into
    fragments (three pieces a word where BPE needs one).

    Raises:
        MoebenchError: no text, or ``vocabulary`` is less than the characters of the text.
    """
    table = {code: " " for code in range(sys.maxunicode + 1) if chr(code).isspace() and chr(code) != " "} | {ord(MARK): " "}
    normalise = _Normaliser(table)
    failures: list[BaseException] = []

    def clean() -> Iterator[str]:
        try:
            yield from filter(None, map(normalise.text, texts))
        except (Exception, KeyboardInterrupt) as error:  # the trainer would turn it into a RuntimeError of its own
            failures.append(error)
            raise

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=clean(),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=1 << 30,
            num_threads=1,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            control_symbols=["<mask>"],
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise MoebenchError(f"the tokenizer cannot be trained with tokens.vocabulary {vocabulary}: {error}") from error
    return _write(folder, model.getvalue(), "trained", {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4}, table)


def from_bundle(bundle: Bundle, texts: Iterable[str], folder: Path) -> Tokenizer:
    """Write the pieces of the bundled vocabulary that the texts use as a tokenizer to ``folder`` and return it.

    Pieces that no best segmentation uses change none, so the texts are cut as by the whole vocabulary, of which a benchmark uses a fifth;
    embedding, checkpoints and the scores of masked-language modelling shrink with it. ``rows`` of the result says which row of the
    bundled word embedding each piece has.
    """
    pieces, table = bundle.pieces(), bundle.normalisation()
    special = {"bos": bundle.bos, "pad": bundle.pad, "eos": bundle.eos, "unk": bundle.unk, "mask": len(pieces) - 1}
    normalise = _Normaliser(table)
    whole = sentencepiece.SentencePieceProcessor(model_proto=_model_proto(pieces, special))
    used = set(special.values())
    for text in texts:
        used.update(whole.encode(normalise.text(text), num_threads=1))
    rows = sorted(used)
    ids = {name: rows.index(row) for name, row in special.items()}
    return _write(folder, _model_proto([pieces[row] for row in rows], ids), "bundled", ids, table, rows)


def _model_proto(pieces: list[tuple[str, float]], ids: dict[str, int]) -> bytes:
    """Serialise SentencePiece's ``ModelProto`` (sentencepiece_model.proto): 1 pieces, 2 trainer, 3 normaliser."""
    types = {number: 2 if name == "unk" else 3 for name, number in ids.items()}  # 1 normal, 2 unknown, 3 control

    def varint(value: int) -> bytes:
        low = value & 127
        return bytes([low | 128]) + varint(value >> 7) if value > 127 else bytes([low])

    def number(field: int, value: int) -> bytes:
        return varint(field << 3) + varint(value)

    def block(field: int, value: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(value)) + value

    body = [
        block(1, block(1, text.encode("utf-8")) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, types.get(i, 1)))
        for i, (text, score) in enumerate(pieces)
    ]
    body.append(
        block(2, number(3, 1) + b"".join(number(field, ids[name]) for field, name in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad"))))
    )
    body.append(
        block(3, block(1, b"identity") + number(3, 1) + number(4, 1) + number(5, 1))
    )  # dummy prefix, no extra spaces, escaped spaces
    return b"".join(body)


def _write(folder: Path, model: bytes, kind: str, ids: dict[str, int], table: dict[int, str], rows: list[int] | None = None) -> Tokenizer:
    with atomic_write(folder / MODEL, binary=True) as handle:
        handle.write(model)
    normalisation = {chr(code): text for code, text in table.items()}
    digest = hashlib.sha256(model).hexdigest()
    write_json(folder / DESCRIPTION, {"kind": kind, "ids": ids, "normalisation": normalisation, "sha256": digest, "rows": rows})
    return Tokenizer.load(folder)


class _Normaliser:
    """Replaces code points, then collapses spaces; remembers which original character each result came from."""

    def __init__(self, table: dict[int, str]) -> None:
        # A lone surrogate cannot be written as UTF-8; it becomes what the replacement character becomes.
        self._table = dict.fromkeys(SURROGATES, table.get(0xFFFD, "\ufffd")) | table
        self._replaced = {chr(code) for code in self._table}

    def _regular(self, text: str) -> bool:
        return self._replaced.isdisjoint(text) and "  " not in text and text == text.strip(" ")

    def text(self, text: str) -> str:
        """Return the normalised text."""
        if self._regular(text):
            return text
        return re.sub(" +", " ", text.translate(self._table)).strip(" ")

    def aligned(self, text: str) -> tuple[str, list[int] | None]:
        """Return the normalised text and, per character of it, the index of the original; None where nothing changed."""
        if self._regular(text):
            return text, None
        characters: list[str] = []
        origin: list[int] = []
        for index, original in enumerate(text):
            for character in self._table.get(ord(original), original):
                if character != " " or (characters and characters[-1] != " "):
                    characters.append(character)
                    origin.append(index)
        if characters and characters[-1] == " ":
            characters.pop()
            origin.pop()
        return "".join(characters), origin


class Tokenizer:
    """A loaded tokenizer.

    Attributes:
        kind: ``trained`` or ``bundled``.
        size: number of pieces; ids are 0 … size - 1.
        rows: per piece its row of the bundled word embedding; none where the tokenizer was trained.
        bos, eos, pad, unk, mask: ids of the special pieces. Text never yields them, except ``unk``: a text ``<s>`` is three characters.
        sha256: hash of the model file.
    """

    def __init__(self, model: bytes, description: dict) -> None:
        self.kind: str = description["kind"]
        self.sha256: str = description["sha256"]
        self.rows: list[int] | None = description["rows"]
        self.bos, self.eos, self.pad, self.unk, self.mask = (description["ids"][name] for name in ("bos", "eos", "pad", "unk", "mask"))
        self._normaliser = _Normaliser({ord(character): text for character, text in description["normalisation"].items()})
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size: int = self._pieces.get_piece_size()
        surfaces = [self._pieces.id_to_piece(number) for number in range(self.size)]
        self._length = [len(surface) for surface in surfaces]
        self._marked = [surface.startswith(MARK) for surface in surfaces]
        self._bare = surfaces.index(MARK) if MARK in surfaces else -1
        self._words: dict[str, list[int]] = {}

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Load a tokenizer.

        Raises:
            MoebenchError: a file is missing or damaged, or the two do not belong together.
        """
        description = read_json(folder / DESCRIPTION)
        try:
            model = (folder / MODEL).read_bytes()
        except OSError as error:
            raise MoebenchError(f"{folder / MODEL}: cannot be read: {error.strerror or error}") from error
        found = hashlib.sha256(model).hexdigest()
        if not isinstance(description, dict) or description.get("sha256") != found:
            expected = description.get("sha256") if isinstance(description, dict) else None
            raise MoebenchError(f"{folder / MODEL}: SHA-256 is {found}, {DESCRIPTION} says {expected}; prepare the data again")
        return cls(model, description)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of ``text``, without special pieces, and per piece the half-open range of original characters it stands for.

        - The space in front of a piece is not in its range; a piece that is only that space has an empty range at the character that
          follows.
        - Every character that is neither white space nor dropped by the normalisation is in exactly one range, with one exception: an
          original character that normalises to several can be split over pieces, which then share its range.
        - A dropped character is in a range only if it stands inside a piece. Starts and ends never decrease.
        """
        clean, origin = self._normaliser.aligned(text)
        ids = self._pieces.encode(clean, num_threads=1)
        if self.unk in ids:  # an unknown piece is as long as its surface
            surfaces = self._pieces.encode(clean, out_type=str, num_threads=1)
            lengths = [len(surface) for surface in surfaces]
            marked = [surface.startswith(MARK) for surface in surfaces]
        else:
            lengths = [self._length[number] for number in ids]
            marked = [self._marked[number] for number in ids]
        offsets = []
        stop = -1  # the model reads its mark before the first character
        for length, mark in zip(lengths, marked, strict=True):
            start = stop + mark
            stop += length
            offsets.append((start, stop))
        if stop != len(clean) and clean:
            raise AssertionError(f"pieces cover {stop} of {len(clean)} characters of {clean!r}")
        return ids, offsets if origin is None else list(_original(offsets, origin))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, as `encode` does."""
        return self._pieces.encode([self._normaliser.text(text) for text in texts], num_threads=1)

    def encode_words(self, words: list[str]) -> tuple[list[int], list[int]]:
        """Return the ids of all words in order and, per word, the index into them of the piece that stands for it.

        That piece is the word's first one that is not a bare mark: in Chinese or Japanese the first piece of most words is the mark alone,
        which says nothing of the word. (The XLM-R code of XTREME takes the first piece, whatever it is.) A word without pieces becomes one
        ``unk``.
        """
        ids: list[int] = []
        first: list[int] = []
        new = [word for word in dict.fromkeys(words) if word not in self._words]
        if new:  # a call costs as much as a hundred words that are known
            self._words.update(zip(new, self.encode_batch(new), strict=True))
        for word in words:
            pieces = self._words[word] or [self.unk]
            first.append(len(ids) + (pieces[0] == self._bare and len(pieces) > 1))
            ids += pieces
        return ids, first


def _original(offsets: list[tuple[int, int]], origin: list[int]) -> Iterator[tuple[int, int]]:
    """Turn ranges of the normalised text into ranges of the original one."""
    last = 0
    for start, stop in offsets:
        begin = origin[start]
        last = max(last, begin) if start == stop else origin[stop - 1] + 1
        yield begin, last

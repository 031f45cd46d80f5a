"""Text to piece ids and back to character ranges: a SentencePiece model, trained here (BPE) or taken from the bundled encoder (unigram).

On disk, byte for byte the same for the same input: ``sentencepiece.model`` and ``tokenizer.json`` (kind, ids, normalisation, hash of the
model).

A text is normalised first, by SentencePiece as the model file says (`normaliser`): a trained model knows one kind of space, and every white
space becomes it; the bundled one composes and flattens as XLM-R does. Ranges are those of the original text.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import sentencepiece

from moebench.data.bundled import Bundle
from moebench.data.normaliser import MARK, SURROGATES, field, nmt_nfkc, original_ranges
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_json, write_json

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
    clean = filter(None, (" ".join(text.translate(SURROGATES | table).split()) for text in texts))
    options = {"character_coverage": 1.0, "bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3, "control_symbols": ["<mask>"]}
    model = byte_pairs(clean, vocabulary, options, f"tokens.vocabulary {vocabulary}")
    return _write(folder, model, "trained", {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4}, table)


def byte_pairs(texts: Iterable[str], vocabulary: int, options: dict[str, Any], asked: str) -> bytes:
    """Train SentencePiece's byte-pair encoding without normalisation, and return its model: the same bytes in every process.

    Args:
        texts: what is read, each without a line break.
        vocabulary: the most pieces.
        options: further ones of the trainer.
        asked: what an error says was asked for.

    Raises:
        MoebenchError: it cannot be trained so; what ``texts`` raises is raised as it is.
    """
    failures: list[BaseException] = []

    def read() -> Iterator[str]:
        try:
            yield from texts
        except (Exception, KeyboardInterrupt) as error:  # the trainer would turn it into a RuntimeError of its own
            failures.append(error)
            raise

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=read(),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            max_sentence_length=1 << 30,
            num_threads=1,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise MoebenchError(f"the tokenizer cannot be trained with {asked}: {error}") from error
    return model.getvalue()


def from_bundle(bundle: Bundle, texts: Iterable[str], folder: Path) -> Tokenizer:
    """Write the pieces of the bundled vocabulary that the texts use as a tokenizer to ``folder`` and return it.

    Pieces that no best segmentation uses change none, so the texts are cut as by the whole vocabulary, of which a benchmark uses a fifth;
    embedding, checkpoints and the scores of masked-language modelling shrink with it. ``rows`` of the result says which row of the
    bundled word embedding each piece has.
    """
    pieces, rules = bundle.pieces(), nmt_nfkc(bundle.normalisation())
    special = {"bos": bundle.bos, "pad": bundle.pad, "eos": bundle.eos, "unk": bundle.unk, "mask": len(pieces) - 1}
    whole = sentencepiece.SentencePieceProcessor(model_proto=_model_proto(pieces, special, rules))
    used = set(special.values())
    for text in texts:
        used.update(whole.encode(text.translate(SURROGATES), num_threads=1))
    rows = sorted(used)
    ids = {name: rows.index(row) for name, row in special.items()}
    return _write(folder, _model_proto([pieces[row] for row in rows], ids, rules), "bundled", ids, {}, rows)


def _model_proto(pieces: list[tuple[str, float]], ids: dict[str, int], rules: bytes) -> bytes:
    """Serialise SentencePiece's ``ModelProto`` (sentencepiece_model.proto): 1 pieces, 2 trainer, 3 normaliser."""
    types = {number: 2 if name == "unk" else 3 for name, number in ids.items()}  # 1 normal, 2 unknown, 3 control
    body = [
        field(1, field(1, text.encode("utf-8")) + field(2, score) + field(3, types.get(i, 1))) for i, (text, score) in enumerate(pieces)
    ]
    unigram = field(3, 1)
    body.append(field(2, unigram + b"".join(field(key, ids[name]) for key, name in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")))))
    body.append(field(3, rules + field(3, 1) + field(4, 1) + field(5, 1)))  # dummy prefix, no extra spaces, escaped spaces
    return b"".join(body)


def _write(folder: Path, model: bytes, kind: str, ids: dict[str, int], table: dict[int, str], rows: list[int] | None = None) -> Tokenizer:
    with atomic_write(folder / MODEL, binary=True) as handle:
        handle.write(model)
    normalisation = {chr(code): text for code, text in table.items()}
    digest = hashlib.sha256(model).hexdigest()
    write_json(folder / DESCRIPTION, {"kind": kind, "ids": ids, "normalisation": normalisation, "sha256": digest, "rows": rows})
    return Tokenizer.load(folder)


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
        self._table = SURROGATES | {ord(character): text for character, text in description["normalisation"].items()}
        self._normaliser = sentencepiece.SentencePieceNormalizer(model_proto=model)
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
        - Characters that are composed to one are in one range, all of them. A character that normalises to several can be split over
          pieces, which then share its range.
        - What the normalisation drops or takes for a space, and is no white space itself, is in the range before it, where no white space
          lies between. Every other character that is not white space is in a range. Starts and ends never decrease.
        """
        plain = text.translate(self._table)
        clean, starts = self._normaliser.normalize(plain, with_offsets=True)
        ids = self._pieces.encode(plain, num_threads=1)
        if self.unk in ids:  # an unknown piece is as long as its surface
            surfaces = self._pieces.encode(plain, out_type=str, num_threads=1)
            lengths = [len(surface) for surface in surfaces]
            marked = [surface.startswith(MARK) for surface in surfaces]
        else:
            lengths = [self._length[number] for number in ids]
            marked = [self._marked[number] for number in ids]
        stops = list(accumulate(lengths))
        if stops[-1:] != [len(clean)] and clean:
            raise AssertionError(f"pieces cover {stops[-1:]} of {len(clean)} characters of {clean!r}")
        return ids, original_ranges(
            text, starts, [(stop - length + mark, stop) for stop, length, mark in zip(stops, lengths, marked, strict=True)]
        )

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, as `encode` does."""
        return self._pieces.encode([text.translate(self._table) for text in texts], num_threads=1)

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

"""Text to ids and back for language models, without loss: ``decode(encode(text)) == text``.

Trained pieces are SentencePiece's byte-pair encoding: nothing is normalised, spaces are neither trimmed nor added, and a character without
a piece is written as its UTF-8 bytes, so nothing is unknown. A checkpoint's pieces are read from its ``tokenizer.json`` or
``tokenizer.model``; what its own normaliser changes is lost there.

On disk, byte for byte the same for the same input: the model's file as it is, and ``pieces.json`` (kind, ids, hash of the file).

A text never yields a special piece: ``<s>`` in a text is three characters. A lone surrogate, which is no text, counts as U+FFFD.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import sentencepiece
import tokenizers

from moebench.data.normaliser import MARK, SURROGATES
from moebench.data.tokenizer import byte_pairs
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_object, write_json

Kind = Literal["trained", "sentencepiece", "tokenizers"]
DESCRIPTION = "pieces.json"
FILES: dict[Kind, str] = {"trained": "trained.model", "tokenizers": "tokenizer.json", "sentencepiece": "tokenizer.model"}
"""Kind → the file that holds the model; the last two have the names that checkpoints give them."""
SPECIAL = {"bos": 0, "eos": 1, "pad": 2}
"""Ids of the special pieces of a trained tokenizer; ``unk``, which no text yields, is 3, the line break 4; those of the bytes follow."""
NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>"),
    "pad": ("<pad>", "<|finetune_right_pad_id|>", "<unk>"),
}
"""How published decoders call their special pieces. Llama and Llama 2 have no piece for padding, and none of their texts yields ``unk``."""


def train(texts: Iterable[str], vocabulary: int, folder: Path) -> Pieces:
    """Train a tokenizer, write it to ``folder`` and return it.

    It has at most ``vocabulary`` pieces, the special ones and those of the 256 bytes among them; fewer where the text supports no more. The
    same texts give the same bytes in every process: one thread, no sampling. All texts are held in memory.

    Raises:
        MoebenchError: no text, or ``vocabulary`` has no room for the bytes and the characters of the text.
    """
    table = SURROGATES | {0: " ", ord(MARK): " "}
    lines = (line for text in texts for line in text.translate(table).split("\n") if line)
    options = {
        "character_coverage": 0.9999,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "user_defined_symbols": ["\n"],
        "bos_id": SPECIAL["bos"],
        "eos_id": SPECIAL["eos"],
        "pad_id": SPECIAL["pad"],
        "unk_id": 3,
    }
    return _write(folder, "trained", byte_pairs(lines, vocabulary, options, f"a vocabulary of {vocabulary}"), SPECIAL)


def from_checkpoint(checkpoint: Path, folder: Path) -> Pieces:
    """Write the pieces of the checkpoint in the folder ``checkpoint`` to ``folder`` and return them.

    Its ``tokenizer.json`` is read where it has one, otherwise its ``tokenizer.model``.

    Raises:
        MoebenchError: neither is there, it cannot be read, or its special pieces are not known (`NAMES`) or not three different ones.
    """
    kinds: tuple[Kind, ...] = ("tokenizers", "sentencepiece")
    for kind in kinds:
        path = checkpoint / FILES[kind]
        if path.is_file():
            data = path.read_bytes()
            return _write(folder, kind, data, _special(path, kind, data))
    raise MoebenchError(f"{checkpoint}: no {FILES['tokenizers']} and no {FILES['sentencepiece']} there; put one of them beside the weights")


def load(folder: Path) -> Pieces:
    """Load what `train` or `from_checkpoint` wrote.

    Raises:
        MoebenchError: a file is missing or damaged, or the two do not belong together.
    """
    description = read_object(folder / DESCRIPTION, kind=str, ids=dict, sha256=str)
    if description["kind"] not in FILES:
        raise MoebenchError(
            f"{folder / DESCRIPTION}: kind {description['kind']!r} should be one of {', '.join(FILES)}; prepare the data again"
        )
    path = folder / FILES[description["kind"]]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
    if (found := hashlib.sha256(data).hexdigest()) != description["sha256"]:
        raise MoebenchError(f"{path}: SHA-256 is {found}, {DESCRIPTION} says {description['sha256']}; prepare the data again")
    return Pieces(description["kind"], _read(path, description["kind"], data), description["ids"], found)


class Pieces:
    """A tokenizer of a language model.

    Attributes:
        kind: ``trained``, or the format of a checkpoint's file: ``sentencepiece`` or ``tokenizers``.
        size: number of pieces; ids are 0 … size - 1.
        bos, eos, pad: ids of the special pieces. `encode` never yields them and `decode` leaves them out.
        sha256: hash of the model's file.
    """

    def __init__(self, kind: Kind, model: _SentencePiece | _Tokenizers, ids: dict[str, int], sha256: str) -> None:
        self.kind, self.sha256 = kind, sha256
        self.bos, self.eos, self.pad = ids["bos"], ids["eos"], ids["pad"]
        self.size = model.size
        self._model = model

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without special pieces.

        A trained tokenizer's pieces hold white space at most at their beginning, so before a space a text can be cut:
        ``encode(a + " b") == encode(a) + encode(" b")``. Elsewhere, and with a checkpoint's pieces, that need not hold: a continuation's
        ids are those of ``encode(context + continuation)`` after the ``len(encode(context))`` first.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, as `encode` does."""
        return self._model.encode_batch([text.translate(SURROGATES) for text in texts])

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``; bytes that are no UTF-8, which no text yields, become U+FFFD."""
        special = {self.bos, self.eos, self.pad}
        return self._model.decode([number for number in ids if number not in special])


class _SentencePiece:
    """A SentencePiece model; ``lossless`` where it was trained here, so that its mark for a space can be told from a space."""

    def __init__(self, data: bytes, lossless: bool) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.size: int = self._pieces.get_piece_size()
        self._mark = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in MARK.encode()] if lossless else None

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self._pieces.encode(texts, num_threads=1)
        for number, text in enumerate(texts):
            if self._mark and MARK in text:  # SentencePiece would take it for a space
                first, *others = self._pieces.encode(text.split(MARK), num_threads=1)
                encoded[number] = first + [piece for ids in others for piece in (*self._mark, *ids)]
        return encoded

    def decode(self, ids: list[int]) -> str:
        return self._pieces.decode(ids, num_threads=1)


class _Tokenizers:
    """A file of the ``tokenizers`` library."""

    def __init__(self, data: bytes) -> None:
        self._model = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        self._model.encode_special_tokens = True  # as text
        self._model.no_truncation()
        self._model.no_padding()
        self.size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._model.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids, skip_special_tokens=False)


def _read(path: Path, kind: Kind, data: bytes) -> _SentencePiece | _Tokenizers:
    try:
        return _Tokenizers(data) if kind == "tokenizers" else _SentencePiece(data, lossless=kind == "trained")
    except Exception as error:  # the libraries raise nothing more specific
        raise MoebenchError(f"{path}: cannot be read as a tokenizer: {error}") from error


def _special(path: Path, kind: Kind, data: bytes) -> dict[str, int]:
    """Ids of the special pieces by their part."""
    _read(path, kind, data)  # says what is wrong with a damaged file
    if kind == "tokenizers":
        known = {token["content"]: token["id"] for token in json.loads(data)["added_tokens"]}
    else:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
        known = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size()) if pieces.is_control(i) or pieces.is_unknown(i)}
    ids = {part: next((known[name] for name in names if name in known), -1) for part, names in NAMES.items()}
    if lacking := [part for part, number in ids.items() if number < 0]:
        wanted = "; ".join(f"{part}: {' or '.join(NAMES[part])}" for part in lacking)
        raise MoebenchError(f"{path}: its special pieces, {', '.join(known) or 'none'}, lack {wanted}")
    return ids


def _write(folder: Path, kind: Kind, data: bytes, ids: dict[str, int]) -> Pieces:
    with atomic_write(folder / FILES[kind], binary=True) as handle:
        handle.write(data)
    write_json(folder / DESCRIPTION, {"kind": kind, "ids": ids, "sha256": hashlib.sha256(data).hexdigest()})
    return load(folder)

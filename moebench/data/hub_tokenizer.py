"""The vocabulary of a checkpoint in Hugging Face layout, its ``tokenizer.json``, with the interface of `Tokenizer`.

Unigram (XLM-R, CamemBERT) and WordPiece (BERT, mBERT) models are read, by the ``tokenizers`` library. On disk: the checkpoint's file as
``hub.json``, and ``tokenizer.json`` (kind, ids, hash of the file).

Where the result differs from what the library gives by itself:

- Text never yields a special piece: a text ``<s>`` is three characters. The library finds special tokens in text, and its Unigram model
  has them among its pieces, so there they are renamed to something with a space, which no text has after splitting.
- ``truncation`` and ``padding``, which some published files switch on, are off.
- Where a file begins with the compiled rules of SentencePiece, as XLM-R's does, SentencePiece applies them. The library looks them up
  only for graphemes of less than six bytes, and for single code points in longer ones, so that it composes neither jamo nor Indic vowels,
  and of e, U+0302 and U+0301 drops the last (``normalizers/precompiled.rs``). U+0085, a letter to these rules and white space to the
  library, which would split words there, is another character while it works. Rules that follow other normalisers are refused.
- Ranges leave out the space in front of a piece, and a bare mark has an empty range; the library gives it the character that follows.
  Dropped first characters are no piece's; the library gives them to the first piece in place of its own first character. Of what is
  composed to one character all is in its range; the library gives the first code point.
- A lone surrogate, which the library refuses, counts as U+FFFD.

Other added tokens than the special ones are found in text as the file says. Where a vocabulary lowers the case or strips accents, ranges
are those of the original text all the same.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from moebench.data.checkpoint_files import TOKENIZER
from moebench.data.normaliser import MARK, SURROGATES, field, original_ranges
from moebench.data.tokenizer import DESCRIPTION, Tokenizer
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_json, write_json

MODEL = "hub.json"
NEXT_LINE = "\x85"
NO_SPACE = "\ufdd0"
"""Stands for `NEXT_LINE` in a normalised text and in the pieces: no text has this code point, and it is no white space."""
NAMES = (
    {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"},
    {"bos": "[CLS]", "pad": "[PAD]", "eos": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"},
)
"""The special pieces of RoBERTa's and of BERT's family; files do not say which token has which part."""


def load(folder: Path) -> Tokenizer:
    """Load a prepared tokenizer of whatever kind.

    Raises:
        MoebenchError: a file is missing or damaged, or the files do not belong together.
    """
    description = read_json(folder / DESCRIPTION)
    hub = isinstance(description, dict) and description.get("kind") == "hub"
    return HubTokenizer.load(folder) if hub else Tokenizer.load(folder)


def from_checkpoint(checkpoint: Path, folder: Path) -> HubTokenizer:
    """Write the vocabulary of the checkpoint in the folder ``checkpoint`` to ``folder`` and return it.

    Raises:
        MoebenchError: the checkpoint has no ``tokenizer.json``, or one that cannot be used; the message says why.
    """
    source = checkpoint / TOKENIZER
    if not source.is_file():
        raise MoebenchError(
            f"{source}: not there; put it beside the weights. Where only vocab.txt or a SentencePiece model is published, the transformers"
            " library writes it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    data = source.read_bytes()
    ids = _special(source, data)
    description = {"kind": "hub", "ids": ids, "sha256": hashlib.sha256(data).hexdigest()}
    result = _read(source, data, description)
    for names in NAMES:
        if found := sorted(set(result.encode(" ".join(names.values()))[0]) & (set(ids.values()) - {result.unk})):
            raise MoebenchError(f"{source}: the text of a special token, written in a document, would become its id ({found})")
    with atomic_write(folder / MODEL, binary=True) as handle:
        handle.write(data)
    write_json(folder / DESCRIPTION, description)
    return result


def _read(path: Path, data: bytes, description: dict) -> HubTokenizer:
    try:
        return HubTokenizer(data, description)
    except Exception as error:  # the library raises nothing more specific
        raise MoebenchError(f"{path}: the tokenizers library {tokenizers.__version__} cannot read it: {error}") from error


def _special(path: Path, data: bytes) -> dict[str, int]:
    """Ids of the special pieces by their part."""
    try:
        content = json.loads(data)
        kind = content["model"]["type"]
        special = {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]}
        normalisers = [one["type"] for one in _flat(content.get("normalizer"))]
    except (ValueError, LookupError, TypeError) as error:
        raise MoebenchError(f"{path}: not a tokenizer of the tokenizers library ({type(error).__name__}: {error})") from error
    if kind not in ("Unigram", "WordPiece"):
        raise MoebenchError(f"{path}: key 'model.type' has the value {kind!r}; only 'Unigram' and 'WordPiece' can be used")
    if "Precompiled" in normalisers[1:]:
        raise MoebenchError(
            f"{path}: key 'normalizer' has the steps {', '.join(normalisers)}; SentencePiece's rules (Precompiled) can only be the first"
        )
    names = max(NAMES, key=lambda names: len(special.keys() & set(names.values())))
    if lacking := [name for name in names.values() if name not in special]:
        raise MoebenchError(f"{path}: its special tokens, {', '.join(special) or 'none'}, lack {', '.join(lacking)}")
    return {part: special[name] for part, name in names.items()}


class HubTokenizer(Tokenizer):
    """A vocabulary in the format of the ``tokenizers`` library; attributes and methods as in `Tokenizer`.

    Attributes:
        kind: ``hub``.
    """

    def __init__(self, model: bytes, description: dict) -> None:
        self.kind = "hub"
        self.rows = None  # of the bundled encoder alone
        self.sha256 = description["sha256"]
        self.bos, self.eos, self.pad, self.unk, self.mask = (description["ids"][name] for name in ("bos", "eos", "pad", "unk", "mask"))
        content = json.loads(model)
        unigram = content["model"]["type"] == "Unigram"
        self._rules = _rules(content)
        self._hub = tokenizers.Tokenizer.from_str(json.dumps(_hidden(content) if unigram else content))
        self._hub.encode_special_tokens = True  # as text
        self._hub.no_truncation()
        self._hub.no_padding()
        vocabulary = self._hub.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        self._bare = vocabulary.get(MARK, -1) if unigram else -1
        self._mark = MARK if unigram else ""
        self._words = {}

    @classmethod
    def load(cls, folder: Path) -> HubTokenizer:
        """Load what `from_checkpoint` wrote.

        Raises:
            MoebenchError: a file is missing or damaged, or the two do not belong together.
        """
        description, path = read_json(folder / DESCRIPTION), folder / MODEL
        try:
            model = path.read_bytes()
        except OSError as error:
            raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
        found = hashlib.sha256(model).hexdigest()
        expected = description.get("sha256") if isinstance(description, dict) else None
        if found != expected:
            raise MoebenchError(f"{path}: SHA-256 is {found}, {DESCRIPTION} says {expected}; prepare the data again")
        return _read(path, model, description)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of ``text`` and per piece its range of original characters, as `Tokenizer.encode` says.

        Where a file's normaliser is not SentencePiece's, a character that it takes for a space can be in the range of the piece that
        follows.
        """
        clean, starts = self._normalised(text)
        skip = self._dropped(clean)
        encoding = self._hub.encode(clean[skip:], add_special_tokens=False)
        pieces = [
            self._range(clean, number, start + skip, stop + skip)
            for number, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        return encoding.ids, original_ranges(text, starts, pieces)

    def _normalised(self, text: str) -> tuple[str, Sequence[int]]:
        """The text by SentencePiece's rules, where the file begins with them, and where each character of it, and its end, comes from."""
        plain = text.translate(SURROGATES)
        if self._rules is None:
            return plain, range(len(plain) + 1)
        clean, starts = self._rules.normalize(plain, with_offsets=True)
        return clean.replace(NEXT_LINE, NO_SPACE), starts

    def _dropped(self, text: str) -> int:
        """Number of first characters that normalisation drops: the library would give the first piece their range."""
        normaliser = self._hub.normalizer
        return next((i for i, first in enumerate(text) if normaliser is None or normaliser.normalize_str(first)), len(text))

    def _range(self, text: str, number: int, start: int, stop: int) -> tuple[int, int]:
        """The library's range without outer white space; for a bare mark, none of the character that follows."""
        while start < len(text) and (text[start].isspace() or text[start] == self._mark):
            start += 1
        while stop > start and (text[stop - 1].isspace() or text[stop - 1] == self._mark):
            stop -= 1
        return start, start if number == self._bare else max(start, stop)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, as `encode` does."""
        clean = [self._normalised(text)[0] for text in texts]
        return [encoding.ids for encoding in self._hub.encode_batch_fast(clean, add_special_tokens=False)]


def _rules(content: dict[str, Any]) -> sentencepiece.SentencePieceNormalizer | None:
    """Take the compiled rules of SentencePiece out of the file, if it begins with them; what it says of spaces stays in it."""
    first = next(_flat(content.get("normalizer")), {})
    if first.get("type") != "Precompiled":
        return None
    rules = field(2, base64.b64decode(first["precompiled_charsmap"], validate=True))
    first.clear()
    first.update(type="Sequence", normalizers=[])
    return sentencepiece.SentencePieceNormalizer(
        normalizer_spec=rules, add_dummy_prefix=False, remove_extra_whitespaces=False, escape_whitespaces=False
    )


def _flat(normaliser: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The normalisers of a file in their order."""
    if normaliser is not None and "normalizers" in normaliser:
        for one in normaliser["normalizers"]:
            yield from _flat(one)
    elif normaliser is not None:
        yield normaliser


def _hidden(content: dict[str, Any]) -> dict[str, Any]:
    """Rename the special pieces of a Unigram model so that no text matches them, and U+0085 in all; ids stay."""
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    for token in content["added_tokens"]:
        if token["special"]:
            token["content"] += " "
    content["model"]["vocab"] = [
        [piece.replace(NEXT_LINE, NO_SPACE) + " " * (piece in special), score] for piece, score in content["model"]["vocab"]
    ]
    return content

"""The pre-training rows: documents and translated pairs as fixed-length rows of token ids."""

from __future__ import annotations

import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from moebench.data.tokenizer import Tokenizer
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_array, read_object, write_json

Some = TypeVar("Some")
BATCH = 1000
"""Documents tokenised at a time."""


class Texts(Protocol):
    """What packing needs of a data source; ``split`` is ``train`` or ``validation``."""

    def documents(self, split: str) -> Iterable[tuple[str, str]]:
        """Yield (language, text)."""

    def parallel(self, split: str) -> Iterable[tuple[str, str, str, str]]:
        """Yield (language, text, other language, its translation)."""


class _Rows:
    """Rows of one file. The ids go to disk at once, so that memory holds two words a row and not the corpus."""

    def __init__(self, length: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._length = length
        self._ids = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed when written)
        self.languages: list[str] = []
        self.kinds: list[str] = []

    def add(self, ids: list[int], language: str, kind: str, pad: int) -> None:
        self._ids.write(array("i", ids + [pad] * (self._length - len(ids))).tobytes())
        self.languages.append(language)
        self.kinds.append(kind)

    def write(self, folder: Path, name: str) -> None:
        header = {"descr": np.dtype(np.int32).str, "fortran_order": False, "shape": (len(self.kinds), self._length)}
        with atomic_write(folder / f"{name}.npy", binary=True) as handle, self._ids:
            np.lib.format.write_array_header_1_0(handle, header)
            self._ids.seek(0)
            shutil.copyfileobj(self._ids, handle)
        write_json(folder / f"{name}.json", {"language": self.languages, "kind": self.kinds})


def pack(
    source: Texts,
    tokenizer: Tokenizer,
    sequence_length: int,
    validation_rows: int,
    folder: Path,
    step: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, int]]:
    """Write ``train.npy`` and ``validation.npy``, (N, S) int32 rows of ids, and beside each a JSON file of its rows' languages and kinds.

    - A ``text`` row is ``<s>`` and the next S - 1 ids of its language's stream ``document </s> document </s> …``, as XLM and RoBERTa pack
      them: a document may go on in the language's next row, and no row mixes languages. Only the last row of a language is padded.
    - A ``translation`` row is ``<s> a </s> b </s> a </s> b </s> …``, as many pairs of its two languages as fit, padded; of a pair too long
      for a row the longer text loses its end first. Its language is ``a-b``.
    - ``validation.npy`` has the first ``validation_rows`` text rows of each language (fewer where the held-out documents end) and no
      translations.

    Rows come in the order in which the source fills them: text, each language's last row; the same of translations.

    Args:
        source: the texts.
        tokenizer: gives the ids.
        sequence_length: S.
        validation_rows: held-out rows per language.
        folder: where the files go.
        step: called after each batch of documents, to show progress.

    Returns:
        File stem → counts: rows per kind, ``rows``, and ``truncated`` translations.

    Raises:
        MoebenchError: the source has no document to train on or to validate with, or S leaves no room for text.
    """
    if sequence_length < 5:
        raise MoebenchError(f"corpus.sequence_length is {sequence_length}; a translation row needs 5: three special pieces and two texts")
    counts = {}
    for split, limit in (("train", None), ("validation", validation_rows)):
        rows = _Rows(sequence_length, folder)
        _add_texts(rows, batches(source.documents(split), step), tokenizer, sequence_length, limit)
        if not rows.languages:
            raise MoebenchError(f"{folder}: the source has no document of split {split!r}, so there are no pre-training rows")
        truncated = _add_translations(rows, batches(source.parallel(split), step), tokenizer, sequence_length) if limit is None else 0
        rows.write(folder, split)
        counts[split] = {"rows": len(rows.kinds), "truncated": truncated} | {
            kind: rows.kinds.count(kind) for kind in ("text", "translation")
        }
    return counts


def batches(items: Iterable[Some], step: Callable[[], object] = lambda: None) -> Iterator[list[Some]]:
    """Yield the items `BATCH` at a time; ``step`` is called after each."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
        step()


def _add_texts(rows: _Rows, batches: Iterator[list[tuple[str, ...]]], tokenizer: Tokenizer, length: int, limit: int | None) -> None:
    """Pack documents, at most ``limit`` rows of each language."""
    streams: dict[str, list[int]] = {}
    done: Counter[str] = Counter()
    for batch in batches:
        for (language, _), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
            if done[language] == limit:
                continue
            stream = streams.setdefault(language, [])
            stream += ids
            stream.append(tokenizer.eos)
            used = 0
            while len(stream) - used >= length - 1 and done[language] != limit:
                rows.add([tokenizer.bos, *stream[used : used + length - 1]], language, "text", tokenizer.pad)
                used += length - 1
                done[language] += 1
            del stream[:used]
    for language, stream in streams.items():
        if stream and done[language] != limit:
            rows.add([tokenizer.bos, *stream], language, "text", tokenizer.pad)


def _add_translations(rows: _Rows, batches: Iterator[list[tuple[str, ...]]], tokenizer: Tokenizer, length: int) -> int:
    """Pack translated pairs; returns how many were truncated."""
    room = length - 3
    truncated = 0
    streams: dict[str, list[int]] = {}
    for batch in batches:
        ids = tokenizer.encode_batch([text for _, a, _, b in batch for text in (a, b)])
        for index, (language_a, _, language_b, _) in enumerate(batch):
            a, b = ids[2 * index], ids[2 * index + 1]
            truncated += len(a) + len(b) > room
            kept = min(len(a), max((room + 1) // 2, room - len(b)))
            pair = [*a[:kept], tokenizer.eos, *b[: room - kept], tokenizer.eos]
            languages = f"{language_a}-{language_b}"
            stream = streams.setdefault(languages, [])
            if len(stream) + len(pair) >= length:
                rows.add([tokenizer.bos, *stream], languages, "translation", tokenizer.pad)
                stream.clear()
            stream += pair
    for languages, stream in streams.items():
        rows.add([tokenizer.bos, *stream], languages, "translation", tokenizer.pad)
    return truncated


class PackedRows:
    """The packed rows of a prepared corpus, as `pack` writes them, mapped into memory.

    Raises:
        MoebenchError: the files are missing or damaged.
    """

    def __init__(self, folder: Path, split: str):
        self.rows_NS = read_array(folder / f"{split}.npy", mapped=True)
        if self.rows_NS.ndim != 2 or self.rows_NS.dtype.kind not in "iu":
            raise MoebenchError(
                f"{folder / split}.npy: {self.rows_NS.dtype} of shape {self.rows_NS.shape} are no rows; prepare the data again"
            )
        labels = read_object(folder / f"{split}.json", language=list, kind=list)
        self.language = np.array(labels["language"])
        self.kind = np.array(labels["kind"])
        if not len(self.rows_NS) == len(self.language) == len(self.kind):
            raise MoebenchError(f"{folder / split}.json: {len(self.language)} labels for {len(self.rows_NS)} rows; prepare the data again")

    def piece_counts(self, tokenizer: Tokenizer) -> np.ndarray:
        """Return how often each vocabulary piece occurs in the rows, (V,); padding does not count."""
        counts = np.zeros(tokenizer.size, dtype=np.int64)
        for begin in range(0, len(self.rows_NS), 10_000):
            counts += np.bincount(np.asarray(self.rows_NS[begin : begin + 10_000]).ravel(), minlength=tokenizer.size)
        counts[tokenizer.pad] = 0
        return counts

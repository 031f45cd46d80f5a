"""Documents of ids as rows of equal length for language models, written in a stream and mapped into memory.

A row is the next S ids of the stream ``bos document eos bos document eos …``. A document may go on in the next row, where it begins anew at
position 0, without ``bos``: no row needs another. What is left over at the end, less than a row, is dropped.

B: rows of a batch, S: ids of a row, N: rows of a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_array

IGNORED = -100
"""The target that counts for no loss, as PyTorch's cross entropy has it."""
HEADER = 128
"""Bytes of the header of a file; it is written last, when the number of rows is known."""


def write_rows(documents: Iterable[list[int]], length: int, bos: int, eos: int, path: Path, *, size: int = 1 << 16) -> dict[str, int]:
    """Write documents as rows to ``path``, a ``.npy`` file, which appears there when it is complete.

    Memory does not grow with the number of documents.

    Args:
        documents: the ids of each document, without special ids.
        length: S, 2 at least.
        bos: the id that begins a document.
        eos: the id that ends it.
        path: the file.
        size: number of ids there are; where they are at most 65,536 the file holds ``uint16``, otherwise ``uint32``.

    Returns:
        Counts: ``rows``, ``documents``, ``tokens`` of all documents with their ``bos`` and ``eos``, and how many of them are ``dropped``,
        less than a row.

    Raises:
        MoebenchError: a row that is too short, an id that no document may hold, or documents that fill no row.
    """
    if length < 2:
        raise MoebenchError(f"{path}: rows of {length} tokens have nothing to predict; the sequence length should be 2 at least")
    dtype = id_type(size)
    count = tokens = 0
    with atomic_write(path, binary=True) as handle:
        handle.write(b"\0" * HEADER)
        for document in documents:
            handle.write(stream_of(document, bos, eos, size).astype(dtype).tobytes())
            count += 1
            tokens += len(document) + 2
        rows, dropped = divmod(tokens, length)
        if not rows:
            raise MoebenchError(
                f"{path}: {count} documents of {tokens} tokens in all do not fill a row of {length}; add text or shorten the rows"
            )
        handle.truncate(HEADER + rows * length * dtype.itemsize)
        handle.seek(0)
        handle.write(header(rows, length, dtype))
    return {"rows": rows, "documents": count, "tokens": tokens, "dropped": dropped}


def id_type(size: int) -> np.dtype:
    """Return the type in which files hold ``size`` different ids."""
    return np.dtype("<u2" if size <= 1 << 16 else "<u4")


def stream_of(document: list[int], bos: int, eos: int, size: int) -> np.ndarray:
    """Return the part of the stream that a document is, ``bos document eos``.

    Raises:
        MoebenchError: an id of the document is ``bos`` or ``eos``, which would change where documents begin, or none of the ``size`` ids.
    """
    ids = np.array([bos, *document, eos], dtype=np.int64)
    wrong = (ids[1:-1] < 0) | (ids[1:-1] >= size) | (ids[1:-1] == bos) | (ids[1:-1] == eos)
    if wrong.any():
        raise MoebenchError(
            f"a document holds the id {ids[1:-1][wrong][0]}; should be 0 to {size - 1}, and neither {bos} (bos) nor {eos} (eos)"
        )
    return ids


def header(rows: int, length: int, dtype: np.dtype) -> bytes:
    """Return the header of a ``.npy`` file of ``rows`` × ``length`` ids, `HEADER` bytes."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({rows}, {length}), }}".ljust(HEADER - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.encode("ascii")


class TextRows:
    """The rows of a file, mapped into memory.

    Attributes:
        ids_NS: (N, S), ``uint16`` or ``uint32``.

    Raises:
        MoebenchError: the file is missing or damaged, or holds no rows of ids.
    """

    def __init__(self, path: Path) -> None:
        self.ids_NS = read_array(path, mapped=True, remedy="prepare the data again")
        if self.ids_NS.ndim != 2 or self.ids_NS.dtype not in (np.uint16, np.uint32) or not self.ids_NS.size:
            raise MoebenchError(f"{path}: {self.ids_NS.dtype} of shape {self.ids_NS.shape} are no rows of ids; prepare the data again")

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids_NS)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> np.ndarray:
        """Return the ids of the chosen rows, (B, S) int64."""
        return np.asarray(self.ids_NS[rows]).astype(np.int64)


def positions(ids_BS: np.ndarray, bos: int) -> np.ndarray:
    """Return the place of each token in its document, (B, S) int64: 0 at the start of a row and at every ``bos``, rising from there."""
    places_S = np.arange(ids_BS.shape[1])
    starts_BS = np.where(ids_BS == bos, places_S, 0)
    return places_S - np.maximum.accumulate(starts_BS, axis=1)


def targets(ids_BS: np.ndarray, positions_BS: np.ndarray, pad: int) -> np.ndarray:
    """Return the token that follows each token in its document, (B, S) int64.

    `IGNORED` stands where another document or padding follows, and at the end of a row. A token that is the ``eos`` of its document has
    no target; it is one itself.
    """
    targets_BS = np.full(ids_BS.shape, IGNORED, dtype=np.int64)
    follows_BS = (positions_BS[:, 1:] > 0) & (ids_BS[:, 1:] != pad)
    targets_BS[:, :-1][follows_BS] = ids_BS[:, 1:][follows_BS]
    return targets_BS

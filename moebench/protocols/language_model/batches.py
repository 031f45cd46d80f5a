"""Batches of packed text as a function of the step: an epoch shows every row once, in an order that no list has to hold.

N rows, B batch, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from moebench.data.lm_tokenizer import Pieces
from moebench.data.packing import TextRows, positions, targets
from moebench.data.text_stream import StreamRows
from moebench.training.batches import Batch, weight

ROUNDS = 4
"""Of the Feistel network; three make a permutation that looks random, one more is usual."""


def permuted(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Where each place of 0 … N - 1 goes in a pseudo-random order, without the N numbers of a shuffled list.

    A Feistel network permutes the numbers below the next power of four; what falls outside N is sent through it again until it does not
    (cycle walking), so that it is a permutation of 0 … N - 1.

    Args:
        places: int64, each at least 0 and below N.
        size: N.
        seed: of the order.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.default_rng(seed).integers(0, 1 << 62, ROUNDS).astype(np.uint64)
    found = places.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        left, right = found[outside] >> np.uint64(half), found[outside] & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)  # wraps round: the golden ratio's bits scatter what is near
            mixed ^= mixed >> np.uint64(29)
            left, right = right, left ^ ((mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32) & mask)
        found[outside] = left << np.uint64(half) | right
        outside = found >= size
    return found.astype(np.int64)


class TextBatches:
    """The batches of pre-training: rows of all texts, mixed; epoch after epoch, each in its own order.

    Args:
        texts: packed rows of the texts, of one length.
        pieces: the tokenizer, for what begins a document and what is padding.
        batch: B, rows of a step.
        seed: of the order.
        part: which rows of the batch: ``part``, ``part + parts``, ...
        parts: how many parts there are.
    """

    def __init__(self, texts: Sequence[TextRows | StreamRows], pieces: Pieces, batch: int, seed: int, part: int = 0, parts: int = 1):
        self.texts = texts
        self.ends = np.cumsum([len(text) for text in self.texts])
        self.pieces, self.batch, self.seed, self.part, self.parts = pieces, batch, seed, part, parts

    def __call__(self, step: int) -> Batch:
        """Return ids, positions and targets of a part of the step's batch."""
        size = int(self.ends[-1])
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        rows_B = np.empty(self.batch, dtype=np.int64)
        for epoch in np.unique(places // size):
            mine = places // size == epoch
            rows_B[mine] = permuted(places[mine] % size, size, hash_of(self.seed, int(epoch)))
        ids_BS = self.rows(rows_B)
        whole = batch_of(ids_BS, self.pieces)
        mine_B = slice(self.part, None, self.parts)
        counts_B = (whole["targets"] != -100).sum(1).numpy()
        return {name: values[mine_B] for name, values in whole.items()} | {"weight": weight(counts_B, self.part, self.parts)}

    def rows(self, numbers_B: np.ndarray) -> np.ndarray:
        """(B, S) ids of rows that are counted over all texts."""
        text_B = np.searchsorted(self.ends, numbers_B, side="right")
        begins = np.concatenate([[0], self.ends[:-1]])
        found: dict[int, np.ndarray] = {}
        for text in np.unique(text_B):
            places = np.flatnonzero(text_B == text)
            found |= zip(places.tolist(), self.texts[text][numbers_B[places] - begins[text]], strict=True)
        return np.stack([found[place] for place in range(len(numbers_B))])


def open_rows(folder: Path, name: str) -> TextRows | StreamRows:
    """The packed rows of a text: one file, or shards where it was read as a stream."""
    if (folder / name).is_dir():
        return StreamRows(folder / name)
    return TextRows(folder / f"{name}.npy")


def hash_of(seed: int, epoch: int) -> int:
    """A seed for an epoch of a run."""
    return seed * 1_000_003 + epoch


def batch_of(ids_BS: np.ndarray, pieces: Pieces) -> Batch:
    """Ids, mask (rows are never padded), positions and targets of packed rows."""
    ids_BS = ids_BS.astype(np.int64)
    positions_BS = positions(ids_BS, pieces.bos)
    return {
        "ids": torch.from_numpy(ids_BS),
        "mask": torch.ones(ids_BS.shape, dtype=torch.bool),
        "positions": torch.from_numpy(positions_BS),
        "targets": torch.from_numpy(targets(ids_BS, positions_BS, pieces.pad)),
    }

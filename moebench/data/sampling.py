"""Draws that are the same on any machine and for any release of numpy."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

Some = TypeVar("Some")


class Draws:
    """Uniform draws under a seed and a name: the same for any release of numpy, whose raw PCG64 does not change as its methods may."""

    def __init__(self, seed: int, name: str) -> None:
        self._raw = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))

    def below(self, limit: ArrayLike, *shape: int) -> np.ndarray:
        """Integers from 0 to ``limit`` - 1 in the given shape, int64; ``limit`` is at most 2^31 and broadcast to it."""
        raw = self._raw.random_raw(shape) >> np.uint64(32)
        return (raw * np.asarray(limit, np.uint64) >> np.uint64(32)).astype(np.int64)

    def orders(self, rows: int, count: int) -> np.ndarray:
        """A permutation of ``count`` places in each row, (rows, count) int64."""
        return np.argsort(self._raw.random_raw((rows, count)), axis=1, kind="stable")


def permutation(seed: int, name: str, count: int) -> np.ndarray:
    """A permutation of ``count`` places."""
    return Draws(seed, name).orders(1, count)[0]


def sampled(rows: Iterable[Some], limit: int | None, name: str) -> Iterator[Some]:
    """Give at most ``limit`` of the rows, in their order, drawn from all of them; none: all.

    Rows are gone through twice. Files of one length have the same places drawn under the same ``name``, so that translations stay
    together. Drawn, since neighbours share a context, a premise or an article: the first rows would say little about the others.
    """
    if limit is None:
        return iter(rows)
    count = sum(1 for _ in rows)
    chosen = np.zeros(count, bool)
    chosen[permutation(0, name, count)[:limit]] = True
    return compress(rows, chosen)

"""Draws that are the same on any machine and for any release of numpy."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import TypeVar

import numpy as np

Some = TypeVar("Some")


def permutation(seed: int, name: str, count: int) -> np.ndarray:
    """A permutation of ``count`` places.

    Not `numpy.random.Generator.permutation`, which may change between releases; PCG64's raw output may not.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())])).random_raw(count)
    return np.argsort(raw, kind="stable")


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

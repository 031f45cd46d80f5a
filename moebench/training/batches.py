"""Batches as a function of the step, so that a resumed run sees exactly what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]


class StepBatches:
    """Yields ``make(step)`` for the steps from ``start()`` to ``steps``; ``start`` is asked when iteration begins."""

    def __init__(self, make: Callable[[int], Batch], start: Callable[[], int], steps: int):
        self.make, self.start, self.steps = make, start, steps

    def __iter__(self) -> Iterator[Batch]:
        """Iterate from the step that the trainer stands at."""
        return (self.make(step) for step in range(self.start(), self.steps))


def loader(dataset: Any) -> DataLoader[Batch]:
    """A loader of ready-made batches, in this process."""
    return DataLoader(dataset, batch_size=None, num_workers=0)


def order(lengths: list[int], batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of an epoch as index arrays: shuffled, then grouped by similar length within 16 batches.

    The last, smaller batch is kept; every example occurs once an epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(lengths))
    size = np.asarray(lengths)
    batches = []
    for begin in range(0, len(shuffled), 16 * batch):
        part = shuffled[begin : begin + 16 * batch]
        part = part[np.argsort(size[part], kind="stable")]
        batches += [part[start : start + batch] for start in range(0, len(part), batch)]
    return [batches[place] for place in generator.permutation(len(batches))]

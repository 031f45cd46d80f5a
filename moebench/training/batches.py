"""Batches as a function of the step, so that a resumed run sees exactly what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]


class StepBatches:
    """Yields every ``make(step)`` of each step from ``start()`` to ``steps``; ``start`` is asked when iteration begins."""

    def __init__(self, makes: Sequence[Callable[[int], Batch]], start: Callable[[], int], steps: int):
        self.makes, self.start, self.steps = makes, start, steps

    def __iter__(self) -> Iterator[Batch]:
        """Iterate from the step that the trainer stands at."""
        return (make(step) for step in range(self.start(), self.steps) for make in self.makes)


def weight(targets_B: np.ndarray, part: int, parts: int) -> Tensor:
    """What the mean over a part's targets has to be multiplied by: P · n_p / Σ_q n_q, (1,); exactly 1 where there is one part.

    The loss of a step is the mean over all its targets, Σ_p Σ_i l_pi / Σ_q n_q, whatever their places. Ranks and accumulation average over
    parts, 1/P Σ_p, so the mean m_p over a part's targets enters as 1/P Σ_p (P n_p / Σ_q n_q) m_p. fairseq2 sums losses and counts over the
    ranks; here every rank draws the whole batch and knows its counts, so nothing is sent. Without any target it is 0.

    Args:
        targets_B: (B,) number of targets in each row of the whole batch.
        part: p; it has the rows p, p + P, ...
        parts: P.
    """
    return torch.tensor([parts * int(targets_B[part::parts].sum()) / max(int(targets_B.sum()), 1)], dtype=torch.float32)


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

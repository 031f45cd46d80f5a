"""Deep ensembles (Lakshminarayanan et al., arXiv 1612.01474): which runs are members, what they predict together and what it costs.

M members, N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moebench.metrics.calibration import check_probabilities


class Run(NamedTuple):
    """A fine-tuned model: the seed of its pre-training and that of its fine-tuning."""

    pretraining: int
    finetuning: int


def upstream(index: int, members: int, seeds: Sequence[int]) -> tuple[Run, ...]:
    """Members from separate pre-training: M pre-training seeds, each fine-tuned once with the same seed.

    With S seeds the first ⌊S / M⌋ ensembles have no run in common: ensemble i has seeds i·M to i·M + M − 1. Further ones start at the
    places left over and wrap around, so they share runs with others, but no two have all of them in common. Results of ensembles that
    share runs vary together: their standard deviation is too small. There are S ensembles, or one if M = S.

    Args:
        index: which ensemble, from 0.
        members: M.
        seeds: of the runs that exist, pre-trained and fine-tuned.

    Raises:
        ValueError: there are too few seeds for M, or too few for so many ensembles.
    """
    if not 1 <= members <= len(set(seeds)) == len(seeds):
        raise ValueError(f"members {members}: should be at least 1 and at most the number of different seeds in {list(seeds)}")
    apart = range(0, len(seeds) - members + 1, members)
    starts = [*apart, *(start for start in range(len(seeds)) if start not in apart)] if members < len(seeds) else [0]
    if not 0 <= index < len(starts):
        raise ValueError(
            f"index {index}: should be 0 to {len(starts) - 1}, as {len(seeds)} seeds make {len(starts)} ensembles of {members}"
        )
    return tuple(Run(seed, seed) for seed in (seeds[(starts[index] + member) % len(seeds)] for member in range(members)))


def downstream(seed: int, members: int) -> tuple[Run, ...]:
    """Members from one pre-training: one checkpoint, M fine-tuning seeds, the first of them the seed that was pre-trained with.

    So the first member is the ordinary run. Ensembles of different seeds never share a run, but fine-tuning seeds.

    Args:
        seed: of pre-training.
        members: M.

    Raises:
        ValueError: there is no member.
    """
    if members < 1:
        raise ValueError(f"members {members}: should be at least 1")
    return tuple(Run(seed, seed + member) for member in range(members))


def stack(runs: Mapping[str, ArrayLike]) -> np.ndarray:
    """The members' probabilities as `moebench.metrics.diversity` takes them; its `ensemble_mean` is what the ensemble predicts.

    Args:
        runs: name of a run → its probabilities (N, C), for the same examples in the same order.

    Returns:
        (M, N, C), in the order of the runs.

    Raises:
        ValueError: there is no run, two have other shapes, or one has something else than probabilities; the message names it.
    """
    arrays = {name: np.asarray(probs) for name, probs in runs.items()}
    if not arrays:
        raise ValueError("an ensemble needs at least one run")
    (first, expected), *others = arrays.items()
    for name, probs_NC in others:
        if probs_NC.shape != expected.shape:
            raise ValueError(f"{name} has shape {probs_NC.shape}: should be that of {first}, {expected.shape}")
    for name, probs_NC in arrays.items():
        try:
            check_probabilities(probs_NC)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return np.stack(list(arrays.values()))


def total_flops(flops: Iterable[float]) -> float:
    """Operations of the ensemble, the sum over its members: nothing is shared."""
    return math.fsum(flops)

"""What ± means: mean and sample deviation over seeds, paired differences with a t interval, Holm's adjustment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy import stats

LEAST_SEEDS = 3
"""Below this many seeds nothing is claimed about a difference."""
MARGIN = 3.0
"""Deviations over seeds by which a model has to beat the best shallow baseline, and to stay away from 100, for a task to count."""
RESOLUTION = 1e-6
"""Of a value in the records; differences that vary by less do not vary."""


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean, summed without loss of precision, so that the order of the values does not matter."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1); none for a single value."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


@dataclass(frozen=True)
class Difference:
    """A paired difference over shared seeds.

    Attributes:
        mean: mean of the differences.
        low: lower end of the 95 % t interval of the mean.
        high: its upper end.
        p: two-sided p-value of the paired t test.
        n: number of shared seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Compare two methods seed by seed.

    Args:
        values: seed → value of the method.
        baseline: seed → value of the method it is compared with.

    Returns:
        The difference ``values - baseline``; none where nothing can be claimed: fewer than three shared seeds, or differences without
        any spread, of which the t statistic is undefined.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if len(seeds) < LEAST_SEEDS:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    spread = deviation(differences)
    if spread is None or spread < RESOLUTION:
        return None
    centre, error, freedom = mean(differences), spread / math.sqrt(len(seeds)), len(seeds) - 1
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Difference(centre, centre - half, centre + half, 2 * float(stats.t.sf(abs(centre) / error, freedom)), len(seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, 1979): the i-th smallest of m, times m - i + 1, made monotone, at most 1.

    Args:
        p_values: the p-values of one family, in any order.

    Returns:
        The adjusted p-values, in the same order.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


class Bar(NamedTuple):
    """Whether a constructed task counts.

    Attributes:
        verdict: ``yes``, ``no`` (shallow baselines are as good), ``ceiling`` (too easy) or ``undecided`` (too few seeds, no baseline).
        shallow: the best shallow baseline; none if there is none.
        shallow_zero_shot: its score.
    """

    verdict: str
    shallow: str | None
    shallow_zero_shot: float | None


def bar(seeds: Sequence[float], shallow: Mapping[str, float]) -> Bar:
    """Decide whether a task counts: does a model beat the best shallow baseline by `MARGIN` deviations over seeds?

    The same distance is asked for from the ceiling of 100, where methods cannot differ any more.

    Args:
        seeds: the model's scores, in percent.
        shallow: name → score of each shallow baseline.
    """
    if not shallow:
        return Bar("undecided", None, None)
    best = min(shallow, key=lambda name: (-shallow[name], name))
    spread = deviation(seeds)
    if len(seeds) < LEAST_SEEDS or spread is None:
        verdict = "undecided"
    elif mean(seeds) - shallow[best] <= MARGIN * spread:
        verdict = "no"
    else:
        verdict = "ceiling" if 100 - mean(seeds) <= MARGIN * spread else "yes"
    return Bar(verdict, best, shallow[best])

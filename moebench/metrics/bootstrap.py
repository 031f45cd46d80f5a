"""How much a score would vary over other test examples: the standard error of a ratio of sums, by a cluster bootstrap.

N examples, G groups of examples, R resamples, K sums. The error speaks of the choice of test examples alone, for one trained model; it
says nothing about training seeds.

A **group** holds the examples that depend on each other, such as the pairs of one premise or the questions on one context; examples of
different groups are taken as independent. Where every example stands for itself, each is a group of one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike


def group_sums(sums_NK: ArrayLike, groups: Sequence[Hashable]) -> np.ndarray:
    """Add up the rows of each group, (G, K); groups in the order in which they first appear.

    Args:
        sums_NK: what an example adds to each sum.
        groups: name of each example's group.

    Raises:
        ValueError: not as many groups as examples.
    """
    sums_NK = np.asarray(sums_NK, dtype=np.float64)
    if len(sums_NK) != len(groups):
        raise ValueError(f"{len(sums_NK)} examples and the groups of {len(groups)}")
    place: dict[Hashable, int] = {}
    place_N = [place.setdefault(group, len(place)) for group in groups]
    sums_GK = np.zeros((len(place), *sums_NK.shape[1:]))
    np.add.at(sums_GK, place_N, sums_NK)
    return sums_GK


def ratio(sums_2: np.ndarray) -> np.ndarray:
    """First sum over the second one, along the last dimension; 0 where the second is 0, as a score without anything to find is.

    A mean is sum of values / number of examples; micro F1 is 2 correct / (predicted + gold).
    """
    above, below = sums_2[..., 0], sums_2[..., 1]
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def standard_error(sums_G2: ArrayLike, resamples: int = 1000, seed: int = 0) -> float:
    """Standard error of `ratio` of the sums over all groups, by a bootstrap over groups (Efron and Tibshirani, 1993, chapter 6).

    Each resample draws G of the G groups with replacement and takes the ratio of the sums over what it drew,

        θ_r = ratio(Σ_g c_rg sums_g),  c_r ~ multinomial(G; 1/G, ..., 1/G),  se = sqrt(Σ_r (θ_r − mean θ)² / (R − 1)).

    The value itself carries a relative error of about 1 / sqrt(2R), 2 % for 1000 resamples. It is that of the plug-in estimate: for a mean
    over G groups of equal size smaller than s / sqrt(G) by the factor sqrt((G − 1) / G), so too small where groups are few.

    Args:
        sums_G2: numerator and denominator of each group, not negative in the denominator.
        resamples: R, at least 2.
        seed: of the draws; equal numbers of groups share the draws of a seed.

    Returns:
        The error in the unit of the ratio. NaN for a single group, of which every resample is the same: nothing is known, which is not 0.

    Raises:
        ValueError: no group, not two columns, a number that is not finite or a negative denominator, or fewer than 2 resamples.
    """
    sums_G2 = np.asarray(sums_G2, dtype=np.float64)
    if sums_G2.ndim != 2 or sums_G2.shape[1] != 2 or not len(sums_G2):
        raise ValueError(f"sums have the shape {sums_G2.shape}; should be (groups, 2) with at least one group")
    if not np.isfinite(sums_G2).all() or (sums_G2[:, 1] < 0).any():
        raise ValueError("sums should be finite, and denominators not negative")
    if resamples < 2:
        raise ValueError(f"{resamples} resamples; a deviation takes at least 2")
    if len(sums_G2) == 1:
        return float("nan")
    counts_RG = _draws(len(sums_G2), resamples, seed)
    return float(ratio(counts_RG.astype(np.float64) @ sums_G2).std(ddof=1))


@lru_cache(maxsize=128)
def _draws(groups: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each group, (R, G); kept, since test sets recur with every model.

    A byte a count keeps full-size benchmarks in memory: one above 255 would have a probability below 1 / 255! for each cell.
    """
    counts_RG = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(np.uint8)
    counts_RG.flags.writeable = False
    return counts_RG

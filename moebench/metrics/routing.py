"""How a router spreads tokens over experts: representation collapse, fluctuation, consistency between runs, load balance, experts in use.

T tokens, D model width, E experts, M runs, L layers, A assignments, H heads (sub-tokens of a token; 1: it is not split). All in float64.
A value that the definition leaves open is NaN, never 0: a constant load has no correlation, one expert in use no variance between experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

PINV_CUTOFF = 1e-10
"""Relative cut-off of singular values: the between-class covariance has at most E - 1 directions out of D."""


def representation_collapse(hidden_TD: ArrayLike, expert_T: ArrayLike) -> float:
    """RC = Tr(W B^+), W the covariance within and B between the experts' tokens (X-MoE, arXiv 2204.09179, section 4.5).

    Smaller means more collapsed. B weighs every expert in use alike and is centred on the mean of all tokens, as in the neural-collapse
    code that the paper builds on (Zhu et al. 2021); the paper leaves the centre open. That code divides the trace by the number of
    classes, the paper does not, nor do we. Experts without a token are left out.

    Args:
        hidden_TD: hidden states as they enter the router, padding left out.
        expert_T: each token's first choice.

    Returns:
        RC >= 0, NaN if fewer than two experts are in use.

    Raises:
        ValueError: shapes do not match, or a hidden state is not finite.
    """
    hidden_TD, expert_T = np.asarray(hidden_TD, dtype=np.float64), np.asarray(expert_T)
    if hidden_TD.ndim != 2 or expert_T.shape != hidden_TD.shape[:1]:
        raise ValueError(f"hidden states (T, D) and experts (T,) do not match: {hidden_TD.shape} and {expert_T.shape}")
    if not np.isfinite(hidden_TD).all():
        raise ValueError("a hidden state is not finite")
    used, class_T = np.unique(expert_T, return_inverse=True)
    if len(used) < 2:
        return float("nan")
    mean_ED = np.stack([hidden_TD[class_T == index].mean(axis=0) for index in range(len(used))])
    within_TD = hidden_TD - mean_ED[class_T]
    between_ED = mean_ED - hidden_TD.mean(axis=0)
    within_DD = within_TD.T @ within_TD / len(hidden_TD)
    between_DD = between_ED.T @ between_ED / len(used)
    return float(np.trace(within_DD @ np.linalg.pinv(between_DD, rcond=PINV_CUTOFF, hermitian=True)))


def router_fluctuation(before_T: ArrayLike, after_T: ArrayLike) -> float:
    """RF = share of tokens whose first choice differs between two checkpoints (X-MoE, section 4.5), in 0..1; NaN without tokens.

    Raises:
        ValueError: the two are not choices for the same tokens.
    """
    before_T, after_T = np.asarray(before_T), np.asarray(after_T)
    if before_T.ndim != 1 or before_T.shape != after_T.shape:
        raise ValueError(f"choices before and after must both be (T,), are {before_T.shape} and {after_T.shape}")
    return float((before_T != after_T).mean()) if before_T.size else float("nan")


def inter_run_consistency(load_ME: ArrayLike) -> float:
    """IC = mean of all M x M Pearson correlations between the runs' loads, the diagonal included (X-MoE, section 4.5).

    With unrelated loads it is near 1 / M, with proportional ones 1; values of different M do not compare.

    Args:
        load_ME: tokens per expert, one row a run.

    Returns:
        IC in -1..1, NaN for fewer than two runs or a constant load.

    Raises:
        ValueError: not a matrix.
    """
    load_ME = np.asarray(load_ME, dtype=np.float64)
    if load_ME.ndim != 2:
        raise ValueError(f"loads must be (M, E), are {load_ME.shape}")
    if len(load_ME) < 2 or (load_ME == load_ME[:, :1]).all(axis=1).any():
        return float("nan")
    return float(np.corrcoef(load_ME).mean())


def max_violation(load_E: ArrayLike) -> float:
    """Largest load over the mean load, minus 1: 0 when balanced, E - 1 when one expert has all; NaN for an empty load."""
    load_E = _load(load_E)
    return float(load_E.max() / load_E.mean() - 1) if load_E.any() else float("nan")


def load_entropy(load_E: ArrayLike) -> float:
    """Entropy of the load in nats: ln E when balanced, 0 when one expert has all; NaN for an empty load."""
    load_E = _load(load_E)
    if not load_E.any():
        return float("nan")
    share = load_E[load_E > 0] / load_E.sum()
    return float(-(share * np.log(share)).sum())


def activation_ratio(count_LE: ArrayLike, units: ArrayLike, threshold: float) -> float:
    """Share of the cells (layer, expert) that are activated: whose r = selections / units is above a threshold.

    MH-MoE (arXiv 2404.15045), caption of figure 1a: selections of an expert over the number of tokens, activated above a threshold below 1.
    **The threshold was never published**, nor whether the units of MH-MoE are tokens or sub-tokens. Of the two values there, for 6 layers
    of 32 experts, 8.33 % is 16 / 192 and 90.71 % is no n / 192: they are not one plain count. So give several thresholds, and say which
    units.

    Args:
        count_LE: how often each expert was chosen, before any capacity; one row a layer.
        units: what r is relative to, one number or one a layer: tokens, or all assignments of the layer (sub-tokens times K).
        threshold: 0 counts the experts that were chosen at all; 1 / E, of assignments, those with more than an equal share.

    Returns:
        A share in 0..1; with threshold 0 it rises with the number of tokens that it is measured on. NaN without units.

    Raises:
        ValueError: counts are no matrix of finite numbers >= 0, or units do not fit them.
    """
    count_LE = np.asarray(count_LE, dtype=np.float64)
    if count_LE.ndim != 2 or not np.isfinite(count_LE).all() or (count_LE < 0).any():
        raise ValueError("selections must be finite numbers >= 0, (L, E)")
    units = np.asarray(units, dtype=np.float64)
    if units.ndim and units.shape != count_LE.shape[:1]:
        raise ValueError(f"units must be one number or one a layer, ({len(count_LE)},), are {units.shape}")
    if not count_LE.size or (units == 0).any():
        return float("nan")
    return float((count_LE / units[..., None] > threshold).mean())


def assignment_diversity(unit_A: ArrayLike, expert_A: ArrayLike, tokens: int, experts: int, heads: int = 1) -> np.ndarray:
    """Number of different experts that each token reaches through all of its sub-tokens (MH-MoE, arXiv 2404.15045, figure 7).

    The paper speaks of one expert a sub-token, so that it is in 1..H. With K experts a sub-token it is in K..min(H K, E), and K exactly
    where a token is not split; give first choices alone for what the paper has. Compare with `random_diversity`.

    Args:
        unit_A: the sub-token of each assignment; number u is of token ⌊u / H⌋.
        expert_A: its expert.
        tokens: T.
        experts: E.
        heads: H.

    Returns:
        (T,) whole numbers; 0 for a token without an assignment.
    """
    reached_TE = np.zeros((tokens, experts), dtype=bool)
    reached_TE[np.asarray(unit_A, dtype=np.int64) // heads, np.asarray(expert_A, dtype=np.int64)] = True
    return np.asarray(reached_TE.sum(axis=1))


def random_diversity(chosen_TH: ArrayLike, experts: int) -> np.ndarray:
    """Expectation of `assignment_diversity` where every sub-token draws its experts at random, different ones, apart from the others.

    A sub-token with k of E experts misses a given one with probability 1 - k / E, so a token reaches E (1 - Π_h (1 - k_h / E)) of them:
    E (1 - (1 - 1 / E)^H) where all have one, k where there is one sub-token.

    Args:
        chosen_TH: how many different experts each sub-token has.
        experts: E.

    Returns:
        (T,) expectations.
    """
    missed_TH = experts - np.asarray(chosen_TH, dtype=np.float64)
    return np.asarray(experts - missed_TH.prod(axis=1) / float(experts) ** (missed_TH.shape[1] - 1))  # of one sub-token exactly k


def _load(load_E: ArrayLike) -> np.ndarray:
    load_E = np.asarray(load_E, dtype=np.float64)
    if load_E.ndim != 1 or not np.isfinite(load_E).all() or (load_E < 0).any():
        raise ValueError("a load must be one finite number >= 0 an expert, (E,)")
    return load_E

"""How a router spreads tokens over experts: representation collapse, fluctuation, consistency between runs, load balance.

T tokens, D model width, E experts, M runs. All in float64.
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


def _load(load_E: ArrayLike) -> np.ndarray:
    load_E = np.asarray(load_E, dtype=np.float64)
    if load_E.ndim != 1 or not np.isfinite(load_E).all() or (load_E < 0).any():
        raise ValueError("a load must be one finite number >= 0 an expert, (E,)")
    return load_E

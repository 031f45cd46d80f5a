"""How much the members of an ensemble differ in what they predict.

M members, N examples, C classes. Each function takes the members' probabilities (M, N, C), members first.
Every function raises ValueError for probabilities that `calibration.check_probabilities` refuses. Logarithms are natural.
All measures grow with diversity; larger is more diverse, which is better only at equal error. A single member has no pair: NaN, not 0.
Pairs are those with i < j, averaged over pairs and examples, as in robustness_metrics (`average_pairwise_diversity`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, rel_entr

from moebench.metrics.calibration import check_probabilities, error

KL_FLOOR = 1e-12
"""A probability below it counts as it in the denominator of the KL divergence, which is thereby finite: at most 27.6 nats."""


def ensemble_mean(probs_MNC: ArrayLike) -> np.ndarray:
    """Arithmetic mean of the members' probabilities, 1/M sum_m p_m, (N, C): what an ensemble predicts."""
    return check_probabilities(probs_MNC, "MNC").mean(axis=0)


def mutual_information(probs_MNC: ArrayLike) -> np.ndarray:
    """Mutual information of prediction and member, H(mean_m p_m) - mean_m H(p_m) in nats, (N,), in 0..min(ln M, ln C).

    Larger: the members disagree, each being sure (epistemic uncertainty; Houlsby et al., arXiv 1112.5745, known as BALD). Negative rounding
    errors are set to 0. With one member it is 0, for then there is nothing to know about the member.
    """
    probs_MNC = check_probabilities(probs_MNC, "MNC")
    return (entr(probs_MNC.mean(axis=0)).sum(axis=1) - entr(probs_MNC).sum(axis=2).mean(axis=0)).clip(min=0)


def disagreement(probs_MNC: ArrayLike) -> float:
    """Share of pairs of members, over all examples, that predict different classes, in 0..1; NaN for one member.

    A member's prediction is its class of largest probability, the lowest index among equals.
    """
    vote_MN = check_probabilities(probs_MNC, "MNC").argmax(axis=2)
    return _mean_over_pairs(vote_MN, lambda i_N, j_N: i_N != j_N)


def normalised_disagreement(probs_MNC: ArrayLike, labels_N: ArrayLike) -> float:
    """`disagreement` over the error of the mean prediction, >= 0; NaN for one member or an error of 0.

    Near 1: the members' errors are about independent of one another. The error is that of the averaged probabilities, not the mean of the
    members' errors. robustness_metrics adds 1e-7 to it, which gives a huge number at an error of 0.

    Raises:
        ValueError: see the top of the file; or labels that `calibration.check_labels` refuses.
    """
    wrong = error(ensemble_mean(probs_MNC), labels_N)
    return disagreement(probs_MNC) / wrong if wrong else float("nan")


def pairwise_kl(probs_MNC: ArrayLike) -> float:
    """Mean over pairs i < j and examples of KL(p_i || p_j) = sum_c p_ic ln(p_ic / p_jc) in nats, in 0..27.6; NaN for one member.

    One direction only, so the value depends, slightly, on the order of the members. Only p_j is raised to `KL_FLOOR`, without rescaling;
    0 ln 0 = 0. robustness_metrics clips nothing and may return inf.
    """
    return _mean_over_pairs(
        check_probabilities(probs_MNC, "MNC"), lambda i_NC, j_NC: rel_entr(i_NC, j_NC.clip(min=KL_FLOOR)).sum(axis=1).clip(min=0)
    )


def cosine_diversity(probs_MNC: ArrayLike) -> float:
    """1 - mean over pairs and examples of the cosine p_i p_j / (|p_i| |p_j|), in 0..1; NaN for one member.

    robustness_metrics calls its function a distance but returns the cosine itself, which falls with diversity.
    """
    probs_MNC = check_probabilities(probs_MNC, "MNC")
    unit_MNC = probs_MNC / np.linalg.norm(probs_MNC, axis=2, keepdims=True)
    return _mean_over_pairs(unit_MNC, lambda i_NC, j_NC: (1 - (i_NC * j_NC).sum(axis=1)).clip(min=0))


def _mean_over_pairs(of_member_M: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    pairs = list(combinations(of_member_M, 2))
    return float(np.mean([measure(i, j).mean() for i, j in pairs])) if pairs else float("nan")

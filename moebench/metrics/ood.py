"""How well a score tells out-of-distribution (OOD) examples from in-distribution (ID) ones.

N examples, C classes, D features, K in-distribution classes. Every score grows with strangeness: **larger is more OOD, and OOD is the
positive class**. A detection measure takes the scores of the ID test set and of the OOD set, and treats equal scores as one threshold.
`entropy` and `mutual_information` are scores as they stand: the one takes the mean probabilities, the other those of the members.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import rankdata

from moebench.metrics.calibration import check_labels, check_logits, check_probabilities
from moebench.metrics.calibration import entropy as entropy
from moebench.metrics.diversity import mutual_information as mutual_information

VARIANCE_CUTOFF = 1e-10
"""Directions whose variance is below this share of the largest are left out of the Mahalanobis distances (pseudo-inverse)."""


class Gaussians(NamedTuple):
    """Gaussians with one shared covariance around each class mean, and one Gaussian around the mean of all features.

    A whitening W has W W^T = the pseudo-inverse of the covariance, so distances are Euclidean after it.
    """

    mean_KD: np.ndarray
    whitening_DR: np.ndarray
    mean_D: np.ndarray
    background_DR: np.ndarray


def max_probability(probs_NC: ArrayLike) -> np.ndarray:
    """1 - max_c p_c, (N,), in 0..1 - 1 / C (Hendrycks & Gimpel, arXiv 1610.02136). Takes the mean over members.

    Raises:
        ValueError: probabilities that `calibration.check_probabilities` refuses.
    """
    return 1 - check_probabilities(probs_NC).max(axis=1)


def max_logit(logits_NC: ArrayLike) -> np.ndarray:
    """- max_c logit_c, (N,), any real number (Hendrycks et al., arXiv 1911.11132). Takes one model's logits; average the members' scores.

    Raises:
        ValueError: logits that are not finite or not (N, C).
    """
    return -check_logits(logits_NC).max(axis=1)


def energy(logits_NC: ArrayLike) -> np.ndarray:
    """- ln sum_c exp(logit_c), (N,), any real number: the free energy at temperature 1 (Liu et al., arXiv 2010.03759, Eq. 4).

    Takes one model's logits; average the members' scores. The sign is that of the energy; some libraries score its negative.

    Raises:
        ValueError: logits that are not finite or not (N, C).
    """
    return -logsumexp(check_logits(logits_NC), axis=1)


def fit_gaussians(features_ND: ArrayLike, labels_N: ArrayLike) -> Gaussians:
    """Fit the Gaussians of both Mahalanobis scores to ID training features, such as those that enter the classifier.

    Covariances divide by N (Lee et al., arXiv 1807.03888, Eq. 1). Singular ones are inverted without the directions in which ID features do
    not vary, where a deviation then costs nothing. Classes without an example are left out.

    Raises:
        ValueError: features that are not finite, not (N, D), or all equal within each class; labels not integers >= 0, one an example.
    """
    features_ND = _check_features(features_ND)
    labels_N = check_labels(labels_N, len(features_ND), np.iinfo(np.int64).max)
    used, class_N = np.unique(labels_N, return_inverse=True)
    mean_KD = np.stack([features_ND[class_N == k].mean(axis=0) for k in range(len(used))])
    mean_D = features_ND.mean(axis=0)
    return Gaussians(mean_KD, _whitening(features_ND - mean_KD[class_N]), mean_D, _whitening(features_ND - mean_D))


def mahalanobis(features_ND: ArrayLike, gaussians: Gaussians) -> np.ndarray:
    """Squared Mahalanobis distance to the nearest class mean, min_k (x - mu_k)^T S^-1 (x - mu_k), (N,), >= 0.

    Lee et al., arXiv 1807.03888, Eq. 2, without its input perturbation and layer ensemble. Takes one model's features; average the members'
    scores (uncertainty-baselines averages the distances to each class, then takes the smallest).

    Raises:
        ValueError: features that are not finite, or of another width than the fitted ones.
    """
    features_ND = _check_features(features_ND, len(gaussians.mean_D))
    return _squared_distance(features_ND, gaussians.mean_KD, gaussians.whitening_DR).min(axis=1)


def relative_mahalanobis(features_ND: ArrayLike, gaussians: Gaussians) -> np.ndarray:
    """`mahalanobis` minus the squared distance to the Gaussian of all ID features, (N,), any real number (Ren et al., arXiv 2106.09022).

    Takes one model's features; average the members' scores.

    Raises:
        ValueError: features that are not finite, or of another width than the fitted ones.
    """
    features_ND = _check_features(features_ND, len(gaussians.mean_D))
    return mahalanobis(features_ND, gaussians) - _squared_distance(features_ND, gaussians.mean_D[None], gaussians.background_DR)[:, 0]


def auroc(score_id: ArrayLike, score_ood: ArrayLike) -> float:
    """Area under the ROC curve: P(OOD score > ID score) + P(equal) / 2, in 0..1; higher is better, 0.5 is chance.

    The same whichever class is positive.

    Raises:
        ValueError: scores that are empty, not (N,) or NaN.
    """
    score_id, score_ood = _check_scores(score_id, "ID"), _check_scores(score_ood, "OOD")
    rank_ood = rankdata(np.concatenate([score_ood, score_id]))[: len(score_ood)]
    return float((rank_ood.mean() - (len(score_ood) + 1) / 2) / len(score_id))


def aupr_out(score_id: ArrayLike, score_ood: ArrayLike) -> float:
    """Area under the precision-recall curve with **OOD positive**, in 0..1; higher is better, chance is the share of OOD examples.

    Average precision, sum_t (recall_t - recall_t-1) precision_t over falling thresholds: steps, not trapezoids. It depends on the ratio of
    OOD to ID examples: compare only at equal ratio.

    Raises:
        ValueError: scores that are empty, not (N,) or NaN.
    """
    tp, fp = _detected(_check_scores(score_ood, "OOD"), _check_scores(score_id, "ID"))
    return float((np.diff(tp, prepend=0) * tp / (tp + fp)).sum() / tp[-1])


def aupr_in(score_id: ArrayLike, score_ood: ArrayLike) -> float:
    """As `aupr_out` with **ID positive** and the scores negated; higher is better, chance is the share of ID examples.

    Raises:
        ValueError: scores that are empty, not (N,) or NaN.
    """
    return aupr_out(-_check_scores(score_ood, "OOD"), -_check_scores(score_id, "ID"))


def fpr_at_95_tpr(score_id: ArrayLike, score_ood: ArrayLike) -> float:
    """Share of ID examples flagged at the highest threshold that flags at least 95 % of the OOD ones, in 0..1; **lower** is better.

    OOD is positive: the paper's code fixes the share of OOD found. The measure of the same name with ID positive is another number, and so,
    by up to one threshold, is that of libraries that take the recall nearest to 95 %.

    Raises:
        ValueError: scores that are empty, not (N,) or NaN.
    """
    tp, fp = _detected(_check_scores(score_ood, "OOD"), _check_scores(score_id, "ID"))
    return float(fp[np.argmax(tp / tp[-1] >= 0.95)] / fp[-1])


def _detected(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, from the largest score down."""
    threshold = np.unique(np.concatenate([positive, negative]))[::-1]
    tp, fp = (len(scores) - np.searchsorted(np.sort(scores), threshold) for scores in (positive, negative))
    return tp, fp


def _squared_distance(features_ND: np.ndarray, mean_KD: np.ndarray, whitening_DR: np.ndarray) -> np.ndarray:
    return cdist(features_ND @ whitening_DR, mean_KD @ whitening_DR, "sqeuclidean")


def _whitening(centred_ND: np.ndarray) -> np.ndarray:
    variance_D, direction_DD = np.linalg.eigh(centred_ND.T @ centred_ND / len(centred_ND))
    kept = variance_D > VARIANCE_CUTOFF * variance_D[-1]
    if not kept.any():
        raise ValueError("the features do not vary around their means; a Mahalanobis distance needs classes with differing examples")
    return direction_DD[:, kept] / np.sqrt(variance_D[kept])


def _check_features(features_ND: ArrayLike, width: int | None = None) -> np.ndarray:
    features_ND = np.asarray(features_ND, dtype=np.float64)
    if features_ND.ndim != 2 or 0 in features_ND.shape or width not in (None, features_ND.shape[1]):
        raise ValueError(
            f"features must be (N, D) with N >= 1 and D {f'= {width}' if width else '>= 1'}; their shape is {features_ND.shape}"
        )
    if not np.isfinite(features_ND).all():
        raise ValueError(f"a feature of example {int(np.argwhere(~np.isfinite(features_ND))[0][0])} is not finite")
    return features_ND


def _check_scores(scores: ArrayLike, of: str) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"the {of} scores must be (N,) with N >= 1; their shape is {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"the {of} score of example {int(np.isnan(scores).argmax())} is NaN; should be a number")
    return scores

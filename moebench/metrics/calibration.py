"""How good the predicted probabilities of classes are: proper scores, calibration errors, reliability, temperature scaling.

N examples, C classes, B bins. Each function takes the probabilities (N, C) that are to be judged: for an ensemble the mean over its members
(`diversity.ensemble_mean`), never the members. Logarithms are natural, results are fractions, arithmetic is float64.
The prediction is the class of largest probability, the lowest index among equals; its probability is the confidence.
Every function raises ValueError for probabilities that `check_probabilities` or labels that `check_labels` refuses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import entr, log_softmax, softmax

BINS = 15
"""Number of bins, as in the authors' evaluation code (robustness_metrics, uncertainty-baselines); other libraries have 10 or 30."""

SUM_TOLERANCE = 1e-4
"""How far from 1 a row of probabilities may sum: above the rounding of float32, below that of half precision. Rows are not rescaled."""

TEMPERATURE_BOUNDS = (0.01, 100.0)
"""Where the temperature is looked for; a bound is returned where the validation set determines none (all right, or worse than chance)."""


class Reliability(NamedTuple):
    """The bins of a reliability diagram; confidence and accuracy are NaN in an empty bin."""

    lower_B: np.ndarray
    upper_B: np.ndarray
    count_B: np.ndarray
    confidence_B: np.ndarray
    accuracy_B: np.ndarray


def error(probs_NC: ArrayLike, labels_N: ArrayLike) -> float:
    """Share of examples whose prediction is not the label, 1 - accuracy, in 0..1; lower is better."""
    probs_NC, labels_N = _checked(probs_NC, labels_N)
    return float((probs_NC.argmax(axis=1) != labels_N).mean())


def nll(probs_NC: ArrayLike, labels_N: ArrayLike, floor: float = 0.0) -> float:
    """Negative log-likelihood in nats, - 1/N sum_n ln max(p_n[label], floor), >= 0; lower is better.

    Args:
        probs_NC: probabilities.
        labels_N: labels.
        floor: a label's probability below it counts as it. With 0, the default, nothing is clipped and a label of probability 0 gives inf.
            scikit-learn clips at 2.2e-16, Keras at 1e-7.

    Raises:
        ValueError: see the top of the file; or the floor is outside 0..1.
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"floor has the value {floor}; should be a probability, 0 to 1")
    probs_NC, labels_N = _checked(probs_NC, labels_N)
    with np.errstate(divide="ignore"):
        # rounding may leave a probability a hair above 1
        return float(-np.log(_of_label(probs_NC, labels_N).clip(floor, 1)).mean())


def brier(probs_NC: ArrayLike, labels_N: ArrayLike) -> float:
    """Brier score, 1/N sum_n sum_c (p_nc - [c = label_n])^2, in 0..2; lower is better.

    Summed over classes: with two classes it is twice the binary score of scikit-learn. Averaging over classes too gives 1/C of it.
    """
    probs_NC, labels_N = _checked(probs_NC, labels_N)
    return float(((probs_NC - np.eye(probs_NC.shape[1])[labels_N]) ** 2).sum(axis=1).mean())


def entropy(probs_NC: ArrayLike) -> np.ndarray:
    """Entropy of each row, - sum_c p_c ln p_c in nats, (N,), in 0..ln C; larger is less certain. 0 ln 0 = 0.

    Of the mean over members it is the predictive entropy, the total uncertainty; the mean over members of their entropies is smaller by
    `diversity.mutual_information`.
    """
    return _entropy(check_probabilities(probs_NC))


def reliability(probs_NC: ArrayLike, labels_N: ArrayLike, bins: int = BINS) -> Reliability:
    """Count, mean confidence and accuracy of B bins of equal width on the confidence.

    Bins are closed on the left, [b / B, (b + 1) / B), and the last one on both sides. A confidence of exactly 1 is in the last bin, as in
    robustness_metrics; torchmetrics 1.9.0 gives it a bin of its own. Bins below 1 / C are always empty.
    """
    probs_NC, labels_N = _checked(probs_NC, labels_N)
    confidence_N, right_N = probs_NC.max(axis=1), probs_NC.argmax(axis=1) == labels_N
    return _reliability(confidence_N, right_N, _equal_width(confidence_N, bins), np.arange(bins) / bins, np.arange(1, bins + 1) / bins)


def ece(probs_NC: ArrayLike, labels_N: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error, sum_b n_b / N |confidence_b - accuracy_b| over the bins of `reliability`, in 0..1; lower is better."""
    return _weighted_gap(reliability(probs_NC, labels_N, bins))


def signed_ece(probs_NC: ArrayLike, labels_N: ArrayLike) -> float:
    """Signed calibration error, sum_b n_b / N (confidence_b - accuracy_b), in -1..1: positive is over-confident, 0 is best.

    The sum is mean confidence - accuracy whatever the bins, so there are none. Its size never exceeds `ece`; 0 does not mean calibrated.
    """
    probs_NC, labels_N = _checked(probs_NC, labels_N)
    return float(probs_NC.max(axis=1).mean() - (probs_NC.argmax(axis=1) == labels_N).mean())


def adaptive_reliability(probs_NC: ArrayLike, labels_N: ArrayLike, bins: int = BINS) -> Reliability:
    """As `reliability`, with bins of equal mass; the bounds are the smallest and largest confidence in a bin, NaN in an empty one.

    The sorted confidences are cut as `numpy.array_split` does: the first N mod B bins have one example more. Equal confidences all go to
    the bin of the first of them, so that the order of the examples is of no account; bins may then be unequal or empty.
    """
    probs_NC, labels_N = _checked(probs_NC, labels_N)
    confidence_N, right_N = probs_NC.max(axis=1), probs_NC.argmax(axis=1) == labels_N
    sorted_N = np.sort(confidence_N)
    first_N = np.searchsorted(sorted_N, confidence_N)
    bin_of_place_N = np.repeat(np.arange(_bins(bins)), [len(part) for part in np.array_split(sorted_N, bins)])
    bin_N = bin_of_place_N[first_N]
    lower_B, upper_B = np.full(bins, np.inf), np.full(bins, -np.inf)
    np.minimum.at(lower_B, bin_N, confidence_N)
    np.maximum.at(upper_B, bin_N, confidence_N)
    empty_B = np.bincount(bin_N, minlength=bins) == 0
    lower_B[empty_B] = upper_B[empty_B] = np.nan
    return _reliability(confidence_N, right_N, bin_N, lower_B, upper_B)


def adaptive_ece(probs_NC: ArrayLike, labels_N: ArrayLike, bins: int = BINS) -> float:
    """Calibration error over bins of equal mass, sum_b n_b / N |confidence_b - accuracy_b|, in 0..1; lower is better.

    The bins are those of `adaptive_reliability`.
    """
    return _weighted_gap(adaptive_reliability(probs_NC, labels_N, bins))


def classwise_ece(probs_NC: ArrayLike, labels_N: ArrayLike, bins: int = BINS) -> float:
    """Static calibration error, 1/C sum_c sum_b n_bc / N |mean of p_c in b - share of label c in b|, in 0..1; lower is better.

    The bins of class c are of equal width on p_c, with the edges of `reliability`. Every class counts alike, also one without examples.
    Nixon et al., arXiv 1904.01685, section 4.1 (SCE).
    """
    probs_NC, labels_N = _checked(probs_NC, labels_N)
    edge_B = np.arange(_bins(bins)) / bins
    classes = range(probs_NC.shape[1])
    of_class = [_reliability(probs_NC[:, c], labels_N == c, _equal_width(probs_NC[:, c], bins), edge_B, edge_B) for c in classes]
    return float(np.mean([_weighted_gap(table) for table in of_class]))


def fit_temperature(logits_NC: ArrayLike, labels_N: ArrayLike) -> float:
    """The temperature T > 0 that minimises the NLL of softmax(logits / T) on a validation set (Guo et al., arXiv 1706.04599, section 4.2).

    T > 1 softens (the model was over-confident), T < 1 sharpens. The NLL is convex in b = 1 / T, so its one minimum over ln T is found
    within `TEMPERATURE_BOUNDS`, to about 1e-6 in ln T. Where it still falls, or is flat, at a bound, that bound is returned: the lower one
    where every example is right, the upper one where the logits are no better than chance. Fit on validation data only. For an ensemble,
    the logits are the logarithms of its mean probabilities: one T for the ensemble, which is not the same as one for each member.

    Args:
        logits_NC: finite logits, or log-probabilities.
        labels_N: labels.

    Raises:
        ValueError: logits that are not finite or not (N, C), or labels that `check_labels` refuses.
    """
    logits_NC = check_logits(logits_NC)
    labels_N = check_labels(labels_N, *logits_NC.shape)

    def loss(log_temperature: float) -> float:
        return float(-_of_label(log_softmax(logits_NC / np.exp(log_temperature), axis=1), labels_N).mean())

    def slope(temperature: float) -> float:
        # d NLL / d b = mean_n sum_c p_nc (z_nc - z_n[label]): where all are right no term is above 0, so its sign is exact, however flat
        above_NC = logits_NC - _of_label(logits_NC, labels_N)[:, None]
        return float((softmax(logits_NC / temperature, axis=1) * above_NC).sum(axis=1).mean())

    low, high = TEMPERATURE_BOUNDS
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    found = minimize_scalar(loss, bounds=(np.log(low), np.log(high)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def at_temperature(logits_NC: ArrayLike, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature), (N, C); the predictions stay what they are.

    Raises:
        ValueError: logits that are not finite or not (N, C), or a temperature that is not a finite number above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature has the value {temperature}; should be a finite number above 0")
    return softmax(check_logits(logits_NC) / temperature, axis=1)


def check_probabilities(probs: ArrayLike, dims: str = "NC") -> np.ndarray:
    """Return the probabilities as float64.

    Args:
        probs: probabilities of the classes, on the last axis.
        dims: a letter an axis: NC for one distribution an example, MNC for those of the members of an ensemble.

    Raises:
        ValueError: wrong number of axes, an empty one or fewer than two classes; a value that is not finite or is negative; a row that does
            not sum to 1 within `SUM_TOLERANCE`.
    """
    array = np.asarray(probs, dtype=np.float64)
    shape = f"({', '.join(dims)})"
    if array.ndim != len(dims) or 0 in array.shape:
        raise ValueError(f"probabilities must be {shape}, none of them 0; their shape is {array.shape}")
    if array.shape[-1] < 2:
        raise ValueError(f"probabilities must be {shape} with two classes or more, are {array.shape}; give both columns of a binary task")
    bad = ~((array >= 0) & (array <= 1 + SUM_TOLERANCE))
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"the probability at {at} is {array[at]}; should be a number from 0 to 1")
    off = abs(array.sum(axis=-1) - 1) > SUM_TOLERANCE
    if off.any():
        at = tuple(int(i) for i in np.argwhere(off)[0])
        raise ValueError(f"the probabilities at {at} sum to {array[at].sum():.6g}; should sum to 1 within {SUM_TOLERANCE:g} (logits?)")
    return array


def check_labels(labels_N: ArrayLike, examples: int, classes: int) -> np.ndarray:
    """Return the labels as an integer array.

    Raises:
        ValueError: not one label an example, not integers, or a label outside 0..classes - 1.
    """
    labels_N = np.asarray(labels_N)
    if labels_N.shape != (examples,):
        raise ValueError(f"labels must be (N,) with N = {examples}, one an example; their shape is {labels_N.shape}")
    if labels_N.dtype.kind not in "iu":
        raise ValueError(f"labels are of type {labels_N.dtype}; should be integers 0..{classes - 1}")
    outside_N = (labels_N < 0) | (labels_N >= classes)
    if outside_N.any():
        at = int(outside_N.argmax())
        raise ValueError(f"the label of example {at} is {labels_N[at]}; should be in 0..{classes - 1}")
    return labels_N


def check_logits(logits_NC: ArrayLike) -> np.ndarray:
    """Return the logits as float64.

    Raises:
        ValueError: not (N, C) with N >= 1 and C >= 2, or a value that is not finite.
    """
    logits_NC = np.asarray(logits_NC, dtype=np.float64)
    if logits_NC.ndim != 2 or not len(logits_NC) or logits_NC.shape[1] < 2:
        raise ValueError(f"logits must be (N, C) with N >= 1 and C >= 2; their shape is {logits_NC.shape}")
    if not np.isfinite(logits_NC).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(logits_NC))[0])
        raise ValueError(f"the logit at {at} is {logits_NC[at]}; should be finite")
    return logits_NC


def _checked(probs_NC: ArrayLike, labels_N: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    probs_NC = check_probabilities(probs_NC)
    return probs_NC, check_labels(labels_N, *probs_NC.shape)


def _of_label(values_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    return values_NC[np.arange(len(labels_N)), labels_N]


def _entropy(probs: np.ndarray) -> np.ndarray:
    # a sum a hair above 1 can make the entropy of a certain row slightly negative
    return entr(probs).sum(axis=-1).clip(min=0)


def _bins(bins: int) -> int:
    if bins < 1:
        raise ValueError(f"bins has the value {bins}; should be 1 or more")
    return bins


def _equal_width(values_N: np.ndarray, bins: int) -> np.ndarray:
    # comparing with the edges is exact where 0.29 * 100 is not
    return np.searchsorted(np.arange(_bins(bins)) / bins, values_N, side="right") - 1


def _reliability(values_N: np.ndarray, hit_N: np.ndarray, bin_N: np.ndarray, lower_B: np.ndarray, upper_B: np.ndarray) -> Reliability:
    bins = len(lower_B)
    count_B = np.bincount(bin_N, minlength=bins)
    with np.errstate(invalid="ignore"):
        value_B, hit_B = (np.bincount(bin_N, weights=weights_N, minlength=bins) / count_B for weights_N in (values_N, hit_N))
    return Reliability(lower_B, upper_B, count_B, value_B, hit_B)


def _weighted_gap(table: Reliability) -> float:
    return float(np.nansum(table.count_B * abs(table.confidence_B - table.accuracy_B)) / table.count_B.sum())

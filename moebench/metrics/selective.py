"""Selective prediction: how the error falls when the least confident examples are left to somebody else.

N examples. Each function takes `confidence_N`, larger is surer (the largest mean probability, or the negative of an OOD score), and
`correct_N`, whether the prediction is right. Coverage is the share that is answered, the most confident first; risk is the error in it.

Ties: examples of equal confidence share the mean of their errors, so every value is the exact expectation over random orders among equals
and independent of the order of the examples. A point within such a group can only be had by drawing lots; `coverage_at_risk` leaves it out.
Every function raises ValueError for arrays that are empty, not (N,), of different lengths, for a NaN confidence and for `correct_N` that is
not boolean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class RiskCoverage(NamedTuple):
    """Coverage 1/N, 2/N .. 1 and the risk there; `is_threshold_N` is false within a group of equal confidences, true at its end."""

    coverage_N: np.ndarray
    risk_N: np.ndarray
    is_threshold_N: np.ndarray


class AccuracyRejection(NamedTuple):
    """Share of rejected examples 0, 1/N .. 1 - 1/N and the accuracy over the rest."""

    rejected_N: np.ndarray
    accuracy_N: np.ndarray


def risk_coverage(confidence_N: ArrayLike, correct_N: ArrayLike) -> RiskCoverage:
    """The risk-coverage curve: risk_i = error of the i most confident examples, at coverage i / N (Geifman & El-Yaniv, arXiv 1705.08500).

    Risk in 0..1, lower is better; the last one is the error over all examples. Nothing is defined at coverage 0.
    """
    confidence_N, correct_N = _checked(confidence_N, correct_N)
    _, group_N, size_G = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    error_G = np.bincount(group_N, weights=~correct_N) / size_G
    answered_N = np.arange(1, len(correct_N) + 1)
    return RiskCoverage(
        coverage_N=answered_N / len(correct_N),
        risk_N=np.repeat(error_G, size_G).cumsum() / answered_N,
        is_threshold_N=np.isin(answered_N, size_G.cumsum()),
    )


def aurc(confidence_N: ArrayLike, correct_N: ArrayLike) -> float:
    """Area under the risk-coverage curve, 1/N sum_i risk_i, in 0..1; lower is better.

    The plain mean of the N risks (Geifman et al., arXiv 1805.08206). torch-uncertainty takes the trapezoid over coverage 1/N..1 instead,
    over 1 - 1/N; the two differ by the order of 1/N.
    """
    return float(risk_coverage(confidence_N, correct_N).risk_N.mean())


def excess_aurc(confidence_N: ArrayLike, correct_N: ArrayLike) -> float:
    """`aurc` minus that of the best order, all right answers before all wrong ones, in 0..1; lower is better, 0 is a perfect order.

    Geifman et al., arXiv 1805.08206, with the exact best value in place of the paper's approximation r + (1 - r) ln(1 - r), r the error.
    """
    _, correct_N = _checked(confidence_N, correct_N)
    return max(0.0, aurc(confidence_N, correct_N) - aurc(correct_N, correct_N))


def coverage_at_risk(confidence_N: ArrayLike, correct_N: ArrayLike, risk: float) -> float:
    """The largest coverage whose risk is at most `risk`, in 0..1; higher is better. NaN if there is none: 0 would be a curve's point.

    Only coverages that a threshold on the confidence can have count. The risk may be higher at smaller coverages.

    Raises:
        ValueError: see the top of the file; or the risk is outside 0..1.
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk has the value {risk}; should be a fraction, 0 to 1")
    curve = risk_coverage(confidence_N, correct_N)
    allowed_N = curve.is_threshold_N & (curve.risk_N <= risk)
    return float(curve.coverage_N[allowed_N][-1]) if allowed_N.any() else float("nan")


def accuracy_rejection(confidence_N: ArrayLike, correct_N: ArrayLike) -> AccuracyRejection:
    """The accuracy-rejection curve: accuracy over the rest when the least confident share is rejected; higher is better.

    The risk-coverage curve in other coordinates: rejected = 1 - coverage, accuracy = 1 - risk, from nothing rejected to all but one.
    """
    curve = risk_coverage(confidence_N, correct_N)
    return AccuracyRejection(1 - curve.coverage_N[::-1], 1 - curve.risk_N[::-1])


def _checked(confidence_N: ArrayLike, correct_N: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    confidence_N, correct_N = np.asarray(confidence_N, dtype=np.float64), np.asarray(correct_N)
    if confidence_N.ndim != 1 or not confidence_N.size or confidence_N.shape != correct_N.shape:
        raise ValueError(f"confidence and correct must both be (N,) with N >= 1, are {confidence_N.shape} and {correct_N.shape}")
    if correct_N.dtype != np.bool_:
        raise ValueError(f"correct is of type {correct_N.dtype}; should be bool: whether each prediction is right")
    if np.isnan(confidence_N).any():
        raise ValueError(f"the confidence of example {int(np.isnan(confidence_N).argmax())} is NaN; should be a number")
    return confidence_N, correct_N

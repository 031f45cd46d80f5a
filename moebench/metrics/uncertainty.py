"""How sure a model is and how rightly: probabilities of classes become measures, all in fractions; and how members differ.

M members, N examples, C classes.
"""

from __future__ import annotations

import numpy as np

from moebench.metrics import calibration, diversity, selective

MEASURES = ("nll", "brier", "ece", "signed_ece", "adaptive_ece", "aurc", "nll_scaled", "ece_scaled")
"""What `measures` returns."""
TEMPERATURE = "temperature"
AT_BOUND = "temperature_at_bound"
"""Beside a temperature, and 1, where it is a bound of the search because the validation set determines none; elsewhere there is none."""
BOUND = "temperature at a bound ({:g} or {:g}), as the validation set determines none".format(*calibration.TEMPERATURE_BOUNDS)
"""What the note of a table says of it."""
DIVERSITY = ("disagreement", "mutual_information")
"""What `differing` returns."""
FLOOR = float(np.finfo(np.float32).tiny)
"""Smallest normal float32: a smaller probability counts as it in logarithms, so that an example costs at most 87.3 nats."""


def fit_temperature(probs_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Fit the temperature of softmax(ln p / T) to validation probabilities; those below `FLOOR` count as it."""
    return calibration.fit_temperature(_logits(probs_NC), labels_N)


def fitted(probs_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Fit the temperature: `TEMPERATURE` → what `fit_temperature` finds, and `AT_BOUND` → 1 where that is a bound."""
    temperature = fit_temperature(probs_NC, labels_N)
    return {TEMPERATURE: temperature} | ({AT_BOUND: 1.0} if temperature in calibration.TEMPERATURE_BOUNDS else {})


def measures(probs_NC: np.ndarray, labels_N: np.ndarray, temperature: float) -> dict[str, float]:
    """Judge probabilities: `MEASURES` → value. See ``docs/METRICS.md``.

    Args:
        probs_NC: the probabilities; of an ensemble their mean over members.
        labels_N: numbers of the right classes.
        temperature: what `fit_temperature` found, for ``nll_scaled`` and ``ece_scaled``, those of softmax(ln p / temperature).
    """
    scaled_NC = calibration.at_temperature(_logits(probs_NC), temperature)
    return {
        "nll": calibration.nll(probs_NC, labels_N, FLOOR),
        "brier": calibration.brier(probs_NC, labels_N),
        "ece": calibration.ece(probs_NC, labels_N),
        "signed_ece": calibration.signed_ece(probs_NC, labels_N),
        "adaptive_ece": calibration.adaptive_ece(probs_NC, labels_N),
        "aurc": selective.aurc(probs_NC.max(axis=1), probs_NC.argmax(axis=1) == labels_N),
        "nll_scaled": calibration.nll(scaled_NC, labels_N, FLOOR),
        "ece_scaled": calibration.ece(scaled_NC, labels_N),
    }


def differing(probs_MNC: np.ndarray) -> dict[str, float]:
    """Judge how much two members or more differ: `DIVERSITY` → value; ``mutual_information`` is the mean over examples."""
    return {
        "disagreement": diversity.disagreement(probs_MNC),
        "mutual_information": float(diversity.mutual_information(probs_MNC).mean()),
    }


def _logits(probs_NC: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(probs_NC, FLOOR)))

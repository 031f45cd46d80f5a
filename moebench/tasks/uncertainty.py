"""How sure a fine-tuned model is and how rightly: test rows and the probabilities of pairs or words become measures. All in fractions.

M members, N examples (pairs; in tagging words, over all rows in their order), C classes, in the order of the task's labels.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from moebench.catalogue import Task
from moebench.errors import MoebenchError
from moebench.metrics import calibration, diversity, selective

Row = dict[str, Any]
KINDS = ("pair", "tagging")
"""Kinds of task with probabilities of classes."""
MEASURES = ("nll", "brier", "ece", "signed_ece", "adaptive_ece", "aurc", "nll_scaled", "ece_scaled")
"""What `measures` returns."""
TEMPERATURE = "temperature"
DIVERSITY = ("disagreement", "mutual_information")
"""What `differing` returns."""
FLOOR = float(np.finfo(np.float32).tiny)
"""Smallest normal float32: a smaller probability counts as it in logarithms, so that an example costs at most 87.3 nats."""


def labels(task: Task, gold: list[Row]) -> np.ndarray:
    """Return the numbers of the right classes, (N,): of pairs, or of the words of all rows.

    Raises:
        MoebenchError: a label that the task does not have.
    """
    number = {label: index for index, label in enumerate(task.labels)}
    named = [row["label"] for row in gold] if task.kind == "pair" else list(chain.from_iterable(row["tags"] for row in gold))
    if unknown := sorted(set(named) - number.keys()):
        raise MoebenchError(f"{unknown[0]!r} is no label of task {task.name!r}; labels are: {', '.join(task.labels)}")
    return np.array([number[label] for label in named], dtype=np.int64)


def read(path: Path, task: Task, gold: list[Row]) -> np.ndarray:
    """Read the probabilities that a run left for ``gold``, (M, N, C): the file has (N, C) where the run is of a single model.

    Raises:
        MoebenchError: a damaged file, another number of rows than examples or of columns than classes, or rows that are no distribution.
    """
    try:
        probs = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MoebenchError(f"{path}: not a readable array ({error}); delete the run's folder and run again") from error
    expected = (len(labels(task, gold)), len(task.labels))
    if probs.ndim not in (2, 3) or probs.shape[-2:] != expected:
        what = "pairs" if task.kind == "pair" else "words"
        raise MoebenchError(
            f"{path}: has the shape {probs.shape}; should be {expected}, the {what} of the data and the classes of task {task.name!r},"
            " behind the members of an ensemble"
        )
    try:
        return calibration.check_probabilities(probs, "MNC"[-probs.ndim :]).reshape(-1, *expected)
    except ValueError as error:
        raise MoebenchError(f"{path}: {error}") from error


def fit_temperature(probs_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Fit the temperature of softmax(ln p / T) to validation probabilities; those below `FLOOR` count as it."""
    return calibration.fit_temperature(_logits(probs_NC), labels_N)


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


def predictions(task: Task, gold: list[Row], probs_NC: np.ndarray) -> list[Row]:
    """Return the most probable label of each pair, or tags of each row, as `moebench.tasks.scoring` reads them."""
    best = iter([task.labels[number] for number in probs_NC.argmax(axis=1)])
    if task.kind == "pair":
        return [{"id": row["id"], "prediction": next(best)} for row in gold]
    return [{"id": row["id"], "prediction": [next(best) for _ in row["tags"]]} for row in gold]


def _logits(probs_NC: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(probs_NC, FLOOR)))

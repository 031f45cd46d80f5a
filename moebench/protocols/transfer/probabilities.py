"""The probabilities that a run left for the pairs or words of test rows, read and checked.

M members, N examples (pairs; in tagging words, over all rows in their order), C classes, in the order of the task's labels.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from moebench.data.catalogue import Task
from moebench.errors import MoebenchError
from moebench.files import read_array
from moebench.metrics import calibration

Row = dict[str, Any]
KINDS = ("pair", "tagging")
"""Kinds of task with probabilities of classes."""


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
    probs = read_array(path)
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


def predictions(task: Task, gold: list[Row], probs_NC: np.ndarray) -> list[Row]:
    """Return the most probable label of each pair, or tags of each row, as `moebench.protocols.transfer.answers` reads them."""
    best = iter([task.labels[number] for number in probs_NC.argmax(axis=1)])
    if task.kind == "pair":
        return [{"id": row["id"], "prediction": next(best)} for row in gold]
    return [{"id": row["id"], "prediction": [next(best) for _ in row["tags"]]} for row in gold]

"""From predictions to numbers: the scores of a task in a language, a task's value, the average of a suite. All in percent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from moebench.data.catalogue import Task, standard_error
from moebench.errors import MoebenchError
from moebench.metrics import bootstrap, classification, qa, spans

Row = dict[str, Any]
GROUP = {"pair": "group", "tagging": "id", "qa": "context"}
"""Kind of task → key of a test row that rows depending on each other share."""


def score(
    task: Task, language: str, gold: list[Row], predictions: list[Row], where: str | Path = "predictions"
) -> dict[str, tuple[float, int]]:
    """Score the predictions for one task and language.

    Question answering is normalised by the task's rule and the language of the context; constructed languages, for which nobody wrote a
    rule, by the rule ``plain``. A prediction None is an unanswered question and scores 0.

    Args:
        task: the task.
        language: name of the test file, ``<context>-<question>`` for questions across languages.
        gold: the test rows.
        predictions: rows with ``id`` and ``prediction``, in any order.
        where: what a message calls the predictions, best their file.

    Returns:
        Metric → (value in 0..100, number of test rows).

    Raises:
        MoebenchError: an id is missing, unknown or there twice, or a prediction does not fit its row; the message names the first one.
            Or a test row has no gold answer.
    """
    return {metric: (value, len(gold)) for metric, (value, _) in _scored(task, language, gold, predictions, where).items()}


def score_with_errors(
    task: Task, language: str, gold: list[Row], predictions: list[Row], where: str | Path = "predictions"
) -> dict[str, tuple[float, int]]:
    """Score as `score` does, and add the uncertainty over test examples; arguments and errors are the same.

    Groups of dependent examples are resampled (`moebench.metrics.bootstrap`): pairs of one premise (``group``), questions on one context,
    a tagged sentence by itself.

    Returns:
        What `score` returns, and ``<metric>_bootstrap_se`` → (standard error in percent points, number of groups); without it where all
        examples are one group.
    """
    found = {}
    groups = [row[GROUP[task.kind]] for row in gold]
    for metric, (value, sums_N2) in _scored(task, language, gold, predictions, where).items():
        sums_G2 = bootstrap.group_sums(sums_N2, groups)
        found[metric] = (value, len(gold))
        if len(sums_G2) > 1:
            found[standard_error(metric)] = (100 * bootstrap.standard_error(sums_G2), len(sums_G2))
    return found


def _scored(
    task: Task, language: str, gold: list[Row], predictions: list[Row], where: str | Path
) -> dict[str, tuple[float, list[tuple[float, float]]]]:
    """Metric → value in percent, and numerator and denominator of each example; 100 × the ratio of their sums is the value."""
    predicted = _in_order(task, gold, predictions, where)
    if task.kind == "pair":
        labels = [row["label"] for row in gold]
        right = [(float(a == b), 1.0) for a, b in zip(labels, predicted, strict=True)]
        return {"accuracy": (100 * classification.accuracy(labels, predicted), right)}
    if task.kind == "tagging":
        counts = spans.sentence_counts([row["tags"] for row in gold], predicted)
        return {"f1": (100 * spans.span_scores(counts).f1, [(2.0 * one.correct, float(one.predicted + one.gold)) for one in counts])}
    for row in gold:
        if not any(answer["text"].strip() for answer in row["answers"]):
            raise MoebenchError(f"test row {row['id']!r} of task {task.name!r} ({language}) has no gold answer: its labels are stripped")
    answers = [[answer["text"] for answer in row["answers"]] for row in gold]
    questions = qa.question_scores(predicted, answers, cast(qa.Rule, task.rule), language.split("-")[0])
    means = qa.mean_scores(questions)
    return {
        "f1": (100 * means.f1, [(one.f1, 1.0) for one in questions]),
        "em": (100 * means.em, [(one.em, 1.0) for one in questions]),
    }


def _in_order(task: Task, gold: list[Row], predictions: list[Row], where: str | Path) -> list[Any]:
    """Return the predictions in the order of the test rows."""
    if not gold:
        raise MoebenchError(f"{where}: task {task.name!r} has no test rows to score against")
    for number, row in enumerate(predictions, start=1):
        if not {"id", "prediction"} <= row.keys():
            raise MoebenchError(f"{where}: row {number} should have the keys id and prediction, has: {', '.join(row) or 'none'}")
    times = Counter(row["id"] for row in predictions)
    asked = {row["id"] for row in gold}
    for row in predictions:
        if times[row["id"]] > 1:
            raise MoebenchError(f"{where}: id {row['id']!r} is there {times[row['id']]} times; every test row needs one prediction")
        if row["id"] not in asked:
            raise MoebenchError(f"{where}: id {row['id']!r} is not among the {len(gold)} test rows of task {task.name!r}")
    by_id = {row["id"]: row["prediction"] for row in predictions}
    for row in gold:
        if row["id"] not in by_id:
            raise MoebenchError(f"{where}: no prediction for id {row['id']!r}, one of {len(asked - by_id.keys())} missing of {len(gold)}")
        complaint = _misfit(task, row, by_id[row["id"]])
        if complaint:
            raise MoebenchError(f"{where}: id {row['id']!r}: {complaint}")
    return [by_id[row["id"]] for row in gold]


def _misfit(task: Task, row: Row, prediction: Any) -> str:
    """Say what is wrong with the shape of a prediction, or nothing."""
    if task.kind == "qa":
        return "" if prediction is None or isinstance(prediction, str) else f"an answer is a text, this is {prediction!r}"
    labels = [prediction]
    if task.kind == "tagging":
        count = len(prediction) if isinstance(prediction, list) else repr(prediction)
        if count != len(row["tags"]):
            return f"{count} tags for {len(row['tags'])} words"
        labels = prediction
    wrong = [label for label in labels if label not in task.labels]
    return f"{wrong[0]!r} is no label of task {task.name!r}; labels are: {', '.join(task.labels)}" if wrong else ""


def averaged_languages(task: Task, languages: Iterable[str]) -> list[str]:
    """Return the languages that enter the task's value: for MLQA only those whose question and context share one, as in XTREME."""
    return [language for language in languages if task.name != "mlqa" or "-" not in language]


def task_value(task: Task, per_language: dict[str, dict[str, float]], languages: Iterable[str]) -> float:
    """Mean over languages of the mean over the task's metrics; for question answering (F1 + EM) / 2.

    Args:
        task: the task.
        per_language: language → metric → value.
        languages: every language that has a test set; those of `averaged_languages` must all be there.

    Raises:
        MoebenchError: a language or a metric is missing or not a number; the message lists the languages.
    """
    expected = averaged_languages(task, languages)
    values = {
        language: sum(per_language.get(language, {}).get(metric, math.nan) for metric in task.metrics) / len(task.metrics)
        for language in expected
    }
    return _mean(values, f"task {task.name!r}: no value for language")


def suite_average(values: dict[str, float], tasks: Iterable[str]) -> float:
    """Plain mean over tasks.

    Args:
        values: task → value.
        tasks: every task of the suite.

    Raises:
        MoebenchError: a task is missing or not a number; the message lists them.
    """
    return _mean({task: values.get(task, math.nan) for task in tasks}, "average over tasks: no value for task")


def _mean(values: dict[str, float], complaint: str) -> float:
    missing = [name for name, value in values.items() if not math.isfinite(value)]
    if missing or not values:
        raise MoebenchError(f"{complaint} {', '.join(missing) or '(none is expected)'}; an average needs all of: {', '.join(values)}")
    return sum(values.values()) / len(values)

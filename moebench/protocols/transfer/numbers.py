"""From records to the numbers of a paper's tables: pure functions, one row a cell. Published values stand in columns of their own.

A task's value is the mean over its languages, the pivot included (XTREME's score); ``zero_shot`` leaves the pivot out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from moebench.data import catalogue
from moebench.data.catalogue import TASKS, Task
from moebench.protocols.transfer import answers
from moebench.protocols.transfer.config import Method
from moebench.results import statistics, tables
from moebench.results.statistics import Bar, deviation, mean
from moebench.results.tables import differences, frame, rows_of

SUITE = tuple(task.name for task in TASKS.values() if not task.constructed)
"""The real tasks; their average is XTREME's only over all seven."""
AVERAGE = "average"


@dataclass(frozen=True, kw_only=True)
class Expected(tables.Expected):
    """What the tables should hold.

    Attributes:
        pivots: task → training language; empty while nothing is measured.
        trained_on: task → training set.
        tasks: names of the tasks.
        pretraining: whether the setting pre-trains at all.
    """

    methods: Mapping[str, Method]
    pivots: Mapping[str, str]
    trained_on: Mapping[str, str]
    tasks: tuple[str, ...]
    pretraining: bool

    @property
    def compared(self) -> list[str]:
        """Methods that compete: the baseline, then the others by name."""
        return [name for name in super().compared if self.methods[name].pretrained or name == self.baseline]

    @property
    def floors(self) -> list[str]:
        """Methods fine-tuned from random weights: what pre-training is worth, never competitors."""
        return sorted(name for name, method in self.methods.items() if not method.pretrained)

    @property
    def dense(self) -> str | None:
        """The pretrained model without a sparse layer, which decides whether a constructed task counts."""
        return next((name for name in self.compared if self.methods[name].layer == "none"), None)


@dataclass
class Scores:
    """Seed → score of one method or shallow baseline, in percent.

    ``error`` is the standard error of ``value`` over test examples, where the records have it; ``lacking`` says, per seed, which languages
    have no number.
    """

    value: dict[int, float] = field(default_factory=dict)
    pivot: dict[int, float] = field(default_factory=dict)
    zero_shot: dict[int, float] = field(default_factory=dict)
    error: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    lacking: dict[int, str] = field(default_factory=dict)


Cells = dict[tuple[str, str], dict[int, dict[str, dict[str, float]]]]
"""(stage, method) → seed → language → metric → value."""


def _cells(records: pd.DataFrame) -> Cells:
    cells: Cells = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for row in rows_of(records):
        cells[row["stage"], row["method"]][row["seed"]][row["language"]][row["metric"]] = row["value"]
    return cells


def task_scores(records: pd.DataFrame, task: Task, pivot: str | None) -> dict[tuple[str, str], Scores]:
    """Average a task's records over languages: (stage, method) → scores.

    A seed counts only with every language and metric that any run or baseline has for this task; one that lacks some gets no value.
    The standard error is averaged like the value, over the same languages. That is an upper bound, reached where the errors of languages
    and metrics go together: test sets are partly translations of each other, so their independence cannot be taken for granted.
    """
    tested = records[(records["task"] == task.name) & records["stage"].isin(["finetune", "baseline"])]
    mine = tested[tested["metric"].isin(task.metrics)]
    cells = _cells(mine)
    metric_of = {catalogue.standard_error(metric): metric for metric in task.metrics}
    errors = _cells(tested[tested["metric"].isin(metric_of)].replace({"metric": metric_of}))
    languages = sorted(set(mine["language"]))
    averaged = answers.averaged_languages(task, languages)
    others = [language for language in languages if language != pivot]
    result = {}
    for key in sorted(cells):
        scores = result[key] = Scores()
        for seed, values in sorted(cells[key].items()):
            lacking = [language for language in languages if values.get(language, {}).keys() != set(task.metrics)]
            if lacking:
                scores.lacking[seed] = ", ".join(lacking)
                continue
            scores.value[seed] = answers.task_value(task, values, languages)
            if pivot is not None and pivot in languages:
                scores.pivot[seed] = answers.task_value(task, values, [pivot])
            if answers.averaged_languages(task, others):
                scores.zero_shot[seed] = answers.task_value(task, values, others)
            found = errors[key][seed]
            if all(found[language].keys() == set(task.metrics) for language in averaged):
                scores.error[seed] = answers.task_value(task, found, languages)
            for metric in task.metrics:
                scores.metrics[metric][seed] = mean([values[language][metric] for language in averaged])
    return result


def bar(scores: Mapping[tuple[str, str], Scores], dense: str | None) -> Bar:
    """Decide by `moebench.results.statistics.bar` whether a task counts: by the dense model and the shallow baselines, zero-shot.

    Args:
        scores: (stage, method) → scores of one task.
        dense: the dense method; none if the paper has none here.
    """
    shallow = {name: mean(list(one.zero_shot.values())) for (stage, name), one in scores.items() if stage == "baseline" and one.zero_shot}
    return statistics.bar(list(scores.get(("finetune", dense or ""), Scores()).zero_shot.values()), shallow)


def averaged_tasks(expected: Expected, verdicts: Mapping[str, Bar]) -> tuple[list[str], str]:
    """Return the tasks of the average, and why there is no average (empty if there is one).

    Constructed tasks enter where they clear the bar; real ones all seven or not at all.
    """
    if any(catalogue.task(name).constructed for name in expected.tasks):
        counted = [name for name in expected.tasks if verdicts[name].verdict == "yes"]
        return counted, "" if counted else "no task clears the bar"
    lacking = [name for name in SUITE if name not in expected.tasks]
    return list(expected.tasks), f"the average needs all seven tasks; this profile lacks {', '.join(lacking)}" if lacking else ""


def average_scores(per_task: Mapping[str, Scores]) -> Scores:
    """Average over tasks, seed by seed; a seed counts only where every task has it."""
    scores, parts = Scores(), list(per_task.values())
    for source, target in (("value", scores.value), ("pivot", scores.pivot), ("zero_shot", scores.zero_shot)):
        for seed in sorted(set.intersection(*(set(getattr(part, source)) for part in parts))):
            target[seed] = answers.suite_average({name: getattr(part, source)[seed] for name, part in per_task.items()}, per_task)
    return scores


TABLE1_COLUMNS = (
    *("section", "task", "stands_for", "method", "label", "value", "sd", "n_seeds", "bootstrap_se", "f1", "em"),
    *("pivot", "pivot_sd", "zero_shot", "zero_shot_sd", "difference", "ci_low", "ci_high", "p", "p_holm", "shallow", "shallow_zero_shot"),
    *("clears_bar", "published", "published_where", "note"),
)


def table1_xtreme(records: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """Zero-shot transfer, the shape of X-MoE's Table 1: a row per section, task and method, and one per method for the average.

    Columns: ``section`` is ``compared``, ``floor`` (fine-tuned from random weights) or ``shallow`` (baselines); ``value`` the mean over
    seeds of the mean over languages (for question answering of (F1 + EM) / 2), ``sd`` its sample deviation over ``n_seeds``;
    ``bootstrap_se`` the mean over seeds of the standard error over test examples, an upper bound (`task_scores`), empty where the records
    have none and for the average; ``pivot`` and ``zero_shot`` the means over seeds of the training language and of the others, ``pivot_sd``
    and ``zero_shot_sd`` their deviations; ``difference`` to the baseline method with its 95 % t interval, ``p`` and, adjusted over the
    compared methods of the task, ``p_holm``; ``shallow`` the best shallow baseline, ``clears_bar`` whether the task counts; ``published``
    the paper's own value, as printed;
    ``note`` why something is empty.
    """
    per_task = {name: task_scores(records, catalogue.task(name), expected.pivots.get(name)) for name in expected.tasks}
    verdicts = {name: bar(scores, expected.dense) for name, scores in per_task.items()}
    counted, no_average = averaged_tasks(expected, verdicts)
    rows: list[dict[str, Any]] = []
    for name in expected.tasks:
        task, verdict = catalogue.task(name), verdicts[name]
        facts: dict[str, Any] = {"task": name, "stands_for": task.stands_for, "clears_bar": verdict.verdict}
        facts |= {"shallow": verdict.shallow, "shallow_zero_shot": verdict.shallow_zero_shot}
        mine = {method: per_task[name].get(("finetune", method), Scores()) for method in expected.methods}
        for row in _method_rows(expected, mine, task.stands_for):
            rows.append(
                row | facts | {"note": "; ".join(filter(None, (_holes(expected, mine[row["method"]], task, row["method"]), row["note"])))}
            )
        for (stage, method), scores in per_task[name].items():
            if stage == "baseline":
                lacking = f"lacks {scores.lacking[0]}" if scores.lacking else ""
                rows.append({"section": "shallow", "method": method, "label": method} | _summary(scores) | facts | {"note": lacking})
    averages = {}
    for method in expected.methods:
        parts = {name: per_task[name].get(("finetune", method), Scores()) for name in counted}
        averages[method] = Scores() if no_average else average_scores(parts)
    whole = {catalogue.task(name).stands_for for name in counted} == {TASKS[name].stands_for for name in SUITE}
    for row in _method_rows(expected, averages, "Avg" if whole else ""):
        note = no_average or ("" if row["n_seeds"] == len(expected.seeds) else "not every seed has every task")
        rows.append(
            row | {"task": AVERAGE, "stands_for": "Avg", "note": "; ".join(filter(None, (note, "" if no_average else row["note"])))}
        )
    order = {"compared": 0, "floor": 1, "shallow": 2}
    rows.sort(key=lambda row: order[row["section"]])  # stable: tasks stay in the profile's order, methods in the paper's
    return frame(rows, TABLE1_COLUMNS)


def _summary(scores: Scores) -> dict[str, Any]:
    """Mean and deviation over seeds of one cell."""

    def middle(values: Mapping[int, float]) -> float | None:
        return mean(list(values.values())) if values else None

    return {
        "value": middle(scores.value),
        "sd": deviation(list(scores.value.values())),
        "n_seeds": len(scores.value),
        "bootstrap_se": middle(scores.error),
        "f1": middle(scores.metrics["f1"]) if "em" in scores.metrics else None,
        "em": middle(scores.metrics["em"]) if "em" in scores.metrics else None,
        "pivot": middle(scores.pivot),
        "pivot_sd": deviation(list(scores.pivot.values())),
        "zero_shot": middle(scores.zero_shot),
        "zero_shot_sd": deviation(list(scores.zero_shot.values())),
    }


def _method_rows(expected: Expected, scores: Mapping[str, Scores], column: str) -> list[dict[str, Any]]:
    """Rows of the methods for one task or for the average; ``column`` is that of the published Table 1, empty for none."""
    compared = differences({name: scores[name].value for name in expected.compared}, expected.baseline)
    rows = []
    for section, names in (("compared", expected.compared), ("floor", expected.floors)):
        for name in names:
            columns, note = compared.get(name, ({}, ""))
            row = {"section": section, "method": name, "label": expected.methods[name].label} | _summary(scores[name]) | columns
            rows.append(row | _published(expected, "1", name, column) | {"note": note})
    return rows


def _published(expected: Expected, number: str, name: str, column: str) -> dict[str, str]:
    row = expected.methods[name].published
    table = expected.published.tables.get(number)
    cell = table.cell(row, column) if table else ""
    return {"published": cell, "published_where": f"{expected.about.name} Table {number}, {column}" if cell else ""}


def _holes(expected: Expected, scores: Scores, task: Task, method: str) -> str:
    """Say which seeds have no value, and which command makes the first of them."""
    empty = [seed for seed in expected.seeds if seed not in scores.value]
    if not empty:
        return ""
    said = ", ".join(f"seed {seed} lacks {scores.lacking[seed]}" if seed in scores.lacking else f"seed {seed} is missing" for seed in empty)
    return f"{said}: `{expected.make('finetune', method, empty[0], expected.trained_on[task.name])}`"


def _perplexity_cells(records: pd.DataFrame) -> tuple[dict[str, dict[int, dict[str, float]]], list[str]]:
    """Method → seed → language → perplexity, and all languages."""
    mine = records[(records["stage"] == "pretrain") & (records["task"] == "mlm") & (records["metric"] == "perplexity")]
    cells: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows_of(mine):
        cells[row["method"]][row["seed"]][row["language"]] = row["value"]
    return cells, sorted(set(mine["language"]))


def perplexities(records: pd.DataFrame, expected: Expected) -> dict[str, dict[int, float]]:
    """Competing method → seed → geometric mean over languages of the perplexity, where every language has one."""
    cells, languages = _perplexity_cells(records)
    return {
        name: {
            seed: math.exp(mean([math.log(found[language]) for language in languages]))
            for seed, found in sorted(cells.get(name, {}).items())
            if found.keys() == set(languages)
        }
        for name in expected.compared
    }


TABLE2_COLUMNS = (
    *("method", "label", "value", "sd", "n_seeds", "languages", "difference", "ci_low", "ci_high", "p", "p_holm"),
    *("published", "published_where", "note"),
)


def table2_perplexity(records: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """Masked-language-model perplexity on held-out text, the shape of X-MoE's Table 2: a row per pretrained method.

    ``value`` is the mean over seeds of the geometric mean over languages (exp of the mean over languages of the mean negative
    log-likelihood, each language with equal weight); the other columns are as in `table1_xtreme`. A method that starts from another one's
    checkpoints has no value of its own, and without pre-training no method has one: ``note`` says so.
    """
    values = perplexities(records, expected)
    cells, languages = _perplexity_cells(records)
    compared = differences(values, expected.baseline)
    rows: list[dict[str, Any]] = []
    for name in expected.compared:
        columns, note = compared.get(name, ({}, ""))
        empty = [seed for seed in expected.seeds if seed not in values[name]]
        source = expected.methods[name].pretrain_as
        if not expected.pretraining:
            note = f"profile {expected.profile} does not pre-train: models start from published weights"
        elif source:
            note = f"starts from the checkpoints of {expected.methods[source].label if source in expected.methods else source}: see there"
        elif empty:
            said = ", ".join(f"seed {seed} is {'incomplete' if seed in cells.get(name, {}) else 'missing'}" for seed in empty)
            hole = f"{said}: `{expected.make('pretrain', name, empty[0])}`"
            note = "; ".join(filter(None, (hole, note)))
        row = {"method": name, "label": expected.methods[name].label, "languages": len(languages)} | _summary(Scores(value=values[name]))
        rows.append(row | columns | _published(expected, "2", name, "Perplexity") | {"note": note})
    return frame(rows, TABLE2_COLUMNS)

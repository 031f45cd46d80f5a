"""The table of uncertainty: how far to trust the probabilities of models and ensembles, in the training language and in the others."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pandas as pd

from moebench.data import catalogue
from moebench.metrics.uncertainty import AT_BOUND, BOUND, DIVERSITY, MEASURES, TEMPERATURE
from moebench.protocols.transfer.layout import task_column
from moebench.protocols.transfer.numbers import Expected
from moebench.protocols.transfer.probabilities import KINDS
from moebench.results.rendering import Block
from moebench.results.statistics import deviation, mean
from moebench.results.tables import EMPTY, frame, number, rows_of

SCORE = "score"
SHOWN = {
    SCORE: ("score, %", 1),
    "nll": ("NLL, nats", 3),
    "ece": ("ECE", 3),
    "signed_ece": ("signed ECE", 3),
    "brier": ("Brier", 3),
    "ece_scaled": ("ECE, scaled", 3),
}
"""Measure → heading and decimals; the others stand in the CSV alone."""
SHIFTS = {"in_language": "in-language", "zero_shot": "zero-shot"}
COLUMNS = ("task", "stands_for", "method", "label", "models", "shift", "languages", "measure", "value", "sd", "n_seeds", "note")

Values = dict[tuple[str, str], dict[int, dict[str, dict[str, float]]]]
"""(stage, method) → seed → language → measure → value."""


def table4_uncertainty(records: pd.DataFrame, expected: Expected, tasks: tuple[str, ...] = ()) -> pd.DataFrame:
    """Judge the probabilities of the classes, in the training language and in the others: one row a task, method, shift and measure.

    Args:
        records: all records of the paper.
        expected: with the methods of the main tables and the ensembles within one model.
        tasks: the tasks that these ensembles are fine-tuned on.

    Returns:
        Rows with `COLUMNS`, of the tasks that have such records. ``models``: 1, or how many members an ensemble has, within its models and
        over seeds; ensembles over seeds follow the methods. ``shift``: ``in_language``, the training language's test set; ``zero_shot``,
        the mean over the other languages; ``validation``, where the temperature was fitted. ``languages``: how many. ``measure``: ``score``
        is the task's own, in percent; the others are those of ``docs/METRICS.md``, fractions. ``value`` is the mean over ``n_seeds`` seeds,
        ``sd`` their sample deviation; an ensemble over seeds has a single value and no number of seeds. A seed counts only with every
        measure in every language that any model has; ``note`` says which ones do not, and which temperatures are at a bound.
    """
    rows: list[dict[str, Any]] = []
    for name in expected.tasks:
        task, pivot = catalogue.task(name), expected.pivots.get(name)
        mine = records[(records["task"] == name) & records["stage"].isin(["finetune", "ensemble"])]
        languages = sorted(set(mine[mine["metric"] == "nll"]["language"]))
        if task.kind not in KINDS or pivot is None or not languages:
            continue
        values: Values = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
        for row in rows_of(mine):
            measure = SCORE if row["metric"] == task.metrics[0] else row["metric"]
            values[row["stage"], row["method"]][row["seed"]][row["language"]][measure] = row["value"]
        shifts = {
            "in_language": [language for language in languages if language == pivot],
            "zero_shot": [language for language in languages if language != pivot],
        }
        for stage in ("finetune", "ensemble") if len(expected.seeds) > 1 else ("finetune",):
            for method in [*expected.compared, *expected.floors]:
                if expected.methods[method].table == "ensembles" and name not in tasks:
                    continue
                label, models = expected.methods[method].label, expected.methods[method].members
                if models > 1:
                    label += f", {models} members"
                if stage == "ensemble":
                    label, models = f"{label}, ensemble of {len(expected.seeds)} seeds", models * len(expected.seeds)
                of_shift = (SCORE, *MEASURES, *(DIVERSITY if models > 1 else ()))
                seeds = {
                    seed: found
                    for seed, found in sorted(values[stage, method].items())
                    if all(measure in found[language] for language in languages for measure in of_shift)
                }
                row = {"task": name, "stands_for": task.stands_for, "method": method, "label": label, "models": models}
                row["note"] = _hole(expected, name, method, list(seeds))
                if stage == "ensemble":
                    row["note"] = "" if seeds else "an ensemble takes the probabilities of every seed"
                for shift, chosen in shifts.items():
                    for measure in of_shift:
                        means = [mean([found[language][measure] for language in chosen]) for found in seeds.values()] if chosen else []
                        rows.append(row | {"shift": shift, "languages": len(chosen), "measure": measure} | _summary(means, stage))
                fitted = [found[pivot][TEMPERATURE] for found in seeds.values() if TEMPERATURE in found[pivot]]
                if bounded := [f"seed {seed}" for seed, found in seeds.items() if AT_BOUND in found[pivot]]:
                    bound = BOUND if stage == "ensemble" else f"{BOUND}: {', '.join(bounded)}"
                    row["note"] = "; ".join(filter(None, (row["note"], bound)))
                rows.append(row | {"shift": "validation", "languages": 1, "measure": TEMPERATURE} | _summary(fitted, stage))
    return frame(rows, COLUMNS)


def _summary(values: list[float], stage: str) -> dict[str, Any]:
    if stage == "ensemble":
        return {"value": values[0] if values else None}
    return {"value": mean(values) if values else None, "sd": deviation(values), "n_seeds": len(values)}


def _hole(expected: Expected, task: str, method: str, seeds: list[int]) -> str:
    lacking = [seed for seed in expected.seeds if seed not in seeds]
    if not lacking:
        return ""
    said = ", ".join(f"seed {seed}" for seed in lacking)
    make = expected.make("finetune", method, lacking[0], expected.trained_on[task])
    return f"no probabilities of {said}: `{make}`"


def table4_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `table4_uncertainty`: per task one table in-language and one zero-shot, or the sentence that says why there is none."""
    rows = rows_of(table)
    if not rows:
        return [Block("", (_why_empty(expected),))]
    several = any(method.members > 1 for method in expected.methods.values())
    blocks = [Block("", (*MEANING, MEMBERS) if several else MEANING)]
    for name in dict.fromkeys(row["task"] for row in rows):
        for shift, heading in SHIFTS.items():
            mine = [row for row in rows if (row["task"], row["shift"]) == (name, shift) and row["languages"]]
            if not mine:
                continue
            where = f"`{expected.pivots[name]}`" if shift == "in_language" else f"mean over {mine[0]['languages']} languages"
            cells: dict[str, dict[str, str]] = defaultdict(dict)
            for row in mine:
                cells[row["label"]][row["measure"]] = _cell(row)
            lines = tuple((label, *(found[measure] for measure in SHOWN)) for label, found in cells.items())
            header = ("method", *(column for column, _ in SHOWN.values()))
            blocks.append(Block(f"{task_column(name)}, {heading}: {where}", (), header, lines))
    noted = [(f"{row['label']}, `{row['task']}`", row) for row in rows if row["note"]]
    bounds = tuple(f"{what}: {row['note'].rpartition('; ')[2]}" for what, row in noted if BOUND in row["note"])
    blocks += [Block("Temperatures at a bound", (), (), (), bounds)] if bounds else []
    holes = dict.fromkeys(f"{what}: {row['note']}" for what, row in noted if row["measure"] != TEMPERATURE and row["n_seeds"] is not None)
    return [*blocks, *([Block("Empty or incomplete cells", (), (), (), tuple(holes))] if holes else [])]


MEANING = (
    "How far the probabilities of a fine-tuned model can be trusted. **In-language**: on the test set of the training language."
    " **Zero-shot**: on those of the other languages, of which training showed no labels; the mean over languages of the measure in each."
    " Mean over seeds ± sample standard deviation (number of seeds).",
    "Score is the task's own, in percent, up is better: accuracy, or in tagging F1 over spans. All else is in fractions, NLL in nats, and"
    " in tagging over words, each by itself. Down is better for NLL, ECE (15 bins of equal width) and Brier; signed ECE is best at 0, above"
    " it over-confident, below it under-confident. ECE, scaled: after temperature scaling with one temperature a model, fitted on the"
    " validation set of the training language, no other language's. On few examples ECE is too large even for a calibrated model.",
    "An ensemble of seeds predicts the mean of the probabilities of the models of all n seeds, each pre-trained and fine-tuned by itself: a"
    " single value, without deviation, at n times the cost of one model, in training and in use; empty where a seed lacks. Its temperature"
    " is its own.",
)
MEMBERS = (
    "The members of MC dropout and BatchEnsemble are passes of one fine-tuned model, which predicts the mean of their probabilities: in use"
    " a pass for each of them, in training too with BatchEnsemble, but with MC dropout one."
)


def _why_empty(expected: Expected) -> str:
    if not expected.data:
        return "Nothing is measured yet, so there is no uncertainty to show."
    named = [name for name in expected.tasks if catalogue.task(name).kind in KINDS]
    if not named:
        return f"No task of profile `{expected.profile}` has classes with probabilities: questions are answered with spans of text."
    fill = expected.make("finetune", expected.baseline, expected.seeds[0], expected.trained_on[named[0]])
    return (
        f"The fine-tuned models of profile `{expected.profile}` left no probabilities of the validation and test sets, as runs of older"
        f" versions do not: `{fill}` makes the first ones."
    )


def _cell(row: dict[str, Any]) -> str:
    if row["value"] is None or row["measure"] not in SHOWN:
        return EMPTY
    decimals = SHOWN[row["measure"]][1]
    spread = "" if row["sd"] is None else f" ± {number(row['sd'], decimals)}"
    seeds = "" if row["n_seeds"] is None else f" ({row['n_seeds']})"
    return number(row["value"], decimals) + spread + seeds

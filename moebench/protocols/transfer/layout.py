"""How a paper's tables are laid out for readers: which blocks, in which order, and what is said beside the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from moebench.data import catalogue
from moebench.protocols.transfer.numbers import AVERAGE, Expected
from moebench.results.rendering import Block
from moebench.results.statistics import LEAST_SEEDS
from moebench.results.tables import EMPTY, difference_cell, difference_meaning, measured_cell, notes, number, rows_of

GROUPS = (
    ("yes", "Zero-shot transfer", ""),
    ("no", "Does not transfer at this scale", "Not clearly better than shallow baselines: outside every average."),
    ("ceiling", "Too easy", "At the ceiling, where methods cannot differ: outside every average."),
    ("undecided", "Undecided", f"Whether these tasks count takes {LEAST_SEEDS} seeds and a shallow baseline: outside every average."),
)
"""Verdict over a task, heading and comment of its block."""

Rows = dict[tuple[str, str, str], dict[str, Any]]
"""(section, task, method) → row of the table."""


def table1_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `moebench.protocols.transfer.numbers.table1_xtreme`."""
    rows: Rows = {(row["section"], row["task"], row["method"]): row for row in rows_of(table)}
    clears = {name: rows["compared", name, expected.baseline]["clears_bar"] for name in expected.tasks}
    constructed = any(catalogue.task(name).constructed for name in expected.tasks)
    if not constructed:  # the bar decides over constructed tasks only
        clears = dict.fromkeys(expected.tasks, "yes")
    average = rows["compared", AVERAGE, expected.baseline]
    blocks = [Block("", (_meaning(expected, constructed),))]
    for verdict, heading, text in GROUPS:
        tasks = [name for name in expected.tasks if clears[name] == verdict]
        if verdict == "yes":
            said = f"No average: {average['note']}." if average["value"] is None else ""
            blocks += _group(rows, expected, heading, [*tasks, AVERAGE] if tasks else [], said)
        elif tasks:
            blocks += _group(rows, expected, heading, tasks, text)
    blocks += _uncertainty(rows, expected)
    blocks.append(_shallow(table, rows, expected, constructed))
    blocks.append(_in_language(table, rows, expected))
    if expected.floors:
        cells = _cells(rows, expected, "floor", expected.floors, [*expected.tasks, AVERAGE])
        header = ("method", *map(task_column, expected.tasks), "average")
        blocks.append(Block("Floor: fine-tuned from random weights", (), header, cells))
    blocks += _published(expected, "1", constructed)
    return [*blocks, *notes(expected), *_holes(table)]


def table2_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `moebench.protocols.transfer.numbers.table2_perplexity`."""
    text = [
        "Perplexity of masked pieces on held-out text: geometric mean over languages, each with equal weight; mean over seeds ± sample"
        f" standard deviation (number of seeds). {difference_meaning(expected)}"
    ]
    if not expected.pretraining:
        empty = f"**No pre-training happens in profile `{expected.profile}`: models start from published weights, and the table is empty.**"
        text.insert(0, empty)
    rows = tuple((row["label"], measured_cell(row, 2), difference_cell(row, 2)) for row in rows_of(table))
    block = Block("", tuple(text), ("method", "perplexity", f"difference to {expected.label}"), rows)
    return [block, *_published(expected, "2", False), *_holes(table)]


def _pivots(expected: Expected) -> str:
    """Name the training language of most tasks, and the tasks that have another."""
    if not expected.pivots:
        return ""
    usual, _ = Counter(expected.pivots.values()).most_common(1)[0]
    others = [f"{task_column(name)}: `{language}`" for name, language in expected.pivots.items() if language != usual]
    return f" `{usual}`" + (f" ({', '.join(others)})" if others else "")


def _meaning(expected: Expected, constructed: bool) -> str:
    pivot = _pivots(expected)
    return (
        f"Fine-tuned on the training language{pivot} only, tested on all {'constructed' if constructed else 'benchmark'} languages. A cell"
        " is the mean over languages and seeds in percent ± sample standard deviation over seeds (number of seeds). Question answering"
        " shows F1/EM; its ±, its differences and its share of the average are those of (F1 + EM) / 2."
        f" {difference_meaning(expected)}"
    )


def task_column(name: str) -> str:
    """Return the heading of a task; a constructed one says what it is shaped like."""
    if name == AVERAGE:
        return AVERAGE
    task = catalogue.task(name)
    return f"`{name}` ({task.stands_for})" if task.constructed else task.stands_for


def _group(rows: Rows, expected: Expected, heading: str, columns: list[str], text: str) -> list[Block]:
    """Values and differences of the methods on some tasks."""
    said = (text,) if text else ()
    if not columns:
        return [Block(heading, said)]
    header = ("method", *map(task_column, columns))
    blocks = [Block(heading, said, header, _cells(rows, expected, "compared", expected.compared, columns))]
    others = [name for name in expected.compared if name != expected.baseline]
    if others:
        lines = tuple(
            (expected.methods[name].label, *(difference_cell(rows["compared", task, name], 1) for task in columns)) for name in others
        )
        blocks.append(Block(f"{heading}: difference to {expected.label}", (), header, lines))
    return blocks


def _cells(rows: Rows, expected: Expected, section: str, names: Iterable[str], tasks: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((expected.methods[name].label, *(measured_cell(rows[section, task, name], 1) for task in tasks)) for name in names)


def _uncertainty(rows: Rows, expected: Expected) -> list[Block]:
    """Standard errors over test examples, if any method has one."""
    text = (
        "Bootstrap standard error of the task's value in percent points, that is, how much it would vary over other test examples of the"
        " same languages and not, as ± does, over training seeds: groups of dependent examples (pairs of one premise, questions on one"
        " context, single sentences) are resampled 1000 times in each language; mean over languages, an upper bound, as test sets are"
        " partly translations of each other and their errors may go together; mean over seeds."
    )
    lines = tuple(
        (
            expected.methods[name].label,
            *(EMPTY if (error := rows["compared", task, name]["bootstrap_se"]) is None else number(error, 1) for task in expected.tasks),
        )
        for name in expected.compared
    )
    if all(cell == EMPTY for _, *cells in lines for cell in cells):
        return []
    return [Block("Uncertainty over test examples", (text,), ("method", *map(task_column, expected.tasks)), lines)]


def _shallow(table: pd.DataFrame, rows: Rows, expected: Expected, constructed: bool) -> Block:
    """Per task, every shallow baseline beside the dense model."""
    dense = expected.methods[expected.dense].label if expected.dense else "no dense method"
    rule = "Zero-shot means (the training language left out)."
    if constructed:
        rule += (
            f" A constructed task counts only where {dense} beats the best shallow baseline by more than three standard deviations over"
            " seeds, and is as far from 100."
        )
    lines = []
    for name in expected.tasks:
        fact = rows["compared", name, expected.baseline]
        model = rows["compared", name, expected.dense] if expected.dense else None
        baselines = _shallow_rows(table, name)
        said = ", ".join(f"{row['label']} {number(row['zero_shot'], 1)}" for row in baselines if row["zero_shot"] is not None)
        lines.append(
            (task_column(name), said or EMPTY, _spread(model, "zero_shot", "zero_shot_sd", 1) if model else EMPTY, fact["clears_bar"])
        )
    return Block("Shallow baselines", (rule,), ("task", "shallow baselines", dense, "counts" if constructed else "beaten"), tuple(lines))


def _shallow_rows(table: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    return rows_of(table[(table["section"] == "shallow") & (table["task"] == task)])


def _in_language(table: pd.DataFrame, rows: Rows, expected: Expected) -> Block:
    """Every method in the training language, and the best shallow baseline there."""
    text = (
        "The training language alone, mean over seeds ± sample standard deviation; question answering shows (F1 + EM) / 2. What is far"
        " above the shallow baseline here and not zero-shot is learned but does not transfer."
    )
    sections = [("compared", name) for name in expected.compared] + [("floor", name) for name in expected.floors]
    lines = [
        (expected.methods[name].label, *(_spread(rows[section, task, name], "pivot", "pivot_sd", 1) for task in expected.tasks))
        for section, name in sections
    ]
    best = []
    for task in expected.tasks:
        there = [row for row in _shallow_rows(table, task) if row["pivot"] is not None]
        first = max(there, key=lambda row: row["pivot"], default=None)
        best.append(f"{first['label']} {number(first['pivot'], 1)}" if first else EMPTY)
    header = ("method", *map(task_column, expected.tasks))
    return Block("In the training language", (text,), header, (*lines, ("best shallow baseline", *best)))


def _published(expected: Expected, number: str, constructed: bool) -> list[Block]:
    table = expected.published.tables.get(number)
    if table is None:
        return []
    seeds = f"{table.seeds} seeds" if table.seeds else "number of seeds not stated"
    text = [
        f"{expected.about.name} (arXiv {expected.about.arxiv}), Table {number}: {table.title}; {seeds}, no deviations published."
        " Other data, other model sizes, other hardware: shown for orientation, in no mean and no difference above."
    ]
    if constructed:
        text.append(
            "**The constructed tasks are not these benchmarks.** The name in brackets behind a constructed task says which benchmark it is"
            " shaped like, nothing more."
        )
    rows = tuple((name, *(table.cell(name, column) or EMPTY for column in table.columns)) for name in table.rows)
    return [Block("Published, in another setting", tuple(text), ("published row", *table.columns), rows)]


def _holes(table: pd.DataFrame) -> list[Block]:
    """List why cells are empty or incomplete."""
    items = []
    for row in rows_of(table):
        if row.get("section") != "shallow" and row.get("task") != AVERAGE and row["note"] and not row["note"].startswith("no difference"):
            items.append(f"{row['label']}{', `' + row['task'] + '`' if 'task' in row else ''}: {row['note']}")
    return [Block("Empty or incomplete cells", (), (), (), tuple(items))] if items else []


def _spread(row: dict[str, Any], value: str, sd: str, decimals: int) -> str:
    if row[value] is None:
        return EMPTY
    return number(row[value], decimals) + (f" ± {number(row[sd], decimals)}" if row[sd] is not None else "")

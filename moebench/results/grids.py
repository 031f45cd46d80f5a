"""Summaries laid out for readers: a row a method, a column a measure; differences, what would decide them, holes, published tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from moebench.results.rendering import Block
from moebench.results.summaries import MOST_SEEDS, Key
from moebench.results.tables import EMPTY, Expected, difference_cell, difference_meaning, measured_cell, rows_of


@dataclass(frozen=True)
class Grids:
    """How a protocol shows the rows of `moebench.results.summaries.summary`.

    Attributes:
        measures: metric → heading and decimals.
        heading: what the column of a key is called.
        scale: metric → factor between the CSV and what readers are shown; none: 1.
    """

    measures: Mapping[str, tuple[str, int]]
    heading: Callable[[Key], str]
    scale: Mapping[str, float] = field(default_factory=dict)

    def grid(
        self, table: pd.DataFrame, heading: str, text: Sequence[str], keys: Sequence[Key], more: Sequence[tuple[str, ...]] = ()
    ) -> Block:
        """A row a method, a column a key; then ``more`` rows."""
        cells, labels = cells_of(table)
        rows = [(label, *(self.cell(cells[name, key], key[2]) for key in keys)) for name, label in labels.items()]
        return Block(heading, tuple(text), ("method", *map(self.heading, keys)), (*rows, *more))

    def cell(self, row: dict[str, Any], metric: str) -> str:
        """A summary as readers are shown it."""
        scale = self.scale.get(metric, 1)
        scaled = {column: None if row[column] is None else row[column] * scale for column in ("value", "sd")}
        return measured_cell(row | scaled, self.measures[metric][1])

    def differences(self, table: pd.DataFrame, expected: Expected, keys: Sequence[Key], text: Sequence[str] = (), what: str = "") -> Block:
        """Differences to the baseline; ``what`` ends the heading."""
        cells, labels = cells_of(table)
        rows = tuple(
            (label, *(difference_cell(cells[name, key], self.measures[key[2]][1]) for key in keys))
            for name, label in labels.items()
            if name != expected.baseline
        )
        header = ("method", *map(self.heading, keys))
        return Block(f"Difference to {expected.label}{what}", (*text, difference_meaning(expected)), header, rows)

    def undecided(self, table: pd.DataFrame, expected: Expected, keys: Sequence[Key]) -> list[Block]:
        """How many seeds would decide the differences whose interval holds 0."""
        cells, labels = cells_of(table)

        def cell(name: str, key: Key) -> str:
            row = cells[name, key]
            if row["difference"] is None:
                return EMPTY
            needed = row["seeds_needed"]
            if needed is None:
                return "decided"
            return f"> {MOST_SEEDS}" if needed > MOST_SEEDS else str(int(needed))

        rows = tuple((label, *(cell(name, key) for key in keys)) for name, label in labels.items() if name != expected.baseline)
        if not any(value not in (EMPTY, "decided") for row in rows for value in row[1:]):
            return []
        text = (
            "Seeds after which the unadjusted 95 % interval of a difference would exclude 0, if its mean and deviation over seeds stay as"
            f" they are; from {len(expected.seeds)} seeds the deviation itself is known to an order of size only. `decided`: it excludes 0"
            " now."
        )
        return [Block("Seeds that would decide", (text,), ("method", *map(self.heading, keys)), rows)]

    def holes(self, table: pd.DataFrame) -> list[Block]:
        """Why cells are empty or incomplete, a line a method and reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for row in rows_of(table):
            if note := "; ".join(part for part in str(row["note"]).split("; ") if part and not part.startswith("no difference")):
                found.setdefault((row["label"], note), []).append(self.heading((row["task"], row["language"], row["metric"])))
        items = tuple(
            f"{label}, {', '.join(what) if len(what) <= 3 else f'{what[0]} and {len(what) - 1} more'}: {note}"
            for (label, note), what in found.items()
        )
        return [Block("Empty or incomplete cells", (), (), (), items)] if items else []


def published_block(expected: Expected, number: str, names: Sequence[str]) -> list[Block]:
    """A published table, and which of its rows are which methods; nothing where there is no such table."""
    table = expected.published.tables.get(number)
    if table is None:
        return []
    named = [f"{expected.methods[name].label} is `{row}`" for name in names if (row := expected.methods[name].published) in table.rows]
    said = (
        f"{table.title}; {table.source}, no deviations published. Other data, other sizes: for orientation, in no mean and no difference"
        f" above. {table.remark}{' Rows: ' + '; '.join(named) + '.' if named else ''}"
    )
    rows = tuple((name, *(table.cell(name, column) or EMPTY for column in table.columns)) for name in table.rows)
    return [Block("Published, in another setting", (said,), ("published row", *table.columns), rows)]


def cells_of(table: pd.DataFrame) -> tuple[dict[tuple[str, Key], dict[str, Any]], dict[str, str]]:
    """Rows of a summary by method and key, and the label of each method."""
    rows = rows_of(table)
    cells = {(row["method"], (row["task"], row["language"], row["metric"])): row for row in rows}
    return cells, {row["method"]: row["label"] for row in rows}

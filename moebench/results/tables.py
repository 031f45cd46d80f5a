"""What the tables of all protocols share: what they expect to hold, differences to the baseline, cells, and the files they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from moebench.config import About
from moebench.experiment import Experiment, Run
from moebench.published import Published
from moebench.results.records import decimal
from moebench.results.rendering import Block, latex, markdown
from moebench.results.statistics import LEAST_SEEDS, holm, paired_difference

EMPTY = "—"
SPREAD = "Mean over seeds ± sample standard deviation (number of seeds)."


@dataclass(frozen=True)
class Measured:
    """What evaluation found, a frame a file; ``curves`` are the points of figures."""

    records: pd.DataFrame
    provenance: pd.DataFrame
    costs: pd.DataFrame
    curves: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an experiment's tables should hold.

    Attributes:
        experiment: whose tables.
        about: what the paper is.
        data: name of the data; empty while nothing is measured.
        methods: name → method, of those that run.
        seeds: seeds of each method.
        baseline: name of the method that differences are taken against.
        published: what the paper published.
        notes: key of the setting → what a reader should know about its value.
    """

    experiment: Experiment
    about: About
    data: str
    methods: Mapping[str, Any]
    seeds: tuple[int, ...]
    baseline: str
    published: Published
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def profile(self) -> str:
        """Name of the profile."""
        return self.experiment.profile

    @property
    def compared(self) -> list[str]:
        """Methods that compete: the baseline, then the others by name."""
        return [self.baseline, *sorted(name for name in self.methods if name != self.baseline)]

    @property
    def label(self) -> str:
        """What tables call the baseline."""
        return str(self.methods[self.baseline].label)

    def make(self, stage: str, method: str, seed: int, training_set: str = "") -> str:
        """The command that makes one run."""
        return self.experiment.command(Run(stage, method, seed, training_set))


@dataclass(frozen=True)
class Document:
    """A table as CSV, and the same laid out for readers as Markdown and LaTeX.

    Attributes:
        name: of its files, without ending.
        title: its title (`title`).
        blocks: its layout.
        table: its numbers; none: a page that is Markdown alone.
    """

    name: str
    title: str
    blocks: Sequence[Block]
    table: pd.DataFrame | None = None

    def files(self, expected: Expected) -> dict[str, str]:
        """File name → content."""
        page = {f"{self.name}.md": markdown(self.title, self.blocks)}
        if self.table is None:
            return page
        label = f"tab:{expected.experiment.paper}-{expected.profile}-{self.name}"
        return {f"{self.name}.csv": csv_of(self.table)} | page | {f"{self.name}.tex": latex(self.title, label, self.blocks)}


@dataclass(frozen=True)
class Figure:
    """A figure as SVG.

    Attributes:
        name: of its files, without ending.
        svg: its content.
        table: its points as CSV; none: they stand in another file.
    """

    name: str
    svg: str
    table: pd.DataFrame | None = None

    def files(self, expected: Expected) -> dict[str, str]:
        """File name → content."""
        points = {} if self.table is None else {f"{self.name}.csv": csv_of(self.table)}
        return {f"{self.name}.svg": self.svg} | points


# ----------------------------------------------------------------------------------------------------------------- numbers


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries."""
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]


def frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Put rows into a frame; a column that a row lacks is none there."""
    return pd.DataFrame([{column: row.get(column) for column in columns} for row in rows], columns=list(columns), dtype=object)


def csv_of(table: pd.DataFrame) -> str:
    """A table as CSV, numbers with six decimals."""
    text = table.map(lambda value: decimal(value) if isinstance(value, float) else value)
    return str(text.to_csv(index=False, lineterminator="\n"))


def differences(values: Mapping[str, Mapping[int, float]], baseline: str) -> dict[str, tuple[dict[str, Any], str]]:
    """Compare each method with the baseline, seed by seed; Holm's family is the methods in ``values``.

    Args:
        values: method → seed → value.
        baseline: name of the baseline, one of the methods.

    Returns:
        Method → columns of the difference, and why none is claimed (empty if one is).
    """
    found = {name: paired_difference(mine, values[baseline]) for name, mine in values.items() if name != baseline}
    tested = {name: one for name, one in found.items() if one is not None}
    adjusted = dict(zip(tested, holm([one.p for one in tested.values()]), strict=True))
    result: dict[str, tuple[dict[str, Any], str]] = {}
    for name, one in found.items():
        if one is None:
            shared = len(values[name].keys() & values[baseline].keys())
            few = f"{shared} of the {LEAST_SEEDS} shared seeds that it takes"
            result[name] = ({}, f"no difference is claimed: {few if shared < LEAST_SEEDS else 'it does not vary over the seeds'}")
        else:
            columns = {"difference": one.mean, "ci_low": one.low, "ci_high": one.high, "p": one.p, "p_holm": adjusted[name]}
            result[name] = (columns, "")
    return result


# ------------------------------------------------------------------------------------------------------------------ words


def title(expected: Expected, what: str, number: str = "") -> str:
    """Return the title of a table, with its number in the paper if it has one; it always names the profile and the data."""
    data = f"data `{expected.data}`" if expected.data else "nothing measured yet"
    numbered = f", Table {number}" if number else ""
    return f"{expected.about.name}{numbered}: {what} (profile `{expected.profile}`, {data})"


def difference_meaning(expected: Expected) -> str:
    """Say what a difference, its interval and its p-value are."""
    return (
        f"Differences are to {expected.label}, paired by seed, with a 95 % t interval and a p-value adjusted for"
        f" the methods of the column (Holm); below {LEAST_SEEDS} shared seeds, or where the difference does not vary over seeds, none is"
        " claimed."
    )


def notes(expected: Expected) -> list[Block]:
    """The notes on the setting, if it has any."""
    lines = tuple(f"`{key}`: {note}." for key, note in sorted(expected.notes.items()))
    return [Block("Notes on the setting", lines)] if lines else []


def number(value: float, decimals: int, sign: str = "") -> str:
    """Format a number; what rounds to zero has no sign."""
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}" if round(value, decimals) else f"{0:.{decimals}f}"


def measured_cell(row: Mapping[str, Any], decimals: int) -> str:
    """Format a mean over seeds, its deviation and the number of seeds; of a row with ``em`` both of its metrics."""
    if row["value"] is None:
        return EMPTY
    shown = f"{number(row['f1'], 1)}/{number(row['em'], 1)}" if row.get("em") is not None else number(row["value"], decimals)
    spread = "" if row["sd"] is None else f" ± {number(row['sd'], decimals)}"
    return f"{shown}{spread} ({row['n_seeds']})"


def difference_cell(row: Mapping[str, Any], decimals: int) -> str:
    """Format a difference with its interval and adjusted p-value."""
    if row["difference"] is None:
        return EMPTY
    p = "p < 0.001" if row["p_holm"] < 0.001 else f"p {row['p_holm']:.3f}"
    middle, low, high = (number(row[column], decimals, "+") for column in ("difference", "ci_low", "ci_high"))
    return f"{middle} [{low}, {high}] {p}"

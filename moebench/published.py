"""The numbers a paper published: ``experiments/<paper>/published.yaml``, checked on loading. Shown beside ours, never mixed into a mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from moebench import config


class Table(config.Config):
    """One published table."""

    title: config.Text
    source: config.Text
    """Which text the values were read from and how it numbers the table."""
    remark: str = ""
    """What a reader has to know about its values."""
    seeds: config.Few | None = None
    """Runs behind each value; none: not stated."""
    decimals: Annotated[config.Count, Field(le=4)]
    """As printed."""
    columns: dict[str, tuple[config.Text, ...]]
    """Column → names of the metrics of each of its cells."""
    rows: dict[str, dict[str, tuple[config.Real, ...]]]
    """Row → column → one value a metric. What is not published is absent."""

    @model_validator(mode="after")
    def _cells_fit_the_columns(self) -> Table:
        for row, cells in self.rows.items():
            for column, values in cells.items():
                if column not in self.columns:
                    raise ValueError(f"row {row!r} has the unknown column {column!r}; columns are: {', '.join(self.columns)}")
                if len(values) != len(self.columns[column]):
                    raise ValueError(
                        f"row {row!r}, column {column!r}: {len(values)} values for the metrics {', '.join(self.columns[column])}"
                    )
        return self

    def cell(self, row: str | None, column: str) -> str:
        """Return a cell as printed (``67.3/51.1`` for two metrics), or an empty string where nothing is published."""
        values = self.rows.get(row or "", {}).get(column, ())
        return "/".join(f"{value:.{self.decimals}f}" for value in values)


class Published(config.Config):
    """All published tables of one paper, by table number (of the arXiv version)."""

    tables: dict[str, Table]

    @property
    def rows(self) -> list[str]:
        """Names of all rows of all tables."""
        return list(dict.fromkeys(row for table in self.tables.values() for row in table.rows))


def load(path: Path) -> Published:
    """Load the published numbers of a paper.

    Raises:
        MoebenchError: the file is missing or does not validate.
    """
    return config.load(path, Published)

"""The measured numbers on disk: ``records.csv`` and, beside it and joined by key, ``provenance.csv`` and ``costs.csv``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moebench.errors import MoebenchError, nearest
from moebench.files import write_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Form:
    """The columns of one kind of file.

    Attributes:
        keys: column → type of the columns that identify a row; no two rows agree in all of them, and rows are sorted by them.
        values: column → type of the others.
        complete: whether every value has to be there; where not, an empty cell is read and written as none.
    """

    keys: dict[str, type]
    values: dict[str, type]
    complete: bool

    @property
    def columns(self) -> dict[str, type]:
        """All columns in the file's order."""
        return self.keys | self.values


RUN = {"profile": str, "paper": str, "method": str, "seed": int, "stage": str, "task": str}
"""Key of a run; ``task`` is the protocol's name for pre-training, and the training set in fine-tuning."""

RECORDS = Form(
    {"profile": str, "data": str, "paper": str, "method": str, "seed": int, "stage": str, "task": str, "language": str, "metric": str},
    {"value": float, "n": int},
    complete=True,
)
"""One measured number a row; ``n`` is the number of examples (or tokens) it was measured on, ``language`` may be empty."""
PROVENANCE = Form(
    RUN,
    dict.fromkeys(
        ("train_language", "config_hash", "fingerprint", "commit", "moebench", "python", "torch", "lightning", "hardware"),
        str,
    ),
    complete=False,
)
"""Where a run's numbers come from; not stable from machine to machine."""
COSTS = Form(
    RUN,
    {
        "seconds": float,
        "tokens_per_second": float,
        "peak_memory_mb": float,
        "parameters": int,
        "active_parameters": int,
        "flops_per_token": float,
    },
    complete=False,
)
"""What a run cost; not stable from machine to machine."""

CURVES = Form(
    {"profile": str, "data": str, "paper": str, "method": str, "seed": int, "curve": str, "point": int},
    {"x": float, "y": float, "n": int},
    complete=True,
)
"""Points of figures, as a protocol defines them; ``n`` is the number of examples behind a point."""
FILES = {"records.csv": RECORDS, "provenance.csv": PROVENANCE, "costs.csv": COSTS, "curves.csv": CURVES}


def decimal(value: float) -> str:
    """Format a number with six decimals; zero has no sign."""
    return f"{round(value, 6) + 0.0:.6f}"


def _text(value: Any, kind: type) -> str:
    if value is None:
        return ""
    if kind is float and isinstance(value, (int, float)):
        return decimal(value)
    return str(value)


def _parsed(text: str, column: str, form: Form) -> Any:
    """Return the value of one cell.

    Raises:
        ValueError: it is not one; the message says what would be right.
    """
    kind = form.columns[column]
    if "\0" in text:
        raise ValueError("should hold no NUL")
    if text == "" and not (kind is str and column == "language"):
        if form.complete or column in form.keys:
            raise ValueError("must not be empty")
        return None
    if kind is str:
        return text
    try:
        value = kind(text)
    except ValueError:
        raise ValueError("should be a whole number" if kind is int else "should be a number") from None
    if not math.isfinite(value):
        raise ValueError("should be finite")
    return value


def render(rows: Iterable[Mapping[str, Any]], form: Form, where: Path) -> str:
    """Return the file's content: sorted by the key columns, six decimals; the order of ``rows`` does not matter.

    Args:
        rows: column → value of each row.
        form: the kind of file.
        where: the file, for messages.

    Raises:
        MoebenchError: a value that is missing, of the wrong type or not finite, or two rows of one key.
    """
    lines: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        if row.keys() != form.columns.keys():
            raise MoebenchError(f"{where}: a row has the columns {', '.join(row)}; columns are: {', '.join(form.columns)}")
        cells = {}
        for column, kind in form.columns.items():
            cells[column] = _text(row[column], kind)
            try:
                _parsed(cells[column], column, form)
            except ValueError as error:
                raise MoebenchError(
                    f"{where}: column {column!r} has the value {cells[column]!r} in the row {dict(row)}: {error}"
                ) from error
        key = tuple(row[column] for column in form.keys)
        if key in lines:
            raise MoebenchError(f"{where}: two values for one key: {_named(key, form)}")
        lines[key] = list(cells.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(form.columns)
    writer.writerows(lines[key] for key in sorted(lines))
    return text.getvalue()


def _named(key: tuple[Any, ...], form: Form) -> str:
    return ", ".join(f"{column} {value!r}" for column, value in zip(form.keys, key, strict=True))


def write(path: Path, rows: Iterable[Mapping[str, Any]], form: Form) -> None:
    """Write ``rows`` to ``path``, atomically (see `render`)."""
    write_text(path, render(rows, form, path))


def read(path: Path, form: Form) -> pd.DataFrame:
    """Read and check a file written by `write` (see `read_rows`)."""
    import pandas as pd

    return pd.DataFrame(read_rows(path, form), columns=list(form.columns))


def read_rows(path: Path, form: Form) -> list[dict[str, Any]]:
    """Read and check a file written by `write`.

    Returns:
        Column → value of each line; an empty cell is none.

    Raises:
        MoebenchError: missing or damaged file, unknown or missing column, value of the wrong type or not finite, two lines of one key;
            the message names the file, the line and the column.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            for column in header:
                if column not in form.columns:
                    raise MoebenchError(
                        f"{path}:1: unknown column {column!r}{nearest(column, form.columns)}; columns are: {', '.join(form.columns)}"
                    )
            if header != list(form.columns):
                raise MoebenchError(f"{path}:1: the columns are {', '.join(header)}; they should be: {', '.join(form.columns)}")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(header):
                    raise MoebenchError(f"{where}: has {len(cells)} cells; should have {len(header)}")
                row = {}
                for column, text in zip(header, cells, strict=True):
                    try:
                        row[column] = _parsed(text, column, form)
                    except ValueError as error:
                        raise MoebenchError(f"{where}: column {column!r} has the value {text!r}: {error}") from error
                key = tuple(row[column] for column in form.keys)
                if key in rows:
                    raise MoebenchError(f"{where}: second value for one key: {_named(key, form)}")
                rows[key] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MoebenchError(f"{path}: cannot be read: {error}") from error
    return list(rows.values())

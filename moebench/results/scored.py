"""What scoring hands back, and how a run's own measures are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebench.errors import MoebenchError, shown
from moebench.experiment import Run
from moebench.files import read_json

Row = dict[str, Any]
MEASURE: dict[str, Any] = {"stage": str, "task": str, "language": str, "metric": str, "value": (int, float), "n": int}


@dataclass
class Scored:
    """What a protocol's scoring found.

    Attributes:
        records: rows of ``records.csv`` from ``method`` to ``n``.
        curves: points of figures, from ``method`` to ``n``.
        missing: files that should be there, and the run that leaves them; none: the shallow baselines do.
    """

    records: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    missing: list[tuple[Path, Run | None]] = field(default_factory=list)


def measures_of(path: Path, stage: str) -> Iterator[Row]:
    """Read what a run measured itself.

    Raises:
        MoebenchError: the file is missing or damaged, or an entry is not as it should be.
    """
    measures = read_json(path)
    if not isinstance(measures, list):
        raise MoebenchError(f"{path}: should be a list of measures, is {shown(measures)}; delete the run's folder and run again")
    for number, measure in enumerate(measures):
        entry = measure if isinstance(measure, dict) else {}
        if entry.keys() != MEASURE.keys() or not all(isinstance(entry[name], kind) for name, kind in MEASURE.items()):
            raise MoebenchError(f"{path}: entry {number} is {shown(measure)}; should have {', '.join(MEASURE)}")
        if measure["stage"] != stage:
            raise MoebenchError(f"{path}: entry {number}: key 'stage' has the value {measure['stage']!r}; should be {stage!r}")
        yield measure

"""A training run and where it is: its folder, its plan, its stage, its row of ``provenance.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moebench.results import records


@dataclass(frozen=True)
class Run:
    """One training run that the setting asks for; ``training_set`` is empty in pre-training."""

    stage: str
    method: str
    seed: int
    training_set: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Run:
        """Return the run that a row of ``provenance.csv`` or ``costs.csv`` is about."""
        return cls(row["stage"], row["method"], row["seed"], "" if row["stage"] == "pretrain" else row["task"])

    def folder(self, root: Path, profile: str, paper: str) -> Path:
        """Where the run leaves its files."""
        name = "-".join(part for part in (self.method, self.training_set, str(self.seed)) if part)
        return root / "runs" / profile / paper / self.stage / name

    def plan(self, root: Path, profile: str, paper: str) -> Path:
        """The run's resolved configuration and code fingerprint."""
        name = "-".join(part for part in (self.method, self.training_set) if part)
        return root / "runs" / profile / "plan" / paper / self.stage / f"{name}.json"

    def address(self, profile: str, paper: str) -> str:
        """What DVC calls the run's stage."""
        return records.address(paper, self.stage, profile, self.method, self.seed, self.training_set)

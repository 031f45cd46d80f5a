"""Verb ``log``: the course of a training run, finished or not, as a table for the terminal."""

from __future__ import annotations

from moebench.errors import MoebenchError, nearest
from moebench.experiment import Experiment


def course(experiment: Experiment, name: str) -> str:
    """Return the rows of a run's ``course.csv``, in columns.

    Args:
        experiment: whose run.
        name: its stage, such as ``pretrain@dense-0``.

    Raises:
        MoebenchError: there is no such run, or it has not begun.
    """
    runs = {f"{run.stage}@{run.name}": run for run in experiment.runs}
    if name not in runs:
        raise MoebenchError(
            f"unknown run {name!r}{nearest(name, runs)}; paper {experiment.paper!r} has {len(runs)} in profile {experiment.profile!r},"
            f" named in {experiment.pipeline / 'params.yaml'}, such as {next(iter(runs), 'none')}"
        )
    path = experiment.folder(runs[name]) / "course.csv"
    if not path.is_file():
        raise MoebenchError(f"{path}: not there; the run has not begun, or is too short: {experiment.command(runs[name])}")
    import pandas as pd  # not for a mistake in the arguments

    return pd.read_csv(path, dtype=str).to_string(index=False)

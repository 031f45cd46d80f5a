"""Records that stay as they are when some methods alone are run: a new method is compared with runs that nobody has to repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from moebench.errors import MoebenchError, nearest
from moebench.experiment import Experiment, Run
from moebench.files import json_text, read_object
from moebench.results import records

Row = dict[str, Any]


def check_run(experiment: Experiment, methods: Collection[str]) -> None:
    """Raise MoebenchError if the profile does not have one of ``methods``."""
    every = experiment.methods
    for name in methods:
        if name not in every:
            raise MoebenchError(
                f"method {name!r}{nearest(name, every)} does not run in profile {experiment.profile!r}; {', '.join(every)} do"
            )


def keep(experiment: Experiment, only: Collection[str]) -> tuple[dict[str, list[Row]], list[str]]:
    """Read the results that are there and return what stays of them: all but the rows of some methods.

    Where none is named, or the paper has no results yet, nothing stays. That the data are still those of the kept runs is not checked
    here (`check_comparable`).

    Args:
        experiment: whose results.
        only: the methods whose rows do not stay. Nor do those of shallow baselines, and of methods that the profile no longer has.

    Returns:
        File name → rows; and the methods whose code has changed since they ran (their provenance names the commit).

    Raises:
        MoebenchError: the profile has no such method; a file is damaged; or a run that would stay had another configuration than the plan
            now has, or is made from runs of a method that does not.
    """
    check_run(experiment, only)
    every, folder = experiment.methods, experiment.results
    if not only or not (folder / "records.csv").is_file():
        return {name: [] for name in records.FILES}, []
    methods = every.keys() - set(only)
    found = {
        name: [row for row in records.read_rows(folder / name, form) if row["method"] in methods] if (folder / name).is_file() else []
        for name, form in records.FILES.items()
    }
    for name in sorted({row["method"] for row in found["records.csv"]}):
        if named := sorted(set(every[name].made_from) & set(only)):
            raise MoebenchError(f"method {name!r} is made from the runs of {named[0]!r}: name it too, --method {name}")
    planned = set(experiment.runs)
    changed: dict[str, None] = {}
    for row in found["provenance.csv"]:
        run = Run.of(row)
        path = experiment.plan_file(run) if run in planned else None
        plan = read_object(path, fingerprint=str) if path else {}
        then = json_text(plan | {"fingerprint": row["fingerprint"]})
        if hashlib.sha256(then.encode()).hexdigest() != row["config_hash"]:
            raise MoebenchError(
                f"{folder / 'provenance.csv'}: {row['stage']} of {row['method']!r}, seed {row['seed']}, {row['task']}, ran with another"
                f" configuration than {path or 'the plan'} has: {way_out(experiment)}"
            )
        if plan["fingerprint"] != row["fingerprint"]:
            changed[row["method"]] = None
    return found, list(changed)


def check_comparable(experiment: Experiment, methods: Collection[str], known: Mapping[str, Any]) -> None:
    """Check that the records of a paper's other methods can stay beside new ones; the plan and the data are up to date.

    Args:
        experiment: whose records.
        methods: whose records will be new.
        known: address → DVC's stage, which knows from the lock file what it read.

    Raises:
        MoebenchError: a run had another configuration (`keep`), or read other data than there now are.
    """
    kept, _ = keep(experiment, methods)
    read: dict[tuple[str, str], tuple[str, Any]] = {}  # most stages read the same; it is hashed once
    for run in map(Run.of, kept["provenance.csv"]):
        address = experiment.address(run.stage, run.name)
        for dependency in known[address].deps:
            read.setdefault((dependency.fs_path, str(dependency.hash_info)), (address, dependency))
    for (path, _), (address, dependency) in read.items():
        where = Path(path).relative_to(experiment.root)
        if where.parts[0] == "data" and dependency.changed_checksum():
            raise MoebenchError(f"{where}: is not what dvc.lock says that {address} read: {way_out(experiment)}")


def way_out(experiment: Experiment) -> str:
    """Say what to do where records cannot stay."""
    return (
        f"run all methods (make reproduce PROFILE={experiment.profile} PAPER={experiment.paper}), or remove"
        f" results/{experiment.profile}/{experiment.paper}/records.csv to begin anew"
    )

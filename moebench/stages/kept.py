"""Records that stay as they are when some methods alone are run: a new method is compared with runs that nobody has to repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from moebench.errors import MoebenchError, nearest
from moebench.files import json_text, read_json
from moebench.results import records
from moebench.stages.runs import Run

Row = dict[str, Any]


def check_methods(only: Iterable[str], methods: Collection[str], profile: str) -> None:
    """Raise MoebenchError if a profile, which has ``methods``, does not have one of ``only``."""
    for name in only:
        if name not in methods:
            raise MoebenchError(f"method {name!r}{nearest(name, methods)} does not run in profile {profile!r}; {', '.join(methods)} do")


def keep(
    root: Path,
    profile: str,
    paper: str,
    only: Collection[str],
    made_from: Mapping[str, Collection[str]],
    runs: Iterable[Run],
    forms: Mapping[str, records.Form],
) -> tuple[dict[str, list[Row]], list[str]]:
    """Read the results that are there and return what stays of them: all but the rows of some methods.

    Where none is named, or the paper has no results yet, nothing stays. That the data are still those of the kept runs is not checked
    here (`moebench.stages.alone.check_comparable`).

    Args:
        root: the project's root.
        profile: name of the profile.
        paper: name of the paper.
        only: the methods whose rows do not stay. Nor do those of shallow baselines, and of methods that the profile no longer has.
        made_from: every method of the profile → the methods whose runs it starts from or consists of.
        runs: all runs that the setting asks for.
        forms: file name → its form, ``provenance.csv`` among them.

    Returns:
        File name → rows; and the methods whose code has changed since they ran (their provenance names the commit).

    Raises:
        MoebenchError: the profile has no such method; a file is damaged; or a run that would stay had another configuration than the plan
            now has, or is made from runs of a method that does not.
    """
    check_methods(only, made_from, profile)
    folder = root / "results" / profile / paper
    if not only or not (folder / "records.csv").is_file():
        return {name: [] for name in forms}, []
    methods = made_from.keys() - set(only)
    found = {name: [row for row in records.read_rows(folder / name, form) if row["method"] in methods] for name, form in forms.items()}
    for name in sorted({row["method"] for row in found["records.csv"]}):
        if named := sorted(set(made_from[name]) & set(only)):
            raise MoebenchError(f"method {name!r} is made from the runs of {named[0]!r}: name it too, --method {name}")
    planned = set(runs)
    changed: dict[str, None] = {}
    for row in found["provenance.csv"]:
        run = Run.of(row)
        path = run.plan(root, profile, paper) if run in planned else None
        plan = read_json(path) if path else {}
        then = json_text(plan | {"fingerprint": row["fingerprint"]})
        if hashlib.sha256(then.encode()).hexdigest() != row["config_hash"]:
            raise MoebenchError(
                f"{folder / 'provenance.csv'}: {row['stage']} of {row['method']!r}, seed {row['seed']}, {row['task']}, ran with another"
                f" configuration than {path or 'the plan'} has: {way_out(profile, paper)}"
            )
        if plan["fingerprint"] != row["fingerprint"]:
            changed[row["method"]] = None
    return found, list(changed)


def way_out(profile: str, paper: str) -> str:
    """Say what to do where records cannot stay."""
    return (
        f"run all methods (make reproduce PROFILE={profile} PAPER={paper}), or remove results/{profile}/{paper}/records.csv to begin anew"
    )

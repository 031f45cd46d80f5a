"""Some methods of a paper run alone: which stages that takes, whether the other methods' records can stay, and the tables of both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from moebench import config_images
from moebench.errors import MoebenchError
from moebench.stages.kept import check_methods, keep, way_out
from moebench.stages.runs import Run


def _judge(root: Path, paper: str) -> Any:
    """The module that scores a paper's runs."""
    if config_images.of_images(root, paper):
        from moebench.stages import evaluate_images

        return evaluate_images
    from moebench.stages import evaluate

    return evaluate


def stages(root: Path, profile: str, paper: str, methods: Collection[str]) -> list[str]:
    """Addresses of the stages of some methods, of a deep ensemble those of its members, and of the shallow baselines.

    Raises:
        MoebenchError: the profile has no such method.
    """
    judge = _judge(root, paper)
    runs, made_from = judge.expected_runs(root, profile, paper), judge.made_from(root, profile, paper)
    check_methods(methods, made_from, profile)
    own = {run.method for run in runs}
    wanted = {part for name in methods for part in ([name] if name in own else made_from[name])}
    baselines = [] if config_images.of_images(root, paper) else [f"baselines@{profile}"]  # those on images are no stage
    return baselines + [run.address(profile, paper) for run in runs if run.method in wanted]


def check_comparable(
    root: Path, profile: str, paper: str, methods: Collection[str], inputs: Callable[[Iterable[str]], Mapping[str, Iterable[Any]]]
) -> None:
    """Check that the records of a paper's other methods can stay beside new ones; the plan and the data are up to date.

    Args:
        root: the project's root.
        profile: name of the profile.
        paper: name of the paper.
        methods: whose records will be new.
        inputs: maps addresses of stages to DVC's dependencies of each.

    Raises:
        MoebenchError: a run had another configuration (`moebench.stages.kept.keep`), or read other data than there now are.
    """
    judge = _judge(root, paper)
    runs = judge.expected_runs(root, profile, paper)
    kept, _ = keep(root, profile, paper, methods, judge.made_from(root, profile, paper), runs, judge.FILES)
    read: dict[tuple[str, str], tuple[str, Any]] = {}  # most stages read the same; it is hashed once
    for address, needed in inputs([Run.of(row).address(profile, paper) for row in kept["provenance.csv"]]).items():
        for dependency in needed:
            read.setdefault((dependency.fs_path, str(dependency.hash_info)), (address, dependency))
    for (path, _), (address, dependency) in read.items():
        where = Path(path).relative_to(root)
        if where.parts[0] == "data" and dependency.changed_checksum():
            raise MoebenchError(f"{where}: is not what dvc.lock says that {address} read: {way_out(profile, paper)}")


def add_to_tables(root: Path, profile: str, paper: str, methods: Collection[str]) -> list[str]:
    """Score some methods beside the records that are there and make the tables; returns those whose code has changed since."""
    if config_images.of_images(root, paper):
        from moebench.stages.evaluate_images import evaluate_images as evaluate
        from moebench.stages.tabulate_images import tabulate_images as tabulate
    else:
        from moebench.stages.evaluate import evaluate
        from moebench.stages.tabulate import tabulate
    changed = evaluate(root, profile, paper, methods)
    tabulate(root, profile, paper)
    return changed

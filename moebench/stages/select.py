"""Verb ``select``: writes the profile into ``params.yaml`` and the lists of stages that the pipeline files expand.

DVC reads the lists before anything runs and cannot compute them, so ``experiments/<paper>/params.yaml`` is generated. A stage's name
starts with the profile: the lock file keeps what every profile has done, and switching back and forth re-runs nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from moebench import catalogue, config, config_images
from moebench.errors import MoebenchError, nearest
from moebench.files import write_text
from moebench.stages import plan_images

HEADER = """\
# Generated from methods/, profiles/ and the profile's tasks: do not edit. After adding a method, a seed or a task, or switching the
# profile, run `moebench select` (`moebench run` does it by itself).
"""


def select(root: Path, profile: str) -> None:
    """Select a profile and list its stages; files that say so already are not touched.

    Raises:
        MoebenchError: the configuration of the profile is wrong.
    """
    check(root, profile)
    path = root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(r"^profile:[ \t]*[^\s#]*", f"profile: {profile}", text, count=1, flags=re.MULTILINE)
    if not count:
        raise MoebenchError(f"{path}: key 'profile' is missing")
    written = {path: changed} | {
        root / "experiments" / paper / "params.yaml": stages(root, profile, paper) for paper in config.papers(root)
    }
    for path, content in written.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            write_text(path, content)


def check_selected(root: Path, profile: str) -> None:
    """Check that the generated lists are those of the profile.

    Raises:
        MoebenchError: they are not; the message says what to run.
    """
    for paper in config.papers(root):
        path = root / "experiments" / paper / "params.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8") != stages(root, profile, paper):
            raise MoebenchError(
                f"{path}: does not list the stages that methods/ and the profile {profile!r} ask for;"
                f" run `moebench select --profile {profile}` and repeat, or use `moebench run`"
            )


def stages(root: Path, profile: str, paper: str) -> str:
    """Return the content of a paper's ``params.yaml``: the key of every training stage → its values, as ``foreach`` expands them."""
    if paper not in config.papers(root, profile):
        return _listed({"profile": profile, "profiles": [], "pretrain": {}, "finetune": {}})
    if config_images.of_images(root, paper):
        return _listed(plan_images.stages(root, profile, paper))
    names, seeds = config.method_names(root, paper, profile), config.setting(root, paper, profile).seeds
    starts = {name: start(root, paper, name) for name in names}
    pretrain = {f"{profile}-{name}-{seed}": {"method": name, "seed": seed} for name in sorted(set(starts.values())) for seed in seeds}
    finetune = {
        f"{profile}-{name}-{training_set}-{seed}": {"method": name, "set": training_set, "seed": seed, "start": f"{starts[name]}-{seed}"}
        for name in names
        for training_set in sorted(training_sets(root, profile, paper, name))
        for seed in seeds
    }
    lists = {"profile": profile, "pretrain": pretrain, "finetune": finetune}
    return _listed(lists)


def _listed(lists: dict[str, Any]) -> str:
    return HEADER + yaml.safe_dump(lists, sort_keys=False, default_flow_style=None, width=140)


def training_sets(root: Path, profile: str, paper: str | None = None, method: str | None = None) -> dict[str, list[str]]:
    """Return training set → its tasks, in the profile's order: all, or those that a method of a paper is fine-tuned on.

    Raises:
        MoebenchError: a task does not exist or does not belong to the profile's source.
    """
    path, data = root / "data" / "profiles" / f"{profile}.yaml", config.data(root, profile)
    sets: dict[str, list[str]] = {}
    for task in config.tasks(data):
        name = task.name
        if task.constructed != (data.source == "constructed"):
            raise MoebenchError(f"{path}: key 'tasks' names {name!r}, which source {data.source!r} does not have")
        sets.setdefault(task.train, []).append(name)
    if paper is not None and method is not None:
        group = config.setting(root, paper, profile).groups.get(config.method(root, paper, method).table)
        sets = {name: tasks for name, tasks in sets.items() if group is None or name in group.training_sets}
    return sets


def start(root: Path, paper: str, name: str) -> str:
    """Return the name of the method whose pre-training a method starts from: its own, unless it says ``pretrain_as``."""
    return config.method(root, paper, name).pretrain_as or name


def check(root: Path, profile: str) -> None:
    """Check what no single file shows: that the profile's data and every paper's setting and methods fit together.

    Raises:
        MoebenchError: they do not; the message names the file, the key and what would be right.
    """
    for paper in config.papers(root, profile):
        if config_images.of_images(root, paper):
            plan_images.check(root, profile, paper)
            continue
        _check_setting(root, profile, paper)
        for name in config.method_names(root, paper, profile):
            _check_method(root, paper, profile, name)


def _check_setting(root: Path, profile: str, paper: str) -> None:
    setting, names = config.setting(root, paper, profile), config.method_names(root, paper, profile)
    path = root / "experiments" / paper / "profiles" / f"{profile}.yaml"
    if not names:
        raise MoebenchError(f"{path.parents[1] / 'methods'}: holds no method")
    if setting.baseline not in names:
        raise MoebenchError(
            f"{path}: key 'baseline' names {setting.baseline!r}{nearest(setting.baseline, names)}; methods are: {', '.join(names)}"
        )
    known = {task.train for task in catalogue.TASKS.values()}
    for name in setting.finetune:
        if name not in known:
            raise MoebenchError(f"{path}: key 'finetune.{name}'{nearest(name, known)}; training sets are: {', '.join(sorted(known))}")
    for table, group in setting.groups.items():
        for name in group.training_sets:
            if name not in (sets := training_sets(root, profile)):
                raise MoebenchError(
                    f"{path}: key '{table}.training_sets' names {name!r}{nearest(name, sets)}; training sets are: {', '.join(sorted(sets))}"
                )
    for name in setting.options:
        if name not in names:
            raise MoebenchError(f"{path}: key 'options.{name}'{nearest(name, names)}; methods are: {', '.join(names)}")
    for name in training_sets(root, profile):
        if name not in setting.finetune:
            raise MoebenchError(f"{path}: key 'finetune.{name}' is missing: the profile has tasks that are trained on it")


def _check_method(root: Path, paper: str, profile: str, name: str) -> None:
    method, path = config.method(root, paper, name, profile), root / "experiments" / paper / "methods" / f"{name}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise MoebenchError(f"{path}: a method's name is made of letters, digits and underscores")
    shape = config.sparse(setting := config.setting(root, paper, profile), method)
    if shape is not None and (shape.experts < 1 or shape.inner < 1):
        raise MoebenchError(
            f"{path}: fine_grained {method.fine_grained} and shared {method.shared} leave {shape.experts} experts of inner width"
            f" {shape.inner}, of {setting.sparse.experts} of inner width {setting.sparse.inner} in profile {profile!r}; at least 1 of each"
        )
    if shape is not None and method.options.get("k", 0) > shape.experts:
        raise MoebenchError(f"{path}: key 'options.k' has the value {method.options['k']}; profile {profile!r} has {shape.experts} experts")
    if method.pretrain_as is None:
        return
    other = config.method(root, paper, method.pretrain_as, profile)
    if other.pretrain_as or not (method.pretrained and other.pretrained):
        raise MoebenchError(f"{path}: key 'pretrain_as' names {method.pretrain_as!r}: both have to be pre-trained, that one by itself")
    for key in ("layer", "router", "options", "fine_grained", "shared"):
        mine, theirs = getattr(method, key), getattr(other, key)
        if mine != theirs:
            raise MoebenchError(f"{path}: key {key!r} has the value {mine!r}, but {method.pretrain_as!r} was pre-trained with {theirs!r}")

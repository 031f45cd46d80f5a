"""An experiment: a paper under a profile. It knows where its files are, what its configuration says, and how its runs are called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moebench import config, protocol, published
from moebench.errors import MoebenchError, nearest


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        stage: ``pretrain`` or ``finetune``.
        method: name of the method.
        seed: the seed.
        training_set: what is fine-tuned on; empty in pre-training.
        start: name of the pre-training run that fine-tuning starts from, as ``dense-0``; empty in pre-training.
        part: the part of the prepared data that the run reads, one of the protocol's ``prepare.parts``.
    """

    stage: str
    method: str
    seed: int
    training_set: str = ""
    start: str = field(default="", compare=False)
    part: str = field(default="", compare=False)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Run:
        """Return the run that a row of ``provenance.csv`` or ``costs.csv`` is about."""
        return cls(row["stage"], row["method"], row["seed"], "" if row["stage"] == "pretrain" else row["task"])

    @property
    def plan_name(self) -> str:
        """Its file of the plan, without ``.json``: the same for all seeds."""
        return f"{self.stage}/{'-'.join(filter(None, (self.method, self.training_set)))}"

    @property
    def name(self) -> str:
        """Its name among the runs of its stage."""
        return "-".join(filter(None, (self.method, self.training_set, str(self.seed))))


class Experiment:
    """A paper under a profile.

    Attributes:
        root: the project's root.
        paper: name of a folder of ``experiments/``, ``home``.
        profile: name of a profile that the paper has: ``setting_file`` and ``data_file``.
        pipeline: folder of the ``dvc.yaml``, ``params.yaml`` and ``dvc.lock`` of this experiment.
        prepared: folder of the prepared data.
        runs_folder: everything between data and results: ``plan_folder``, a file a stage; ``baselines_folder``, predictions of the shallow
            baselines; ``records_folder``, what the last evaluation found; and the training runs (`folder`).
        results: records and tables, in git.
    """

    def __init__(self, root: Path, paper: str, profile: str):
        self.root, self.paper, self.profile = root, paper, profile
        self.home = root / "experiments" / paper
        self.setting_file = self.home / "profiles" / f"{profile}.yaml"
        self.data_file = self.home / "data" / f"{profile}.yaml"
        self.pipeline = self.home / profile
        self.prepared = root / "data" / "prepared" / profile / paper
        self.runs_folder = root / "runs" / profile / paper
        self.plan_folder = self.runs_folder / "plan"
        self.baselines_folder = self.runs_folder / "baselines"
        self.records_folder = self.runs_folder / "records"
        self.results = root / "results" / profile / paper

    # ------------------------------------------------------------------------------------------------------- its files

    def method_file(self, name: str) -> Path:
        """Where a method is."""
        return self.home / "methods" / f"{name}.yaml"

    def folder(self, run: Run) -> Path:
        """Where a run leaves its files."""
        return self.runs_folder / "trained" / run.stage / run.name

    def plan_file(self, run: Run) -> Path:
        """A run's resolved configuration and code fingerprint."""
        return self.plan_folder / f"{run.plan_name}.json"

    def part_file(self, part: str) -> Path:
        """The checksums of a part of the prepared data."""
        return self.prepared / "parts" / f"{part}.json"

    def start(self, run: Run) -> Path:
        """The checkpoint that a run starts from."""
        return self.runs_folder / "trained" / "pretrain" / run.start / "model.safetensors"

    # ----------------------------------------------------------------------------------------------- its configuration

    @cached_property
    def about(self) -> config.About:
        """What the paper is."""
        return config.load(self.home / "experiment.yaml", config.About)

    @cached_property
    def published(self) -> published.Published:
        """What the paper published."""
        return published.load(self.home / "published.yaml")

    @cached_property
    def protocol(self) -> protocol.Protocol:
        """The kind of experiment."""
        return protocol.find(self.about.protocol, self.home / "experiment.yaml")

    @cached_property
    def data(self) -> Any:
        """Which data it uses: the protocol's ``config.Data``."""
        return config.load(self.data_file, self.protocol.config.Data)

    @cached_property
    def setting(self) -> Any:
        """Its scale: the protocol's ``config.Setting``."""
        return config.load(self.setting_file, self.protocol.config.Setting)

    @cached_property
    def _given(self) -> dict[str, Any]:
        """All methods of the paper as their files say."""
        files = sorted((self.home / "methods").glob("*.yaml"))
        return {file.stem: config.load(file, self.protocol.config.Method) for file in files}

    @cached_property
    def methods(self) -> dict[str, Any]:
        """Name → method, of those that run, sorted; with all their options.

        Raises:
            MoebenchError: a method's file or the setting does not validate.
        """
        return {name: self.method(name) for name in self.setting.running(self.setting_file, self._given)}

    def method(self, name: str, where: str = "") -> Any:
        """One method, with all its options, whether it runs or not.

        Args:
            name: its name.
            where: the file and the key that name it, for messages.

        Raises:
            MoebenchError: there is no such method, or its file does not validate.
        """
        if name not in self._given:
            raise MoebenchError(
                f"{where}unknown method {name!r} of paper {self.paper!r}{nearest(name, self._given)}; methods are: {', '.join(self._given)}"
            )
        if name not in self._resolved:
            at_scale = self.setting.options.get(name, {})
            self._resolved[name] = config.with_options(self.method_file(name), self._given[name], at_scale, self.setting_file)
        return self._resolved[name]

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        return {}

    @cached_property
    def runs(self) -> list[Run]:
        """All training runs, pre-training first."""
        found: list[Run] = self.protocol.runs.runs(self)
        return found

    def check(self) -> None:
        """Check that data, setting and methods fit together; what is wrong in one file is found when it is loaded.

        Raises:
            MoebenchError: they do not; the message names the file, the key and what would be right.
        """
        names = self.methods
        if not names:
            raise MoebenchError(f"{self.home / 'methods'}: holds no method")
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise MoebenchError(f"{self.method_file(name)}: a method's name is made of letters, digits and underscores")
        if self.setting.baseline not in names:
            raise MoebenchError(
                f"{self.setting_file}: key 'baseline' names {self.setting.baseline!r}{nearest(self.setting.baseline, names)};"
                f" methods are: {', '.join(names)}"
            )
        for name in self.setting.options:
            if name not in names:
                raise MoebenchError(f"{self.setting_file}: key 'options.{name}'{nearest(name, names)}; methods are: {', '.join(names)}")
        rows = self.published.rows
        for name, method in names.items():
            if not method.label:
                raise MoebenchError(f"{self.method_file(name)}: key 'label' is empty; tables call the method by it")
            if method.published is not None and method.published not in rows:
                raise MoebenchError(
                    f"{self.method_file(name)}: key 'published' has the value {method.published!r}{nearest(method.published, rows)};"
                    f" rows of published.yaml are: {', '.join(rows) or 'none'}"
                )
        self.setting.check(self)

    def check_options(self, name: str, width: int, experts: int) -> None:
        """Check the options of a method's router or layer as its class will.

        Args:
            name: the method.
            width: D of its tokens.
            experts: E of a layer.

        Raises:
            MoebenchError: one is out of range.
        """
        method = self.methods[name]
        if method.source is None:
            return
        given = {"d_model": width, "vocabulary": 1, "experts": SimpleNamespace(count=experts) if method.source[0] == "layer" else experts}
        if refusal := config.part(*method.source).refusal(method.options | method.decided, **given):
            key, _, what = refusal.partition(" ")
            at_scale = key in self.setting.options.get(name, {})
            file, where = (self.setting_file, f"options.{name}.") if at_scale else (self.method_file(name), "options.")
            raise MoebenchError(f"{file}: key '{where}{key}' has the value {what}; here are {experts} experts")

    # ------------------------------------------------------------------------------------------------------- its stages

    def address(self, stage: str, name: str = "") -> str:
        """What DVC calls a stage, for example ``experiments/xmoe/cpu/dvc.yaml:finetune@dense-udpos-0``."""
        return f"experiments/{self.paper}/{self.profile}/dvc.yaml:{stage}{name and '@'}{name}"

    def command(self, run: Run) -> str:
        """The command that makes one run."""
        return f"dvc repro {self.address(run.stage, run.name)}"


def papers(root: Path) -> list[str]:
    """Names of the papers, sorted: the folders of ``experiments/`` with an ``experiment.yaml``."""
    return sorted(path.parent.name for path in (root / "experiments").glob("*/experiment.yaml"))


def check_paper(root: Path, name: str) -> None:
    """Raise MoebenchError, with the nearest name, if there is no such paper."""
    if name not in (known := papers(root)):
        raise MoebenchError(f"unknown paper {name!r}{nearest(name, known)}; papers are: {', '.join(known)}")


def profiles(root: Path, paper: str | None = None) -> list[str]:
    """Names of the profiles of a paper, or of any, sorted: their files."""
    return sorted({path.stem for path in (root / "experiments").glob(f"{paper or '*'}/profiles/*.yaml")})


def experiments(root: Path, profile: str, paper: str | None = None) -> list[Experiment]:
    """Return the papers that have a profile, or one of them.

    Raises:
        MoebenchError: no such paper, no such profile, or the paper does not have it; the message names the nearest.
    """
    if paper is not None:
        check_paper(root, paper)
    if profile not in (known := profiles(root, paper)):
        whose = f" of paper {paper!r}" if paper else ""
        raise MoebenchError(f"unknown profile {profile!r}{whose}{nearest(profile, known)}; profiles are: {', '.join(known)}")
    return [Experiment(root, name, profile) for name in ([paper] if paper else papers(root)) if profile in profiles(root, name)]

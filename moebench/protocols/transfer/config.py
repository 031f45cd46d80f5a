"""What a setting and a method may say: an encoder with an inserted sparse layer, pre-trained, fine-tuned in one language, tested in all.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moebench.config import BaseMethod, BaseSetting, Config, Count, Few, Optimisation, Positive, Share, Weight, check_memory, layers, part
from moebench.data import catalogue
from moebench.data.constructed.language import alphabet
from moebench.data.text_settings import TextData, tasks
from moebench.errors import MoebenchError, nearest
from moebench.experiment import Experiment
from moebench.models.shapes import Encoder, Sparse

SPECIAL = 6
"""Pieces of a trained tokenizer that are no characters of the text."""
Data = TextData
TASKS = tuple(catalogue.TASKS)
TASK_METRICS = tuple(sorted({name for task in catalogue.TASKS.values() for name in task.metrics}))
METRICS = (
    *TASK_METRICS,
    *map(catalogue.standard_error, TASK_METRICS),
    *("perplexity", "max_violation", "load_entropy", "router_entropy", "experts_per_token", "dropped_share", "flops_per_token"),
    *("nll", "brier", "ece", "signed_ece", "adaptive_ece", "aurc", "nll_scaled", "ece_scaled", "temperature", "temperature_at_bound"),
    *("disagreement", "mutual_information"),
)
"""Metrics of the records."""


class Pretraining(Optimisation):
    """Masked-language-model pre-training; ``translation`` is the share of rows that are translated pairs (TLM)."""

    mask: Annotated[Share, Field(gt=0)] = 0.15
    translation: Share = 0.0


class Finetuning(Optimisation):
    """Fine-tuning on one training set, for a number of ``steps`` or of ``epochs``."""

    steps: Count = 0
    epochs: Count = 0
    max_length: Annotated[Positive, Field(ge=16)] = 128
    stride: Positive = 128
    """Overlap of two windows of a context that is longer than ``max_length`` (question answering)."""

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Finetuning:
        if bool(self.steps) == bool(self.epochs):
            raise ValueError(f"give either steps or epochs (here steps {self.steps}, epochs {self.epochs})")
        return self


class Group(Config):
    """Methods of one of the other tables, which run beside those of the main tables."""

    methods: tuple[str, ...] = ()
    """Which of them run."""
    training_sets: tuple[str, ...] = ()
    """What they are fine-tuned on; methods of the main tables are fine-tuned on all training sets."""


class Setting(BaseSetting):
    """A paper under a profile: ``experiments/<paper>/profiles/<profile>.yaml``. ``methods`` are those of the main tables."""

    routers: Group = Group()
    """What runs for the table of routers under the paper's protocol."""
    ensembles: Group = Group()
    """Which ensembles within one model run for the table of uncertainty."""
    initialisation: Literal["scratch", "bundled", "hub"] = "scratch"
    checkpoint: str | None = None
    """A folder below ``data/downloads``, or owner/name@revision (40 hexadecimal digits); only for ``hub``, where it is required."""
    encoder: Encoder
    sparse: Sparse
    pretrain: Pretraining
    finetune: dict[str, Finetuning]
    """Training set → its optimisation."""

    @property
    def groups(self) -> dict[str, Group]:
        """The groups, by the ``table`` of their methods."""
        return {"routers": self.routers, "ensembles": self.ensembles}

    def running(self, path: Path, methods: Mapping[str, BaseMethod]) -> list[str]:
        """Names of the methods that run: of the main tables those chosen, or all; of the groups those that they name.

        Raises:
            MoebenchError: the setting names a method that does not exist, or that belongs to another table.
        """
        tables: dict[str, list[str]] = {table: [] for table in ("main", *self.groups)}
        for name, method in methods.items():
            tables[method.table].append(name)  # type: ignore[attr-defined]
        groups = [(f"{table}.methods", table, group.methods) for table, group in self.groups.items()]
        for key, table, names in (("methods", "main", self.methods), *groups):
            for name in names or ():
                if name not in tables[table]:
                    raise MoebenchError(
                        f"{path}: key {key!r} names {name!r}{nearest(name, tables[table])};"
                        f" methods with table {table!r} are: {', '.join(tables[table]) or 'none'}"
                    )
        main = tables["main"] if self.methods is None else self.methods
        return sorted([*main, *(name for _, _, names in groups for name in names)])

    def check(self, experiment: Experiment) -> None:
        """See `_check`."""
        _check(experiment)

    @model_validator(mode="after")
    def _checkpoint_belongs_to_hub(self) -> Setting:
        if (self.checkpoint is None) == (self.initialisation == "hub"):
            needed = "required" if self.initialisation == "hub" else "not an option"
            raise ValueError(f"checkpoint is {needed} for initialisation {self.initialisation!r}")
        return self


class Method(BaseMethod):
    """One method: ``experiments/<paper>/methods/<method>.yaml``."""

    table: Literal["main", "routers", "ensembles"] = "main"
    """``routers``, ``ensembles``: runs where the setting's key of that name names it, and is shown in one table alone, that of routers or
    that of uncertainty."""
    layer: str
    """``none``: the dense encoder, without the inserted layer; ``moe``: router and experts; or a file of ``moebench/moe/layers``."""
    router: str | None = None
    fine_grained: Positive = 1
    """m: every expert is split into m of inner width F / m (DeepSeekMoE, arXiv 2401.06066); the shared ones are taken out of these."""
    shared: Count = 0
    """Experts, after splitting, that see every token."""
    consistency: Weight = 0.0
    """α of THOR's two-forward loss (arXiv 2110.04260, eqs. 4-5); 0: one forward pass a step."""
    freeze_in_finetuning: bool = False
    """Router and experts do not change in fine-tuning (X-MoE, section 3.3)."""
    pretrained: bool = True
    """``false``: a floor, fine-tuned from random weights."""
    ensemble: Literal["mc_dropout", "batch_ensemble"] | None = None
    """What gives the fine-tuned model several members (``moebench/ensembles``); none: it is a single model."""
    members: Few = 1
    """M of an ensemble within one model; of MC dropout the number of passes."""
    dropout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Rate in fine-tuning and prediction of MC dropout, which needs it; the encoder's own is for all others and for pre-training."""

    @property
    def source(self) -> tuple[Literal["router", "layer"], str] | None:
        """The router, or the layer if it has none."""
        if self.layer == "none":
            return None
        return ("router", self.router) if self.router is not None else ("layer", self.layer)

    @model_validator(mode="after")
    def _parts_fit_the_ensemble(self) -> Method:
        if (self.ensemble is None) != (self.table != "ensembles"):
            raise ValueError(f"table {self.table!r} {'needs' if self.table == 'ensembles' else 'takes no'} ensemble")
        if (self.ensemble is None) != (self.members == 1):
            raise ValueError(f"members {self.members}: should be {'1 without an ensemble' if self.ensemble is None else '2 or more'}")
        if (self.dropout is None) != (self.ensemble != "mc_dropout"):
            raise ValueError(f"dropout is {'not an option' if self.dropout else 'required'} for ensemble {self.ensemble!r}")
        if self.ensemble and not self.pretrain_as:
            raise ValueError("an ensemble within one model is not pre-trained: pretrain_as has to name a method with the same layer")
        return self

    @model_validator(mode="after")
    def _parts_fit_the_layer(self) -> Method:
        if (self.router is None) != (self.layer != "moe"):
            raise ValueError(f"layer {self.layer!r} {'needs a' if self.layer == 'moe' else 'takes no'} router")
        if self.layer == "none" and (self.options or self.losses or self.freeze_in_finetuning or self.consistency):
            raise ValueError("options, losses, consistency and freeze_in_finetuning belong to a layer")
        if self.layer != "moe" and (self.fine_grained, self.shared) != (1, 0):
            raise ValueError("fine_grained and shared belong to layer 'moe'")
        return self


def encoder(setting: Setting, method: Method) -> Encoder:
    """The trunk of a method: the setting's, with the method's own rate of dropout where it has one."""
    return setting.encoder if method.dropout is None else setting.encoder.model_copy(update={"dropout": method.dropout})


def sparse(setting: Setting, method: Method) -> Sparse | None:
    """The inserted layer of a method: the setting's, with what the method says about experts; none for layer ``none``."""
    if method.layer == "none":
        return None
    shape, m = setting.sparse, method.fine_grained
    experts = 1 if method.layer == "dense" else shape.experts * m - method.shared
    return shape.model_copy(update={"experts": experts, "inner": shape.inner // m, "shared": method.shared})


def training_sets(experiment: Experiment, method: Method | None = None) -> dict[str, list[str]]:
    """Return training set → its tasks, in the profile's order: all, or those that a method is fine-tuned on.

    Raises:
        MoebenchError: a task does not exist or does not belong to the profile's source.
    """
    data: TextData = experiment.data
    sets: dict[str, list[str]] = {}
    for task in tasks(data):
        if task.constructed != (data.source == "constructed"):
            raise MoebenchError(f"{experiment.data_file}: key 'tasks' names {task.name!r}, which source {data.source!r} does not have")
        sets.setdefault(task.train, []).append(task.name)
    group = experiment.setting.groups.get(method.table) if method else None
    return {name: found for name, found in sets.items() if group is None or name in group.training_sets}


def _check(experiment: Experiment) -> None:
    """Check that data, setting and methods fit together.

    Raises:
        MoebenchError: they do not; the message names the file, the key and what would be right.
    """
    setting: Setting = experiment.setting
    path, sets = experiment.setting_file, training_sets(experiment)
    known = {task.train for task in catalogue.TASKS.values()}
    for name in setting.finetune:
        if name not in known:
            raise MoebenchError(f"{path}: key 'finetune.{name}'{nearest(name, known)}; training sets are: {', '.join(sorted(known))}")
    for table, group in setting.groups.items():
        for name in group.training_sets:
            if name not in sets:
                raise MoebenchError(
                    f"{path}: key '{table}.training_sets' names {name!r}{nearest(name, sets)}; training sets are: {', '.join(sorted(sets))}"
                )
    for name in sets:
        if name not in setting.finetune:
            raise MoebenchError(f"{path}: key 'finetune.{name}' is missing: the profile has tasks that are trained on it")
    _check_sizes(experiment)
    for name, method in experiment.methods.items():
        _check_method(experiment, name, method)


def _check_sizes(experiment: Experiment) -> None:
    """Check what is counted without making the data.

    That ``lexicon`` and ``names`` are enough for the examples asked for is not: how many there are shows only when they are drawn. The
    fewest that may be given, 60 and 40, are enough for 100,000 of each task, and these take a minute or more to draw.
    """
    setting: Setting = experiment.setting
    data: TextData = experiment.data
    path, shape, inner = experiment.setting_file, setting.encoder, setting.sparse
    if data.corpus is None and any(method.pretrained for method in experiment.methods.values()) and setting.pretrain.steps:
        raise MoebenchError(f"{experiment.data_file}: key 'corpus' is missing: the profile pre-trains")
    if setting.pretrain.translation and setting.pretrain.steps and not (data.constructed and data.constructed.parallel):
        raise MoebenchError(
            f"{path}: key 'pretrain.translation' has the value {setting.pretrain.translation}; there are no pairs (constructed.parallel)"
        )
    check_memory(path, {"encoder": shape.weights, "sparse": inner.experts * inner.sublayers * 2 * shape.width * inner.inner})
    if data.constructed and data.tokens.vocabulary and data.tokens.vocabulary < (least := SPECIAL + len(alphabet(data.constructed))):
        raise MoebenchError(
            f"{experiment.data_file}: key 'tokens.vocabulary' has the value {data.tokens.vocabulary}; should be at least {least}:"
            f" each character of the languages needs a piece, as do the space and 5 special ones"
        )
    check_memory(experiment.data_file, {"tokens.vocabulary": (data.tokens.vocabulary or 0) * shape.width})
    ranks = setting.devices * setting.nodes
    for key, run, length in (
        *(("pretrain", setting.pretrain, data.corpus.sequence_length) for _ in "." if data.corpus),
        *((f"finetune.{name}", run, run.max_length) for name, run in setting.finetune.items()),
    ):
        if shape.positions == "learned" and length > shape.max_positions:
            where = (
                f"{path}: key '{key}.max_length'"
                if run is not setting.pretrain
                else f"{experiment.data_file}: key 'corpus.sequence_length'"
            )
            raise MoebenchError(f"{where} has the value {length}; encoder.max_positions is {shape.max_positions}")
        check_memory(path, {f"{key}.batch' x '{key}.max_length' or 'corpus.sequence_length": run.batch * length * shape.width / ranks})


def _check_method(experiment: Experiment, name: str, method: Method) -> None:
    path, setting, profile = experiment.method_file(name), experiment.setting, experiment.profile
    if method.layer not in layers():
        raise MoebenchError(
            f"{path}: key 'layer' has the value {method.layer!r}{nearest(method.layer, layers())}; layers are: {', '.join(layers())}"
        )
    if method.layer not in ("none", "moe") and (needed := part("layer", method.layer).works_with):
        raise MoebenchError(
            f"{path}: key 'layer' has the value {method.layer!r}, which works with {' or '.join(needed)}; an encoder's are ResidualExperts"
        )
    shape = sparse(setting, method)
    if shape is not None and (shape.experts < 1 or shape.inner < 1):
        raise MoebenchError(
            f"{path}: fine_grained {method.fine_grained} and shared {method.shared} leave {shape.experts} experts of inner width"
            f" {shape.inner}, of {setting.sparse.experts} of inner width {setting.sparse.inner} in profile {profile!r}; at least 1 of each"
        )
    if shape is not None:
        experiment.check_options(name, setting.encoder.width, shape.experts)
        slots = method.options.get("slots", 0)
        check_memory(path, {"options.slots": slots * shape.experts * setting.encoder.width})
    if method.pretrain_as is None:
        return
    other: Method = experiment.method(method.pretrain_as, f"{path}: key 'pretrain_as': ")
    if other.pretrain_as or not (method.pretrained and other.pretrained):
        raise MoebenchError(f"{path}: key 'pretrain_as' names {method.pretrain_as!r}: both have to be pre-trained, that one by itself")
    for key in ("layer", "router", "options", "fine_grained", "shared"):
        mine, theirs = getattr(method, key), getattr(other, key)
        if mine != theirs:
            raise MoebenchError(f"{path}: key {key!r} has the value {mine!r}, but {method.pretrain_as!r} was pre-trained with {theirs!r}")

"""Typed, validated configuration of profiles, papers and methods. Imports no torch, so that a mistake shows at once.

Files, all YAML, all under the project's root:

- ``params.yaml``: the selected profile and the folder of original benchmark files.
- ``data/profiles/<profile>.yaml``: which data a profile uses (`Data`).
- ``experiments/<paper>/profiles/<profile>.yaml``: at which scale it runs a paper (`Setting`).
- ``experiments/<paper>/methods/<method>.yaml``: one method (`Method`).

An unknown key, a wrong type or an impossible combination is a `MoebenchError` that names the file, the key, the value,
what is allowed and the nearest valid name.
"""

from __future__ import annotations

import ast
import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from moebench.catalogue import TASKS, Task, task
from moebench.errors import MoebenchError, nearest

PROFILES = ("smoke", "cpu", "real", "paper")
MOE_FOLDER = Path(__file__).parent / "moe"

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused and values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------------------------------------------------------- data


class Constructed(Config):
    """How the constructed languages are made (``docs/CONSTRUCTED_LANGUAGES.md``)."""

    languages: Annotated[int, Field(ge=2, le=8)] = 5
    """How many, the pivot included; the first ones are the nearest to it."""
    seed: int = 0
    cognates: Share = 0.12
    """Share of the lexicon that a language shares with the pivot, by form."""
    romanised: bool = False
    """Whether all languages are written in the pivot's letters, so that what they share by form has the same pieces."""
    lexicon: Annotated[int, Field(ge=60)] = 90
    """Number of lemmas of open word classes."""
    names: Annotated[int, Field(ge=40)] = 90
    documents: Positive = 8000
    """Pre-training documents per language."""
    parallel: Count = 4000
    """Translated phrases and sentences, of the pivot with each other language."""
    train: Positive = 6000
    """Training examples per task, pivot only."""
    validation: Positive = 300
    test: Positive = 300
    """Test examples per task and language."""


class Corpus(Config):
    """The pre-training rows."""

    sequence_length: Positive = 64
    validation_rows: Positive = 200
    """Held-out rows per language."""


class Tokens(Config):
    """Which tokenizer: SentencePiece trained on the training corpus, the bundled XLM-R pieces, or a checkpoint's."""

    source: Literal["trained", "bundled", "hub"] = "trained"
    vocabulary: Positive | None = None
    """Number of pieces; only for ``trained``, where it is required."""
    checkpoint: str | None = None
    """A folder below ``data/downloads``, or owner/name@revision; only for ``hub``, where it is required."""

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> Tokens:
        if (self.vocabulary is None) == (self.source == "trained"):
            raise ValueError(f"vocabulary is {'required' if self.source == 'trained' else 'not an option'} for source {self.source!r}")
        if (self.checkpoint is None) == (self.source == "hub"):
            raise ValueError(f"checkpoint is {'required' if self.source == 'hub' else 'not an option'} for source {self.source!r}")
        return self


class Data(Config):
    """The data of a profile: ``data/profiles/<profile>.yaml``."""

    source: Literal["constructed", "files", "hub"]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    constructed: Constructed | None = None
    """Options of the generator; only for source ``constructed``."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Languages of the test sets, not for source ``constructed``; none: all whose files are there, or that ``data/sources.yaml`` lists."""
    train_files: dict[str, str] = {}
    """Training set → file below the folder that holds it; where the benchmark's own training file is not at hand."""
    train_languages: dict[str, str] = {}
    """Training set → the language of its file in ``train_files``, where it is not English."""
    train_as: dict[str, str] = {}
    """Training set → the one that stands in for it: their tasks share fine-tuned models."""
    test_from_train: tuple[str, ...] = ()
    """Tasks whose test files carry no labels: a part of the training file, held out from training, is their test set."""
    corpus_files: dict[str, str] = {}
    """Language → plain-text file (a document a line) or folder of such files ``*.txt``, below the folder, for pre-training."""
    corpus_sets: tuple[str, ...] = ()
    """Training sets whose texts, without their labels, join the pre-training corpus."""
    corpus: Corpus | None = None
    """Shape of the pre-training rows; none: no pre-training corpus is prepared."""
    tokens: Tokens
    max_train: Positive | dict[str, Positive] | None = None
    """At most so many training examples, drawn from the whole file: of every training set, or by its name; none, or not named: all."""
    max_test: Positive | dict[str, Positive] | None = None
    """The same of validation and test examples in each language, by task; of validation sets the largest of their tasks."""

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> Data:
        if (self.constructed is not None) != (self.source == "constructed"):
            raise ValueError("the section 'constructed' belongs to, and is required by, source 'constructed' alone")
        if self.source == "constructed" and self.languages:
            raise ValueError("languages belongs to the sources 'files' and 'hub' (constructed.languages is the number made)")
        for name in ("train_files", "train_languages", "train_as", "test_from_train", "corpus_files", "corpus_sets"):
            if self.source != "files" and getattr(self, name):
                raise ValueError(f"{name} belongs to source 'files'; the sets of source 'hub' stand in data/sources.yaml")
        if self.tokens.source == "trained" and self.corpus is None:
            raise ValueError("a trained tokenizer needs the section 'corpus'")
        for key, names in (("max_train", sorted({one.train for one in TASKS.values()})), ("max_test", sorted(TASKS))):
            for name in given if isinstance(given := getattr(self, key), dict) else ():
                if name not in names:
                    raise ValueError(f"{key} names {name!r}{nearest(name, names)}; should be one of {', '.join(names)}")
        return self

    def most_train(self, training_set: str) -> int | None:
        """At most so many examples of a training set; none: all."""
        return self.max_train.get(training_set) if isinstance(self.max_train, dict) else self.max_train

    def most_test(self, task: str) -> int | None:
        """At most so many test examples of a task; none: all."""
        return self.max_test.get(task) if isinstance(self.max_test, dict) else self.max_test

    def most_validation(self, training_set: str) -> int | None:
        """At most so many validation examples of a training set, the largest of its tasks; none: all."""
        limits = [self.most_test(one.name) for one in tasks(self) if one.train == training_set]
        return None if None in limits else max(limit for limit in limits if limit)


# --------------------------------------------------------------------------------------------------------------- model


class Encoder(Config):
    """Transformer encoder. Shapes: D width, H heads, F inner width of a feed-forward layer, L layers."""

    layers: Annotated[int, Field(ge=2)]
    width: Positive
    heads: Positive
    inner: Positive
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["relative", "learned"] = "learned"
    """``relative``: a learned bias per head and distance; ``learned``: absolute embeddings, counted from 0."""
    max_positions: Positive = 512
    token_types: Count = 0
    epsilon: Rate = 1e-5
    dropout: Share = 0.0
    initial_std: Rate = 0.02
    """Standard deviation of the initial weights and embeddings; 0.02 is that of BERT at width 768."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Encoder:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class Sparse(Config):
    """The sparse layer inserted after the middle block: E experts, each a stack of feed-forward sub-layers."""

    experts: Positive
    sublayers: Positive = 3
    inner: Positive
    identity: bool = False
    """Start with experts whose output is zero, so that step 0 equals the model without the layer exactly."""
    shared: Count = 0
    """Experts that see every token, beside the routed ones."""


class Optimisation(Config):
    """One run of AdamW with linear warm-up and linear decay to 0."""

    steps: Count
    batch: Positive
    rate: Rate
    warmup: Share = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: Rate = 1e-6
    clip: Rate = 1.0
    head_rate: Rate = 1.0
    """Factor on the learning rate of the head."""
    sparse_rate: Rate = 1.0
    """Factor on the learning rate of the sparse layer."""
    freeze_embedding: bool = False
    """Whether the word embedding stays as it is, where the weights are pretrained."""
    freeze_blocks: Count = 0
    """How many of the lower blocks stay as they are, and with them all embeddings, where the weights are pretrained."""
    checkpoint_every: Positive = 1000
    """Steps between resumable checkpoints."""


class Pretraining(Optimisation):
    """Masked-language-model pre-training; ``translation`` is the share of rows that are translated pairs (TLM)."""

    mask: Share = 0.15
    translation: Share = 0.0


class Finetuning(Optimisation):
    """Fine-tuning on one training set, for a number of ``steps`` or of ``epochs``."""

    steps: Count = 0
    epochs: Count = 0
    max_length: Positive = 128
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


class Setting(Config):
    """A paper under a profile: ``experiments/<paper>/profiles/<profile>.yaml``."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    methods: tuple[str, ...] | None = None
    """Which methods of the main tables run; none: all."""
    routers: Group = Group()
    """What runs for the table of routers under the paper's protocol."""
    ensembles: Group = Group()
    """Which ensembles within one model run for the table of uncertainty."""
    baseline: str
    """The method that differences are taken against."""
    initialisation: Literal["scratch", "bundled", "hub"] = "scratch"
    checkpoint: str | None = None
    """A folder below ``data/downloads``, or owner/name@revision (40 hexadecimal digits); only for ``hub``, where it is required."""
    precision: Literal["fp32", "bf16"] = "fp32"
    devices: Positive = 1
    nodes: Positive = 1
    threads: Positive = 1
    """CPU threads of one run; runs go side by side."""
    encoder: Encoder
    sparse: Sparse
    pretrain: Pretraining
    finetune: dict[str, Finetuning]
    """Training set → its optimisation."""
    options: dict[str, dict[str, Any]] = {}
    """Method → options of its router or layer that depend on the scale; they go before those of the method's file."""
    notes: dict[str, str] = {}
    """Key → where its value comes from if the paper does not state it, or what else the tables should say about it."""

    @property
    def groups(self) -> dict[str, Group]:
        """The groups, by the ``table`` of their methods."""
        return {"routers": self.routers, "ensembles": self.ensembles}

    @model_validator(mode="after")
    def _checkpoint_belongs_to_hub(self) -> Setting:
        if (self.checkpoint is None) == (self.initialisation == "hub"):
            needed = "required" if self.initialisation == "hub" else "not an option"
            raise ValueError(f"checkpoint is {needed} for initialisation {self.initialisation!r}")
        return self


# -------------------------------------------------------------------------------------------------------------- method


class Method(Config):
    """One method: ``experiments/<paper>/methods/<method>.yaml``."""

    label: str
    """How tables call it."""
    published: str | None = None
    """Name of its row in ``published.yaml``; none: not published."""
    table: Literal["main", "routers", "ensembles"] = "main"
    """``routers``, ``ensembles``: runs where the setting's key of that name names it, and is shown in one table alone, that of routers or
    that of uncertainty."""
    layer: str
    """``none``: the dense encoder, without the inserted layer; ``moe``: router and experts; or a file of ``moebench/moe/layers``."""
    router: str | None = None
    options: dict[str, Any] = {}
    """Keyword options of the router's class, or of the layer's if it has no router; checked against its signature."""
    losses: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Loss of the router or layer → its coefficient, in pre-training and in fine-tuning; all but ``z`` have to be named, 0 turns off."""
    fine_grained: Positive = 1
    """m: every expert is split into m of inner width F / m (DeepSeekMoE, arXiv 2401.06066); the shared ones are taken out of these."""
    shared: Count = 0
    """Experts, after splitting, that see every token."""
    consistency: Annotated[float, Field(ge=0)] = 0.0
    """α of THOR's two-forward loss (arXiv 2110.04260, eqs. 4-5); 0: one forward pass a step."""
    freeze_in_finetuning: bool = False
    """Router and experts do not change in fine-tuning (X-MoE, section 3.3)."""
    pretrained: bool = True
    """``false``: a floor, fine-tuned from random weights."""
    pretrain_as: str | None = None
    """Name of the method whose pre-trained checkpoints this one starts from; none: its own."""
    ensemble: Literal["mc_dropout", "batch_ensemble"] | None = None
    """What gives the fine-tuned model several members (``moebench/ensembles``); none: it is a single model."""
    members: Positive = 1
    """M of an ensemble within one model; of MC dropout the number of passes."""
    dropout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Rate in fine-tuning and prediction of MC dropout, which needs it; the encoder's own is for all others and for pre-training."""

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


# ------------------------------------------------------------------------------------------------------------- loading

Some = TypeVar("Some", bound=Config)


@cache
def _parsed(text: str) -> Any:
    """Parse YAML once a content: a verb asks for the same few files hundreds of times, and parsing is most of what that costs."""
    return yaml.safe_load(text)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        MoebenchError: missing, unreadable, not YAML, or not a mapping; the message names the file and the line.
    """
    try:
        value = copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MoebenchError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise MoebenchError(f"{path}: should be a mapping of keys to values, is {type(value).__name__}")
    return value


def complaint(path: Path, model: type[BaseModel], error: ValidationError) -> str:
    """Say what is wrong with a configuration file, a line a mistake: file, key, value and what would be right."""
    lines = []
    for item in error.errors():
        keys = [str(part) for part in item["loc"]]
        where = ".".join(keys) or "(whole file)"
        if item["type"] == "extra_forbidden":
            parent: Any = model
            for key in keys[:-1]:
                parent = parent.model_fields[key].annotation if _is_model(parent) and key in parent.model_fields else None
                parent = next((part for part in getattr(parent, "__args__", ()) if _is_model(part)), parent)
            allowed = sorted(parent.model_fields) if _is_model(parent) else []
            lines.append(f"{path}: unknown key {where!r}{nearest(keys[-1], allowed)}; keys are: {', '.join(allowed)}")
        elif item["type"] == "missing":
            lines.append(f"{path}: key {where!r} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: key {where!r} has the value {item['input']!r}: {message}")
    return "\n".join(lines)


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def load(path: Path, model: type[Some]) -> Some:
    """Read and validate one configuration file.

    Raises:
        MoebenchError: the file is missing or does not validate.
    """
    value = read_yaml(path)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise MoebenchError(complaint(path, model, error)) from error


def project_root() -> Path:
    """Return the project's root: the nearest folder upward from here that holds ``params.yaml`` and ``experiments``.

    Raises:
        MoebenchError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "experiments").is_dir():
            return folder
    raise MoebenchError(f"{here}: not inside a moebench project (no params.yaml beside experiments/ here or above)")


class Params(Config):
    """``params.yaml``: the one switch. ``folder`` is overridden by the environment variable MOEBENCH_FOLDER."""

    profile: Literal["smoke", "cpu", "real", "paper"]
    folder: str | None = None
    """Folder of original benchmark files, for the profiles ``real`` and ``paper``."""


def params(root: Path) -> Params:
    """Load ``params.yaml``."""
    return load(root / "params.yaml", Params)


def benchmark_folder(root: Path) -> Path:
    """Return the folder of original benchmark files.

    Raises:
        MoebenchError: none is configured, or it does not exist; the message says how to name one.
    """
    name = os.environ.get("MOEBENCH_FOLDER") or params(root).folder
    if not name:
        raise MoebenchError(
            "this profile reads original benchmark files and no folder is given: set 'folder' in params.yaml or the environment variable"
            " MOEBENCH_FOLDER to a folder in the layout of the XTREME download (data/README.md says which files)"
        )
    folder = (root / name).resolve()
    if not folder.is_dir():
        raise MoebenchError(f"{folder}: no such folder (from {'MOEBENCH_FOLDER' if os.environ.get('MOEBENCH_FOLDER') else 'params.yaml'})")
    return folder


def check_profile(name: str) -> str:
    """Return ``name`` if it is a profile.

    Raises:
        MoebenchError: it is not.
    """
    if name not in PROFILES:
        raise MoebenchError(f"unknown profile {name!r}{nearest(name, PROFILES)}; profiles are: {', '.join(PROFILES)}")
    return name


def papers(root: Path, profile: str | None = None) -> list[str]:
    """Names of the papers, sorted; of a profile those that have a setting for it."""
    names = sorted(path.parent.name for path in (root / "experiments").glob("*/methods"))
    return [name for name in names if profile is None or (root / "experiments" / name / "profiles" / f"{profile}.yaml").is_file()]


def check_paper(root: Path, name: str) -> str:
    """Return ``name`` if it is a paper.

    Raises:
        MoebenchError: it is not.
    """
    if name not in papers(root):
        raise MoebenchError(f"unknown paper {name!r}{nearest(name, papers(root))}; papers are: {', '.join(papers(root))}")
    return name


def routers() -> list[str]:
    """Names of the routers, sorted: a router's name is its file's, ``moebench/moe/routers/<name>.py``."""
    return _parts("routers")


def layers() -> list[str]:
    """Names of the layers: ``none``, ``moe`` (router and experts), then the files of ``moebench/moe/layers``, sorted."""
    return ["none", "moe", *_parts("layers")]


def _parts(folder: str) -> list[str]:
    return sorted(path.stem for path in (MOE_FOLDER / folder).glob("*.py") if path.stem != "__init__")


@dataclass(frozen=True)
class Part:
    """What the source of a router or layer says about it, read without importing it (so without torch)."""

    options: type[BaseModel]
    """Model of its options: the keyword-only parameters of its class's ``__init__``, but ``vocabulary``."""
    losses: tuple[str, ...]
    """Names of the losses that it reports: the class variable ``losses``."""


def part(folder: Literal["routers", "layers"], name: str) -> Part:
    """Read a router's or layer's source: the one class with base ``Router`` or ``SparseLayer``.

    Raises:
        MoebenchError: the file holds no such class.
    """
    path, base = MOE_FOLDER / folder / f"{name}.py", {"routers": "Router", "layers": "SparseLayer"}[folder]
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if isinstance(node, ast.ClassDef) and any(getattr(parent, "id", None) == base for parent in node.bases):
            break
    else:
        raise MoebenchError(f"{path}: holds no class with base {base}")
    fields: dict[str, Any] = {}
    losses: tuple[str, ...] = ()
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            for argument, default in zip(member.args.kwonlyargs, member.args.kw_defaults, strict=True):
                annotation = eval(ast.unparse(argument.annotation), {"Literal": Literal}) if argument.annotation else Any  # noqa: S307
                fields[argument.arg] = (annotation, ... if default is None else ast.literal_eval(default))
        elif isinstance(member, ast.AnnAssign) and getattr(member.target, "id", None) == "losses" and member.value is not None:
            losses = ast.literal_eval(member.value)
    fields.pop("vocabulary", None)
    return Part(create_model(f"{name} options", __config__=ConfigDict(extra="forbid", frozen=True), **fields), losses)


def method_file(root: Path, paper: str, name: str) -> Path:
    """Return the file of a method.

    Raises:
        MoebenchError: there is none; the message lists the names and the nearest one.
    """
    path = root / "experiments" / paper / "methods" / f"{name}.yaml"
    if not path.is_file():
        names = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise MoebenchError(f"unknown method {name!r} of paper {paper!r}{nearest(name, names)}; methods are: {', '.join(names)}")
    return path


def method(root: Path, paper: str, name: str, profile: str | None = None) -> Method:
    """Load one method and check it against its router or layer.

    Args:
        root: the project's root.
        paper: name of the paper.
        name: name of the method.
        profile: name of a profile whose setting may give options; none: the method's file alone.

    Raises:
        MoebenchError: no such method, or its file does not validate.
    """
    path = method_file(root, paper, name)
    value = load(path, Method)
    for key, given, allowed in (("layer", value.layer, layers()), ("router", value.router, [None, *routers()])):
        if given not in allowed:
            names = [each for each in allowed if each]
            raise MoebenchError(f"{path}: key {key!r} has the value {given!r}{nearest(str(given), names)}; {key}s are: {', '.join(names)}")
    if value.layer == "none":
        return value
    source = part("routers", value.router) if value.router else part("layers", value.layer)
    check_losses(path, value.losses, source.losses, f"router {value.router!r}" if value.router else f"layer {value.layer!r}")
    merged = value.options
    files: list[tuple[Path, str, dict[str, Any]]] = [(path, "options.", {})]
    if profile is not None and (at_scale := setting(root, paper, profile).options.get(name)):
        files.append((path.parents[1] / "profiles" / f"{profile}.yaml", f"options.{name}.", at_scale))
    for file, where, more in files:
        merged = merged | more
        try:
            options = source.options.model_validate(merged).model_dump()
        except ValidationError as error:
            raise MoebenchError(complaint(file, source.options, error).replace("key '", f"key '{where}")) from error
    return value.model_copy(update={"options": options})


def check_losses(path: Path, given: Mapping[str, float], reported: Sequence[str], owner: str) -> None:
    """Check that a method's file gives every loss that its router or layer reports a coefficient, but ``z``, which may be left out.

    Raises:
        MoebenchError: it names another loss, or not all.
    """
    unknown = [loss for loss in given if loss not in reported]
    silent = [loss for loss in reported if loss not in given and loss != "z"]
    if unknown:
        raise MoebenchError(
            f"{path}: unknown key 'losses.{unknown[0]}'{nearest(unknown[0], reported)};"
            f" losses of {owner} are: {', '.join(reported) or 'none'}"
        )
    if silent:
        raise MoebenchError(
            f"{path}: key 'losses.{silent[0]}' is missing: {owner} has this loss; give its coefficient, or 0 to leave it out"
        )


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


def data(root: Path, profile: str) -> Data:
    """Load the data section of a profile."""
    return load(root / "data" / "profiles" / f"{check_profile(profile)}.yaml", Data)


def tasks(data: Data) -> tuple[Task, ...]:
    """The profile's tasks, each with the training set that it has there (``train_as``)."""
    return tuple(replace(one, train=data.train_as.get(one.train, one.train)) for one in map(task, data.tasks))


def setting(root: Path, paper: str, profile: str) -> Setting:
    """Load a paper's setting under a profile."""
    return load(root / "experiments" / check_paper(root, paper) / "profiles" / f"{check_profile(profile)}.yaml", Setting)


def method_names(root: Path, paper: str, profile: str) -> list[str]:
    """Names of the methods that run under a profile, sorted.

    Raises:
        MoebenchError: the setting names a method that does not exist, or that belongs to another table.
    """
    folder, chosen = root / "experiments" / paper / "methods", setting(root, paper, profile)
    tables: dict[str, list[str]] = {table: [] for table in ("main", *chosen.groups)}
    for file in sorted(folder.glob("*.yaml")):
        tables[load(file, Method).table].append(file.stem)
    groups = [(f"{table}.methods", table, group.methods) for table, group in chosen.groups.items()]
    for key, table, names in (("methods", "main", chosen.methods), *groups):
        for name in names or ():
            if name not in tables[table]:
                raise MoebenchError(
                    f"{root / 'experiments' / paper / 'profiles' / f'{profile}.yaml'}: key {key!r} names {name!r}"
                    f"{nearest(name, tables[table])}; methods with table {table!r} are: {', '.join(tables[table]) or 'none'}"
                )
    main = tables["main"] if chosen.methods is None else chosen.methods
    return sorted([*main, *(name for _, _, names in groups for name in names)])

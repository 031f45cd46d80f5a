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
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from moebench.errors import MoebenchError, nearest

PROFILES = ("smoke", "cpu", "real", "paper")
ROUTER_FOLDER = Path(__file__).parent / "moe" / "routers"

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

    languages: Annotated[int, Field(ge=5, le=8)] = 5
    seed: int = 0
    cognates: Share = 0.12
    """Share of the lexicon that a language shares with the pivot, by form."""
    lexicon: Annotated[int, Field(ge=60)] = 90
    """Number of lemmas of open word classes."""
    names: Annotated[int, Field(ge=40)] = 90
    documents: Positive = 8000
    """Pre-training documents per language."""
    parallel: Count = 4000
    """Pairs of short translated texts, of the pivot with each other language."""
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
    """Which tokenizer: SentencePiece trained on the training corpus, or the bundled XLM-R pieces."""

    source: Literal["trained", "bundled"] = "trained"
    vocabulary: Positive | None = None
    """Number of pieces; only for ``trained``, where it is required."""

    @model_validator(mode="after")
    def _vocabulary_belongs_to_trained(self) -> Tokens:
        if (self.vocabulary is None) == (self.source == "trained"):
            raise ValueError(f"vocabulary is {'required' if self.source == 'trained' else 'not an option'} for source {self.source!r}")
        return self


class Data(Config):
    """The data of a profile: ``data/profiles/<profile>.yaml``."""

    source: Literal["constructed", "files"]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    constructed: Constructed | None = None
    """Options of the generator; only for source ``constructed``."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Languages of the test sets, only for source ``files``; none: all whose files are there."""
    train_files: dict[str, str] = {}
    """Training set → file below the folder that holds it; where the benchmark's own training file is not at hand."""
    corpus_files: dict[str, str] = {}
    """Language → plain-text file (a document a line) below the folder, for pre-training."""
    corpus: Corpus | None = None
    """Shape of the pre-training rows; none: no pre-training corpus is prepared."""
    tokens: Tokens
    max_train: Positive | None = None
    max_test: Positive | None = None
    """At most this many training / test examples (the first ones of the file); none: all."""

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> Data:
        if (self.constructed is not None) != (self.source == "constructed"):
            raise ValueError("the section 'constructed' belongs to, and is required by, source 'constructed' alone")
        if self.source == "constructed" and (self.train_files or self.corpus_files or self.languages):
            raise ValueError("languages, train_files and corpus_files belong to source 'files' (constructed.languages is the number made)")
        if self.tokens.source == "trained" and self.corpus is None:
            raise ValueError("a trained tokenizer needs the section 'corpus'")
        return self


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
    head_rate: Rate = 1.0
    """Factor on the learning rate of the task head."""
    sparse_rate: Rate = 1.0
    """Factor on the learning rate of the sparse layer."""
    freeze_embedding: bool = False

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Finetuning:
        if bool(self.steps) == bool(self.epochs):
            raise ValueError(f"give either steps or epochs (here steps {self.steps}, epochs {self.epochs})")
        return self


class Setting(Config):
    """A paper under a profile: ``experiments/<paper>/profiles/<profile>.yaml``."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    methods: tuple[str, ...] | None = None
    """Which methods run; none: every file of ``methods/``."""
    baseline: str
    """The method that differences are taken against."""
    initialisation: Literal["scratch", "bundled"] = "scratch"
    frozen_routing: bool = True
    """Whether the methods that freeze the sparse layer in fine-tuning do so; not where that layer starts untrained."""
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
    notes: dict[str, str] = {}
    """Key → where its value comes from if the paper does not state it, or what else the tables should say about it."""


# -------------------------------------------------------------------------------------------------------------- method


class Method(Config):
    """One method: ``experiments/<paper>/methods/<method>.yaml``."""

    label: str
    """How tables call it."""
    published: str | None = None
    """Name of its row in ``published.yaml``; none: not published."""
    layer: Literal["none", "moe"]
    """``none``: the dense encoder, without the inserted layer."""
    router: str | None = None
    options: dict[str, Any] = {}
    """Keyword options of the router's class, checked against its signature."""
    balance: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the load-balancing loss, in pre-training and in fine-tuning."""
    freeze_in_finetuning: bool = False
    """Router and experts do not change in fine-tuning (X-MoE, section 3.3)."""
    pretrained: bool = True
    """``false``: a floor, fine-tuned from random weights."""
    pretrain_as: str | None = None
    """Name of the method whose pre-trained checkpoints this one starts from; none: its own."""

    @model_validator(mode="after")
    def _router_fits_the_layer(self) -> Method:
        if (self.router is None) != (self.layer == "none"):
            raise ValueError(f"layer {self.layer!r} {'takes no' if self.layer == 'none' else 'needs a'} router")
        if self.layer == "none" and (self.options or self.balance or self.freeze_in_finetuning):
            raise ValueError("options, balance and freeze_in_finetuning belong to layer 'moe'")
        return self


# ------------------------------------------------------------------------------------------------------------- loading

Some = TypeVar("Some", bound=Config)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        MoebenchError: missing, unreadable, not YAML, or not a mapping; the message names the file and the line.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MoebenchError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise MoebenchError(f"{path}: should be a mapping of keys to values, is {type(value).__name__}")
    return value


def _complaint(path: Path, model: type[BaseModel], error: ValidationError) -> str:
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
        raise MoebenchError(_complaint(path, model, error)) from error


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


def papers(root: Path) -> list[str]:
    """Names of the papers, sorted."""
    return sorted(path.parent.name for path in (root / "experiments").glob("*/methods"))


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
    return sorted(path.stem for path in ROUTER_FOLDER.glob("*.py") if path.stem != "__init__")


def router_options(name: str) -> type[BaseModel]:
    """Return a model of a router's options, read from its source without importing it (so without torch).

    A router file holds one class with base ``Router``; its options are the keyword-only parameters of ``__init__``.
    """
    path = ROUTER_FOLDER / f"{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", None) == "Router" for base in node.bases):
            break
    else:
        raise MoebenchError(f"{path}: holds no class with base Router")
    fields: dict[str, Any] = {}
    for function in node.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
                annotation = eval(ast.unparse(argument.annotation), {"Literal": Literal}) if argument.annotation else Any  # noqa: S307
                fields[argument.arg] = (annotation, ... if default is None else ast.literal_eval(default))
    return create_model(f"{name} options", __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def method(root: Path, paper: str, name: str) -> Method:
    """Load one method and check its router's options.

    Raises:
        MoebenchError: no such method, or its file does not validate.
    """
    path = root / "experiments" / paper / "methods" / f"{name}.yaml"
    if not path.is_file():
        names = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise MoebenchError(f"unknown method {name!r} of paper {paper!r}{nearest(name, names)}; methods are: {', '.join(names)}")
    value = load(path, Method)
    if value.router is None:
        return value
    if value.router not in routers():
        raise MoebenchError(
            f"{path}: key 'router' has the value {value.router!r}{nearest(value.router, routers())}; routers are: {', '.join(routers())}"
        )
    options = router_options(value.router)
    try:
        return value.model_copy(update={"options": options.model_validate(value.options).model_dump()})
    except ValidationError as error:
        raise MoebenchError(_complaint(path, options, error).replace("key '", "key 'options.")) from error


def data(root: Path, profile: str) -> Data:
    """Load the data section of a profile."""
    return load(root / "data" / "profiles" / f"{check_profile(profile)}.yaml", Data)


def setting(root: Path, paper: str, profile: str) -> Setting:
    """Load a paper's setting under a profile."""
    return load(root / "experiments" / check_paper(root, paper) / "profiles" / f"{check_profile(profile)}.yaml", Setting)


def method_names(root: Path, paper: str, profile: str) -> list[str]:
    """Names of the methods that run under a profile, sorted.

    Raises:
        MoebenchError: the setting names a method that does not exist.
    """
    folder = root / "experiments" / paper / "methods"
    every = sorted(path.stem for path in folder.glob("*.yaml"))
    chosen = setting(root, paper, profile).methods
    for name in chosen or ():
        if name not in every:
            path = root / "experiments" / paper / "profiles" / f"{profile}.yaml"
            raise MoebenchError(f"{path}: key 'methods' names {name!r}{nearest(name, every)}; methods are: {', '.join(every)}")
    return every if chosen is None else sorted(chosen)

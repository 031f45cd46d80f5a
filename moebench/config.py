"""Typed, validated configuration: what all experiments share. Imports no torch, so that a mistake shows at once.

Files, all YAML, all under the project's root:

- ``params.yaml``: the default profile and the folder of original benchmark files (`Params`).
- ``experiments/<paper>/experiment.yaml``: what the paper is and which protocol it follows (`About`).
- ``experiments/<paper>/data/<profile>.yaml``: which data a profile uses (`BaseData`).
- ``experiments/<paper>/profiles/<profile>.yaml``: at which scale it runs the paper (`BaseSetting`).
- ``experiments/<paper>/methods/<method>.yaml``: one method (`BaseMethod`).

A protocol's own data, setting and method have these as bases (``moebench/protocols/<name>/config.py``). An unknown key, a wrong type or
an impossible combination is a `MoebenchError` that names the file, the key, the value, what is allowed and the nearest valid name.
"""

from __future__ import annotations

import ast
import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from moebench.errors import MoebenchError, nearest

MOE_FOLDER = Path(__file__).parent / "moe"

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused and values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Params(Config):
    """``params.yaml``. ``folder`` is overridden by the environment variable MOEBENCH_FOLDER."""

    profile: str
    """The profile of a command that names none, and of plain ``dvc repro``."""
    folder: str | None = None
    """Folder of original benchmark files, for profiles that read them."""


class About(Config):
    """``experiments/<paper>/experiment.yaml``."""

    protocol: str
    """Which kind of experiment: a folder of ``moebench/protocols``."""
    name: str
    """What tables call the paper."""
    title: str
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{5}$")]


class BaseData(Config):
    """Which data a profile uses."""

    @property
    def outside(self) -> bool:
        """Whether files outside the project are read: the pipeline cannot see that they change, so the plan is made anew each time."""
        return False


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


class BaseMethod(Config):
    """One method."""

    label: str
    """How tables call it."""
    published: str | None = None
    """Name of its row in ``published.yaml``; none: not published."""
    options: dict[str, Any] = {}
    """Keyword options of its router or layer (`source`), checked against the signature of its class."""
    losses: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Loss of the router or layer → its coefficient; all but ``z`` have to be named, 0 turns off."""
    pretrain_as: str | None = None
    """Name of the method whose pre-trained checkpoints this one starts from; none: its own."""

    @property
    def source(self) -> tuple[Literal["router", "layer"], str] | None:
        """The router or layer that `options` and `losses` belong to; none: the method has no experts."""
        return None

    @property
    def decided(self) -> dict[str, Any]:
        """Options of the router or layer that follow from other keys, and may not be given."""
        return {}

    @property
    def made_from(self) -> list[str]:
        """The methods whose runs this one starts from, or consists of."""
        return [self.pretrain_as] if self.pretrain_as else []


class BaseSetting(Config):
    """A paper under a profile."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    methods: tuple[str, ...] | None = None
    """Which methods run; none: all."""
    baseline: str
    """The method that differences are taken against."""
    precision: Literal["fp32", "bf16"] = "fp32"
    devices: Positive = 1
    nodes: Positive = 1
    threads: Positive = 1
    """CPU threads of one run; runs go side by side."""
    options: dict[str, dict[str, Any]] = {}
    """Method → options of its router or layer that depend on the scale; they override those of the method's file."""
    notes: dict[str, str] = {}
    """Key → where its value comes from if the paper does not state it, or what else the tables should say about it."""

    def running(self, path: Path, methods: Mapping[str, BaseMethod]) -> list[str]:
        """Names of the methods that run, sorted.

        Args:
            path: the setting's file, for messages.
            methods: all methods of the paper.

        Raises:
            MoebenchError: the setting names a method that does not exist.
        """
        for name in self.methods or ():
            if name not in methods:
                raise MoebenchError(f"{path}: key 'methods' names {name!r}{nearest(name, methods)}; methods are: {', '.join(methods)}")
        return sorted(methods if self.methods is None else self.methods)

    def check(self, experiment: Any) -> None:
        """Check what no single file shows: that data, setting and methods of a `moebench.experiment.Experiment` fit together.

        Raises:
            MoebenchError: they do not; the message names the file, the key and what would be right.
        """


# ------------------------------------------------------------------------------------------------------------- loading

Some = TypeVar("Some", bound=Config)
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def _parsed(text: str) -> Any:
    """Parse YAML once a content: a verb asks for the same few files many times, and parsing is most of what that costs."""
    return yaml.load(text, Loader=Loader)


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
            " MOEBENCH_FOLDER to a folder in the layout that data/README.md describes"
        )
    folder = (root / name).resolve()
    if not folder.is_dir():
        raise MoebenchError(f"{folder}: no such folder (from {'MOEBENCH_FOLDER' if os.environ.get('MOEBENCH_FOLDER') else 'params.yaml'})")
    return folder


# -------------------------------------------------------------------------------------------------- routers and layers


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
    untaught: tuple[dict[str, Any], ...] = ()
    """Options that together leave a router without a gradient of the task: the class variable ``untaught``."""


def part(kind: Literal["router", "layer"], name: str) -> Part:
    """Read a router's or layer's source: the one class with base ``Router`` or ``SparseLayer``.

    Raises:
        MoebenchError: the file holds no such class.
    """
    path, base = MOE_FOLDER / f"{kind}s" / f"{name}.py", {"router": "Router", "layer": "SparseLayer"}[kind]
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if isinstance(node, ast.ClassDef) and any(getattr(parent, "id", None) == base for parent in node.bases):
            break
    else:
        raise MoebenchError(f"{path}: holds no class with base {base}")
    fields: dict[str, Any] = {}
    literals: dict[str, Any] = {"losses": (), "untaught": ()}
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            for argument, default in zip(member.args.kwonlyargs, member.args.kw_defaults, strict=True):
                annotation = eval(ast.unparse(argument.annotation), {"Literal": Literal}) if argument.annotation else Any  # noqa: S307
                fields[argument.arg] = (annotation, ... if default is None else ast.literal_eval(default))
        elif isinstance(member, ast.AnnAssign) and getattr(member.target, "id", None) in literals and member.value is not None:
            literals[getattr(member.target, "id", "")] = ast.literal_eval(member.value)
    fields.pop("vocabulary", None)
    return Part(create_model(f"{name} options", __config__=ConfigDict(extra="forbid", frozen=True), **fields), **literals)


def with_options(path: Path, method: BaseMethod, at_scale: Mapping[str, Any], setting_file: Path) -> BaseMethod:
    """Check a method against its router or layer; returns it with all options, those of the setting and the defaults among them.

    Args:
        path: the method's file.
        method: what it says.
        at_scale: options that the setting gives it.
        setting_file: the setting's file.

    Raises:
        MoebenchError: there is no such router or layer, it has no such option or loss, or it would get no gradient; the message names the
            file and the key.
    """
    if method.source is None:
        if at_scale:
            raise MoebenchError(f"{setting_file}: key 'options.{path.stem}': that method has neither router nor layer of experts")
        return method
    kind, name = method.source
    names = {"router": routers, "layer": layers}[kind]()
    if name not in names:
        raise MoebenchError(f"{path}: key {kind!r} has the value {name!r}{nearest(name, names)}; {kind}s are: {', '.join(names)}")
    source = part(kind, name)
    check_losses(path, method.losses, source.losses, f"{kind} {name!r}")
    options: dict[str, Any] = dict(method.decided)
    given: dict[str, Any] = {}
    for file, where, more in ((path, "options.", method.options), (setting_file, f"options.{path.stem}.", at_scale)):
        for key in method.decided.keys() & more.keys():
            raise MoebenchError(f"{file}: key '{where}{key}' follows from other keys of the method")
        given |= more
        try:
            options = source.options.model_validate(given | method.decided).model_dump()
        except ValidationError as error:
            raise MoebenchError(complaint(file, source.options, error).replace("key '", f"key '{where}")) from error
    for together in source.untaught:
        if together.items() <= options.items():
            key, *others = (f"{key} {json.dumps(value)}" for key, value in together.items())
            raise MoebenchError(
                f"{path}: key 'options': {key} with {' and '.join(others)} makes every weight constant,"
                f" so that the task teaches {kind} {name!r} nothing; change one of them"
            )
    return method.model_copy(update={"options": {key: value for key, value in options.items() if key not in method.decided}})


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

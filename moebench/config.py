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
import contextlib
import copy
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)

from moebench.errors import MoebenchError, nearest, shorten, shown

MOE_FOLDER = Path(__file__).parent / "moe"
DEEPEST, MOST_VALUES = 50, 100_000
"""What a file may hold: so many levels, and so many values, each counted as often as an alias repeats it."""


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


Real = Annotated[float, BeforeValidator(_no_boolean)]
Whole = Annotated[int, Field(strict=True, le=10**9)]
Positive = Annotated[Whole, Field(ge=1)]
Count = Annotated[Whole, Field(ge=0)]
Few = Annotated[Positive, Field(le=1024)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
"""What every generator of random numbers takes."""
Rate = Annotated[Real, Field(ge=1e-12, le=1e6)]
"""Above 0 in float32, too."""
Share = Annotated[Real, Field(ge=0, le=1)]
Decay = Annotated[Real, Field(ge=0, lt=1)]
Weight = Annotated[Real, Field(ge=0, le=1e6)]
FORM = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=500)
Text = Annotated[str, Field(min_length=1)]


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused, as are NaN and infinity, and values cannot change."""

    model_config = FORM
    newer: ClassVar[tuple[str, ...]] = ()
    """Keys that a dump, and so a plan, leaves out where they have their default: runs from before there were such keys stay the same."""

    @model_serializer(mode="wrap")
    def _without_newer_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = [key for key in self.newer if getattr(self, key) == type(self).model_fields[key].default]
        return {key: value for key, value in serialise(self).items() if key not in left_out}


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
    name: Text
    """What tables call the paper."""
    title: Text
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{5}$")]


class BaseData(Config):
    """Which data a profile uses."""

    @property
    def outside(self) -> bool:
        """Whether files outside the project are read: the pipeline cannot see that they change, so the plan is made anew each time."""
        return False


class Optimisation(Config):
    """One run of AdamW with linear warm-up and linear decay to 0."""

    newer = ("accumulate",)
    steps: Count
    batch: Positive
    rate: Rate
    warmup: Share = 0.06
    weight_decay: Annotated[Real, Field(ge=0, le=1e3)] = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    epsilon: Annotated[Rate, Field(le=1)] = 1e-6
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
    accumulate: Positive = 1
    """In how many parts, one after the other, a rank computes its share of a batch: less memory, the same step."""


class BaseMethod(Config):
    """One method."""

    label: str
    """How tables call it."""
    published: str | None = None
    """Name of its row in ``published.yaml``; none: not published."""
    options: dict[str, Any] = {}
    """Keyword options of its router or layer (`source`), checked against the signature of its class."""
    losses: dict[str, Weight] = {}
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

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    methods: tuple[str, ...] | None = None
    """Which methods run; none: all."""
    baseline: str
    """The method that differences are taken against."""
    precision: Literal["fp32", "bf16"] = "fp32"
    devices: Few = 1
    nodes: Few = 1
    threads: Few = 1
    """CPU threads of one run; runs go side by side."""
    options: dict[str, dict[str, Any]] = {}
    """Method → options of its router or layer that depend on the scale; they override those of the method's file."""
    notes: dict[str, str] = {}
    """Key → where its value comes from if the paper does not state it, or what else the tables should say about it."""

    @model_validator(mode="after")
    def _nothing_is_named_twice(self) -> Self:
        for key in ("seeds", "methods"):
            if (given := getattr(self, key)) and len(set(given)) < len(given):
                raise ValueError(f"{key} names {next(one for one in given if given.count(one) > 1)!r} twice")
        return self

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
BaseLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(BaseLoader):  # type: ignore[misc,valid-type]
    """YAML whose keys are given once, and whose aliases cannot make a small file large."""

    def get_single_node(self) -> Any:
        """Refuse what would be read as something else, or for hours."""
        root = super().get_single_node()
        self._weigh(root, {})
        return root

    def _weigh(self, node: Any, known: dict[int, int]) -> int:
        if id(node) not in known:
            known[id(node)] = MOST_VALUES  # of a value that holds itself
            parts, keys = getattr(node, "value", None), set()
            if isinstance(node, yaml.MappingNode):
                for key, _ in node.value:
                    if str(key.value) in keys:
                        raise yaml.MarkedYAMLError(problem=f"second value for key {shown(key.value)}", problem_mark=key.start_mark)
                    keys.add(str(key.value))
                parts = [part for pair in node.value for part in pair]
            known[id(node)] = 1 + (sum(self._weigh(part, known) for part in parts) if isinstance(parts, list) else 0)
            if known[id(node)] > MOST_VALUES:
                raise yaml.MarkedYAMLError(problem="aliases that repeat too much", problem_mark=node.start_mark)
        return known[id(node)]


@cache
def _parsed(text: str) -> Any:
    """Parse YAML once a content: a verb asks for the same few files many times, and parsing is most of what that costs."""
    depth = 0
    for event in yaml.parse(text, Loader=BaseLoader):  # deep nesting would crash the parser, which is written in C
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=event.start_mark)  # type: ignore[arg-type]
    return yaml.load(text, Loader=Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        MoebenchError: missing, unreadable, not YAML, or not a mapping; the message names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):
            raise MoebenchError(f"{path}: begins with a byte-order mark; save it as UTF-8 without one")
        value = copy.deepcopy(_parsed(text))
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise MoebenchError(f"{path}: should be UTF-8: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise MoebenchError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise MoebenchError(f"{path}: should be a mapping of keys to values, is {type(value).__name__}")
    return value


def complaint(path: Path, model: type[BaseModel], error: ValidationError) -> str:
    """Say what is wrong with a configuration file, a line a mistake: file, key, value and what would be right."""
    lines = []
    for item in error.errors():
        keys = [shorten(str(part)) for part in item["loc"]]
        where = ".".join(keys) or "(whole file)"
        if item["type"] == "extra_forbidden":
            parent: Any = model
            for key in keys[:-1]:
                if not _is_model(parent) or key not in parent.model_fields:
                    continue  # of a mapping, whose values are what was found before
                parent = parent.model_fields[key].annotation
                parent = next((part for part in getattr(parent, "__args__", ()) if _is_model(part)), parent)
            allowed = sorted(parent.model_fields) if _is_model(parent) else []
            lines.append(f"{path}: unknown key {where!r}{nearest(keys[-1], allowed)}; keys are: {', '.join(allowed)}")
        elif item["type"] == "missing":
            lines.append(f"{path}: key {where!r} is missing")
        else:
            message = shorten(item["msg"].removeprefix("Value error, "), 1000)
            lines.append(f"{path}: key {where!r} has the value {shown(item['input'])}: {message}" if keys else f"{path}: {message}")
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
    checks: list[ast.stmt]
    """What its ``__init__`` does before it builds anything: it raises ValueError where an option is out of range."""
    constants: dict[str, Any]
    """The plain values of its module."""

    untaught: tuple[dict[str, Any], ...] = ()
    """Options that together leave a router without a gradient of the task: the class variable ``untaught``."""
    works_with: tuple[str, ...] = ()
    """Classes of experts that a layer works with, none: any: the class variable ``works_with``."""

    def refusal(self, options: Mapping[str, Any], **given: Any) -> str:
        """Return what its class has against these options, beginning with the option's name and value; empty: nothing."""
        names = {**self.constants, **given, **options}
        for check in self.checks:
            try:
                exec(compile(ast.Module([check], []), "<options>", "exec"), names)
            except (NameError, AttributeError):  # of torch, which is not imported here, or of what experts have beside their number
                continue
            except ValueError as error:
                return str(error)
        return ""


KINDS = {"Literal": Literal, "int": Whole, "bool": StrictBool, "float": Annotated[Real, Field(ge=-1e9, le=1e9)]}


@cache
def part(kind: Literal["router", "layer"], name: str) -> Part:
    """Read a router's or layer's source: the one class with base ``Router`` or ``SparseLayer``.

    Raises:
        MoebenchError: the file holds no such class.
    """
    path, base = MOE_FOLDER / f"{kind}s" / f"{name}.py", {"router": "Router", "layer": "SparseLayer"}[kind]
    module = ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body
    for node in module:
        if isinstance(node, ast.ClassDef) and any(getattr(parent, "id", None) == base for parent in node.bases):
            break
    else:
        raise MoebenchError(f"{path}: holds no class with base {base}")
    fields: dict[str, Any] = {}
    literals: dict[str, Any] = {"losses": (), "untaught": (), "works_with": ()}
    checks = ast.parse((MOE_FOLDER / "capacity.py").read_text(encoding="utf-8")).body
    checks = [one for one in checks if isinstance(one, ast.FunctionDef) and one.name == "check_factors"]
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            checks += [
                one for one in member.body if not {"self", "super"} & {name.id for name in ast.walk(one) if isinstance(name, ast.Name)}
            ]
            for argument, default in zip(member.args.kwonlyargs, member.args.kw_defaults, strict=True):
                annotation = eval(ast.unparse(argument.annotation), KINDS) if argument.annotation else Any  # noqa: S307
                fields[argument.arg] = (annotation, ... if default is None else ast.literal_eval(default))
        elif isinstance(member, ast.AnnAssign) and getattr(member.target, "id", None) in literals and member.value is not None:
            literals[getattr(member.target, "id", "")] = ast.literal_eval(member.value)
    fields.pop("vocabulary", None)
    constants = {}
    for one in module:
        with contextlib.suppress(ValueError):
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
                constants[one.targets[0].id] = ast.literal_eval(one.value)
    return Part(create_model(f"{name} options", __config__=FORM, **fields), checks=checks, constants=constants, **literals)


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


def check_memory(path: Path, needed: Mapping[str, float]) -> None:
    """Refuse what this machine could not hold even once, in float32; a GPU has no more memory than the machine around it.

    Args:
        path: the file, for messages.
        needed: key → how many numbers it asks for.

    Raises:
        MoebenchError: they are too many.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for key, numbers in needed.items():
        if 4 * numbers > there:
            raise MoebenchError(
                f"{path}: key '{key}' asks for {4 * numbers / 2**30:.0f} GiB at least, and this machine has {there / 2**30:.0f} GiB"
            )


def gpus() -> list[str]:
    """Names of the GPUs that a process may use, as in ``CUDA_VISIBLE_DEVICES``."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def check_devices(path: Path, setting: BaseSetting) -> None:
    """Refuse to train on devices that are not there: the ranks that are would wait for the others.

    Not asked where a launcher has started this process, which knows better.

    Raises:
        MoebenchError: there are fewer GPUs, or without any fewer cores, or other nodes that nobody starts.
    """
    if {"LOCAL_RANK", "SLURM_NTASKS", "MASTER_ADDR"} & os.environ.keys() or setting.devices * setting.nodes == 1:
        return
    found, cores = len(gpus()), len(os.sched_getaffinity(0))
    if setting.devices > (found or cores):
        what = f"{found} GPUs" if found else f"no GPU and {cores} cores"
        raise MoebenchError(f"{path}: key 'devices' has the value {setting.devices}; this machine has {what}")
    if setting.nodes > 1:
        raise MoebenchError(
            f"{path}: key 'nodes' has the value {setting.nodes}; start every node with a launcher, such as torchrun or SLURM"
        )


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

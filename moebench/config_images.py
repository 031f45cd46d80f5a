"""Typed, validated configuration of papers on images. Imports no torch.

Files, all YAML, all under the project's root:

- ``data/images/<profile>.yaml``: which images a profile uses (`ImageData`).
- ``experiments/<paper>/profiles/<profile>.yaml``: at which scale it runs a paper (`ImageSetting`).
- ``experiments/<paper>/methods/<method>.yaml``: one method (`ImageMethod`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from moebench.config import (
    PROFILES,
    Config,
    Count,
    Optimisation,
    Positive,
    Rate,
    Share,
    check_losses,
    complaint,
    load,
    method_file,
    part,
    read_yaml,
)
from moebench.errors import MoebenchError, nearest

UPSTREAM, DOWNSTREAM = "upstream", "downstream"
"""Training sets: what is pre-trained on, what is fine-tuned on."""
EXPERTS = ("vmoe", "e3", "only_tiling", "only_partitioning", "multi_head")
"""Variants with layers of experts."""
ENSEMBLES = ("batch_ensemble", "mimo", "mc_dropout")
"""Variants of the dense transformer whose members share a run."""


TRAINABLE = ("cifar10", "cifar100", "svhn", "imagenet")
"""Datasets with a training and a test set."""
SHIFTS = {"imagenet_a": "imagenet", "imagenet_r": "imagenet", "imagenet_v2": "imagenet"}
"""Dataset → the one whose classes it shows in other pictures."""
CORRUPTED = {"cifar10_c": "cifar10", "cifar100_c": "cifar100", "imagenet_c": "imagenet"}
"""Dataset → the one whose test images it holds corrupted."""


class ImageFiles(Config):
    """Which original datasets serve as which set (``moebench/data/image_benchmarks.py``)."""

    folders: dict[str, str]
    """Dataset → its folder below the folder of original files."""
    upstream: str
    """Pre-trained on."""
    downstream: str
    """Fine-tuned on and tested."""
    validation: Positive
    """So many images of the downstream training set, drawn, are held out from it."""
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    """Out of distribution: like the downstream images, and unlike them."""
    shifts: tuple[str, ...] = ()
    """The downstream classes in other pictures."""
    corrupted: str | None = None
    """The downstream test set, corrupted; none: our own corruptions of it."""
    optional: tuple[str, ...] = ()
    """Sets that are left out where their folder is not there."""
    side: Positive
    """Of the downstream images and all that are compared with them, in pixels; others are resized."""
    upstream_side: Positive | None = None
    """Of the upstream images; none: ``side``."""

    @model_validator(mode="after")
    def _datasets_fit_their_roles(self) -> ImageFiles:
        trained = (self.upstream, self.downstream)
        untrained = [name for name in (*TRAINABLE, "dtd", "places365") if name not in trained]
        scored = (*self.near, *self.far, *self.shifts, *([self.corrupted] if self.corrupted else []))
        roles: dict[str, tuple[Sequence[str], Sequence[str]]] = {
            "upstream": ([self.upstream], TRAINABLE),
            "downstream": ([self.downstream], TRAINABLE),
            "near": (self.near, untrained),
            "far": (self.far, untrained),
            "shifts": (self.shifts, [name for name, clean in SHIFTS.items() if clean == self.downstream]),
            "corrupted": ([self.corrupted] if self.corrupted else [], [name for name, of in CORRUPTED.items() if of == self.downstream]),
            "optional": (self.optional, scored),
            "folders": (list(self.folders), list(dict.fromkeys((*trained, *scored)))),
        }
        for key, (names, allowed) in roles.items():
            for name in names:
                if key in ("near", "far") and name in trained:
                    raise ValueError(f"{key} names {name!r}, which is trained on: nothing of it is out of distribution")
                if name not in allowed:
                    right = f"should be one of {', '.join(allowed)}" if allowed else f"downstream {self.downstream!r} has none"
                    raise ValueError(f"{key} names {name!r}{nearest(name, allowed)}, which is no such set here; {right}")
                if name not in self.folders:
                    raise ValueError(f"{key} names {name!r}, but folders does not say where it lies")
        if len(set(scored)) < len(scored):
            raise ValueError(f"near, far, shifts and corrupted name a dataset twice: {', '.join(scored)}")
        return self


class ImageData(Config):
    """Which images a profile uses, built-in ones (``moebench/data/images.py``) or original files: ``data/images/<profile>.yaml``."""

    source: Literal["builtin", "files"] = "builtin"
    files: ImageFiles | None = None
    """Which original files; only for source ``files``."""
    seed: int = 0
    """Draws the splits, what is taken of larger sets, and the corruptions."""
    max_train: Positive | None = None
    max_test: Positive | None = None
    """At most this many images of a training / test set, of the built-in ones the first, of files drawn; none: all."""
    max_corrupted: Positive | None = None
    """At most this many test images are corrupted, or taken from a corrupted dataset; none: all."""
    corruptions: tuple[str, ...] | None = None
    """Which of the seeded corruptions; none: all. Of a corrupted dataset they have to be named, as its files are."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 2, 3, 4, 5)

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> ImageData:
        if (self.files is not None) != (self.source == "files"):
            raise ValueError("the section 'files' belongs to, and is required by, source 'files' alone")
        if self.files is not None and self.files.corrupted and self.corruptions is None:
            raise ValueError(f"corruptions is missing: which of {self.files.corrupted!r}")
        return self


class Vision(Config):
    """Shape of a vision transformer (arXiv 2010.11929): square images, square patches, pre-norm blocks, a class token."""

    image: Positive
    """Side in pixels."""
    patch: Positive
    channels: Positive = 3
    layers: Positive
    width: Positive
    heads: Positive
    inner: Positive
    dropout: Share = 0.0
    """Of the embedded patches, the output of attention, and the activations and the output of a feed-forward layer, as in the public code;
    of a layer of experts only the output, where the public code drops inside each expert. All but one of its configurations have 0."""

    @model_validator(mode="after")
    def _parts_divide_the_whole(self) -> Vision:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.image % self.patch:
            raise ValueError(f"image {self.image} is not a multiple of patch {self.patch}")
        return self


class ImageTraining(Optimisation):
    """One run on images; ``head_rate`` is that of the new head in fine-tuning, ``sparse_rate`` that of layers of experts."""

    ensemble_rate: Rate = 1.0
    """Factor on the learning rate of BatchEnsemble's vectors."""
    shift: Count = 0
    """Augmentation: every training image is moved by up to this many pixels in each direction, black coming in."""


class ImageSetting(Config):
    """A paper on images under a profile: ``experiments/<paper>/profiles/<profile>.yaml``."""

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
    vision: Vision
    finetune_side: Positive | None = None
    """Side of the images in fine-tuning, in pixels; none: that of ``vision``."""
    experts: Positive
    """E of a layer of experts."""
    last: Positive | None = None
    """Layers of experts: the last n of the blocks that can hold one; none: all of these ("Every-2")."""
    pretrain: ImageTraining
    finetune: ImageTraining
    shots: tuple[Positive, ...] = (1, 5, 10, 25)
    """Examples a class in few-shot evaluation."""
    draws: Count = 5
    """Random supports that a few-shot accuracy is the mean of."""
    shallow: Count = 5000
    """How many training images the shallow baselines see, the first ones; 0: there are none."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Method → options of its router that depend on the scale; they go before those of the method's file."""
    notes: dict[str, str] = Field(default_factory=dict)
    """Key → where its value comes from if the paper does not state it, or what else the tables should say about it."""

    @model_validator(mode="after")
    def _patches_divide_the_side(self) -> ImageSetting:
        if self.finetune_side is not None and self.finetune_side % self.vision.patch:
            raise ValueError(f"finetune_side {self.finetune_side} is not a multiple of patch {self.vision.patch}")
        return self


class ImageMethod(Config):
    """One method of a paper on images: ``experiments/<paper>/methods/<method>.yaml``."""

    label: str
    """How tables call it."""
    published: str | None = None
    """Name of its row in ``published.yaml``; none: not published."""
    variant: Literal[
        "dense", "vmoe", "e3", "only_tiling", "only_partitioning", "multi_head", "batch_ensemble", "mimo", "mc_dropout", "deep"
    ]
    members: Positive = 1
    """M of an ensemble within one model; of MC dropout the number of passes."""
    of: dict[str, tuple[Count, ...]] = Field(default_factory=dict)
    """A deep ensemble's members: method → places in the list of seeds, counted from the ensemble's own, round the end."""
    shape: dict[str, Any] = Field(default_factory=dict)
    """Fields of the transformer that differ from the setting's, as ``width`` of a smaller model."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword options of the router."""
    losses: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Loss of the router → its coefficient; all but ``z`` have to be named, 0 turns off."""
    repetition: Share = 0.0
    """MIMO's input repetition in training."""
    fast_std: float = 0.5
    """Deviation of BatchEnsemble's vectors from 1 at the start; see ``moebench.ensembles.batch_ensemble``."""
    pretrain_as: str | None = None
    """Name of the method whose pre-trained checkpoints this one starts from; none: its own."""
    draw: Count = 0
    """Another number is another fine-tuning from the same checkpoint: other head, other order."""

    @property
    def router(self) -> str | None:
        """The router of its layers of experts."""
        if self.variant in EXPERTS:
            return "partitioned" if self.variant in ("e3", "only_partitioning") else "noisy_topk"
        return None

    @model_validator(mode="after")
    def _parts_fit_the_variant(self) -> ImageMethod:
        if bool(self.of) != (self.variant == "deep"):
            raise ValueError(f"of is {'required' if self.variant == 'deep' else 'not an option'} for variant {self.variant!r}")
        if self.router is None and (self.options or self.losses):
            raise ValueError(f"options and losses belong to layers of experts, which variant {self.variant!r} has not")
        if self.variant in ("dense", "vmoe", "deep") and self.members != 1:
            raise ValueError(f"members belongs to an ensemble within one model, which variant {self.variant!r} is not")
        if self.variant == "deep" and (self.shape or self.pretrain_as):
            raise ValueError("a deep ensemble trains nothing: its members' methods have the shape and the pre-training")
        return self


def of_images(root: Path, paper: str) -> bool:
    """Whether a paper is about images: whether its profiles have the key ``vision``."""
    files = [root / "experiments" / paper / "profiles" / f"{profile}.yaml" for profile in PROFILES]
    return any(file.is_file() and "vision" in read_yaml(file) for file in files)


def data(root: Path, profile: str) -> ImageData:
    """Load which images a profile uses."""
    return load(root / "data" / "images" / f"{profile}.yaml", ImageData)


def setting(root: Path, paper: str, profile: str) -> ImageSetting:
    """Load a paper's setting under a profile."""
    return load(root / "experiments" / paper / "profiles" / f"{profile}.yaml", ImageSetting)


def method_names(root: Path, paper: str, profile: str) -> list[str]:
    """Names of the methods that run under a profile, sorted.

    Raises:
        MoebenchError: the setting names a method that does not exist.
    """
    folder, chosen = root / "experiments" / paper / "methods", setting(root, paper, profile)
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    for name in chosen.methods or ():
        if name not in names:
            raise MoebenchError(
                f"{root / 'experiments' / paper / 'profiles' / f'{profile}.yaml'}: key 'methods' names {name!r}{nearest(name, names)};"
                f" methods are: {', '.join(names)}"
            )
    return names if chosen.methods is None else sorted(chosen.methods)


def method(root: Path, paper: str, name: str, profile: str | None = None) -> ImageMethod:
    """Load one method and check it against its router; with a profile, with the options that its setting gives.

    Raises:
        MoebenchError: no such method, or its file does not validate.
    """
    path = method_file(root, paper, name)
    value = load(path, ImageMethod)
    if value.router is None:
        return value
    source = part("routers", value.router)
    check_losses(path, value.losses, source.losses, f"router {value.router!r}")
    options = value.options
    if profile is not None:
        options = setting(root, paper, profile).options.get(name, {}) | options
    decided = {"members": value.members, "tiled": value.variant == "e3"} if value.router == "partitioned" else {}
    for key in decided:
        if key in options:
            raise MoebenchError(f"{path}: key 'options.{key}' follows from variant and members")
    try:
        checked = source.options.model_validate(options | decided).model_dump()
    except ValidationError as error:
        raise MoebenchError(complaint(path, source.options, error).replace("key '", "key 'options.")) from error
    return value.model_copy(update={"options": {key: value for key, value in checked.items() if key not in decided}})


def vision(setting: ImageSetting, method: ImageMethod) -> Vision:
    """The transformer of a method: the setting's, with what the method says about its shape.

    Raises:
        MoebenchError: the fields do not fit together.
    """
    try:
        return Vision.model_validate(setting.vision.model_dump() | method.shape)
    except ValidationError as error:
        raise MoebenchError(f"method {method.label!r}: {complaint(Path('shape'), Vision, error)}") from error


def members_of(seeds: tuple[int, ...], seed: int, places: tuple[int, ...]) -> list[int]:
    """The seeds of a deep ensemble's members: those at ``places`` after its own in the list of seeds, round the end."""
    at = seeds.index(seed)
    return [seeds[(at + place) % len(seeds)] for place in places]

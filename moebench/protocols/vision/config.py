"""What a setting and a method may say: a vision transformer goes from an upstream to a downstream task. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from moebench.config import BaseMethod, BaseSetting, Count, Few, Optimisation, Positive, Rate, Real, Share, check_memory, complaint
from moebench.data.image_settings import BUILT_IN_CHANNELS, BUILT_IN_SIDE, ImageData
from moebench.errors import MoebenchError, nearest
from moebench.experiment import Experiment
from moebench.models.shapes import Vision

Data = ImageData
TASKS: tuple[str, ...] = ()
DETECTION = ("auroc", "aupr_out", "aupr_in", "fpr_at_95_tpr")
SCORES = ("max_probability", "entropy", "mutual_information", "max_logit", "energy", "mahalanobis", "relative_mahalanobis")
"""Of out-of-distribution detection."""
METRICS = (
    *("accuracy", "accuracy_bootstrap_se", "nll", "brier", "ece", "signed_ece", "adaptive_ece", "classwise_ece", "aurc"),
    *("nll_scaled", "ece_scaled", "temperature", "temperature_at_bound", "accuracy_<k>_shot"),
    *(f"{measure}_{score}" for measure in DETECTION for score in SCORES),
    *("disagreement", "normalised_disagreement", "mutual_information", "pairwise_kl", "cosine_diversity"),
    *("flops_per_image", "parameters"),
)
"""Metrics of the records; ``<k>`` stands for a number."""
EXPERTS = ("vmoe", "e3", "only_tiling", "only_partitioning", "multi_head")
"""Variants with layers of experts."""
ENSEMBLES = ("batch_ensemble", "mimo", "mc_dropout")
"""Variants of the dense transformer whose members share a run."""


class ImageTraining(Optimisation):
    """One run on images; ``head_rate`` is that of the new head in fine-tuning, ``sparse_rate`` that of layers of experts."""

    ensemble_rate: Rate = 1.0
    """Factor on the learning rate of BatchEnsemble's vectors."""
    shift: Count = 0
    """Augmentation: every training image is moved by up to this many pixels in each direction, black coming in."""


class Setting(BaseSetting):
    """A paper under a profile: ``experiments/<paper>/profiles/<profile>.yaml``."""

    newer = ("blocks", "group")
    vision: Vision
    finetune_side: Positive | None = None
    """Side of the images in fine-tuning, in pixels; none: that of ``vision``."""
    experts: Positive
    """E of a layer of experts."""
    last: Positive | None = None
    """Layers of experts: the last n of the odd blocks; none: all of these ("Every-2")."""
    blocks: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Layers of experts: in just these blocks, from 0; not beside ``last``."""
    group: Positive | None = None
    """Images of a routing group; none: the batch is one. V-MoE counts tokens; a group that cuts through an image is refused."""
    pretrain: ImageTraining
    finetune: ImageTraining
    shots: tuple[Positive, ...] = (1, 5, 10, 25)
    """Examples a class in few-shot evaluation."""
    draws: Count = 5
    """Random supports that a few-shot accuracy is the mean of."""
    shallow: Count = 5000
    """How many training images the shallow baselines see, the first ones; 0: there are none."""

    def check(self, experiment: Experiment) -> None:
        """See `_check`."""
        _check(experiment)

    @field_validator("group", mode="before")
    @classmethod
    def _groups_are_of_whole_images(cls, group: Any) -> Any:
        if isinstance(group, float) and group % 1:
            raise ValueError("counts images: a routing group that cuts through an image is not supported")
        return group

    @model_validator(mode="after")
    def _blocks_are_a_list_by_itself(self) -> Setting:
        if self.blocks is not None and self.last is not None:
            raise ValueError(f"last {self.last} and blocks {list(self.blocks)} both say where layers of experts are; leave one out")
        if self.blocks is not None and list(self.blocks) != sorted(set(self.blocks)):
            raise ValueError(f"blocks {list(self.blocks)} should rise")
        return self

    @model_validator(mode="after")
    def _patches_divide_the_side(self) -> Setting:
        if self.finetune_side is not None and self.finetune_side % self.vision.patch:
            raise ValueError(f"finetune_side {self.finetune_side} is not a multiple of patch {self.vision.patch}")
        return self


class Method(BaseMethod):
    """One method: ``experiments/<paper>/methods/<method>.yaml``."""

    variant: Literal[
        "dense", "vmoe", "e3", "only_tiling", "only_partitioning", "multi_head", "batch_ensemble", "mimo", "mc_dropout", "deep"
    ]
    members: Few = 1
    """M of an ensemble within one model; of MC dropout the number of passes."""
    of: dict[str, Annotated[tuple[Count, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """A deep ensemble's members: method → places in the list of seeds, counted from the ensemble's own, round the end."""
    shape: dict[str, Any] = Field(default_factory=dict)
    """Fields of the transformer that differ from the setting's, as ``width`` of a smaller model."""
    repetition: Share = 0.0
    """MIMO's input repetition in training."""
    fast_std: Annotated[Real, Field(ge=-1e6, le=1e6)] = 0.5
    """Deviation of BatchEnsemble's vectors from 1 at the start; see ``moebench.ensembles.batch_ensemble``."""
    draw: Count = 0
    """Another number is another fine-tuning from the same checkpoint: other head, other order."""

    @property
    def router(self) -> str | None:
        """The router of its layers of experts."""
        if self.variant in EXPERTS:
            return "partitioned" if self.variant in ("e3", "only_partitioning") else "noisy_topk"
        return None

    @property
    def source(self) -> tuple[Literal["router", "layer"], str] | None:
        """The router."""
        return ("router", self.router) if self.router else None

    @property
    def decided(self) -> dict[str, Any]:
        """What follows from variant and members."""
        return {"members": self.members, "tiled": self.variant == "e3"} if self.router == "partitioned" else {}

    @property
    def made_from(self) -> list[str]:
        """The members of a deep ensemble, or the method whose checkpoints it starts from."""
        return list(self.of) or super().made_from

    @model_validator(mode="after")
    def _parts_fit_the_variant(self) -> Method:
        if bool(self.of) != (self.variant == "deep"):
            raise ValueError(f"of is {'required' if self.variant == 'deep' else 'not an option'} for variant {self.variant!r}")
        if self.router is None and (self.options or self.losses):
            raise ValueError(f"options and losses belong to layers of experts, which variant {self.variant!r} has not")
        if self.variant in ("dense", "vmoe", "deep") and self.members != 1:
            raise ValueError(f"members belongs to an ensemble within one model, which variant {self.variant!r} is not")
        if self.variant == "deep" and (self.shape or self.pretrain_as):
            raise ValueError("a deep ensemble trains nothing: its members' methods have the shape and the pre-training")
        return self


def vision(setting: Setting, method: Method) -> Vision:
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


def _check(experiment: Experiment) -> None:
    """Check that data, setting and methods fit together.

    Raises:
        MoebenchError: they do not; the message names the file, the key and what would be right.
    """
    setting: Setting = experiment.setting
    _check_side(experiment)
    for name, method in experiment.methods.items():
        path = experiment.method_file(name)
        try:
            shape = vision(setting, method)
        except MoebenchError as error:
            raise MoebenchError(f"{path}: {error}") from error
        if setting.blocks is not None and setting.blocks[-1] >= shape.layers:
            raise MoebenchError(
                f"{experiment.setting_file}: key 'blocks' has the value {list(setting.blocks)};"
                f" should be from 0 to {shape.layers - 1}, as method {name!r} has {shape.layers} blocks"
            )
        _check_shape(experiment, path, shape, method)
        for member in method.of:
            if member not in experiment.methods or experiment.method(member).variant == "deep":
                raise MoebenchError(
                    f"{path}: key 'of.{member}'{nearest(member, experiment.methods)}: should be a method with runs that takes part"
                )
        if method.members > 1 and method.router == "partitioned" and setting.experts % method.members:
            raise MoebenchError(
                f"{path}: members {method.members} do not divide the {setting.experts} experts of profile {experiment.profile!r}"
            )
        experiment.check_options(name, setting.vision.width, setting.experts)
        if method.pretrain_as is not None:
            _check_start(path, method, experiment.method(method.pretrain_as, f"{path}: key 'pretrain_as': "))


def _check_shape(experiment: Experiment, path: Path, shape: Vision, method: Method) -> None:
    setting: Setting = experiment.setting
    odd = shape.layers // 2
    if (method.router or method.variant == "batch_ensemble") and not (setting.last or 1) <= odd:
        raise MoebenchError(
            f"{experiment.setting_file}: key 'last' has the value {setting.last}; {method.label} has {odd} blocks that can hold experts,"
            f" every second of vision.layers {shape.layers}"
        )
    experts = setting.experts * (setting.last or odd) * 2 * shape.width * shape.inner if method.router else 0
    check_memory(path if method.shape else experiment.setting_file, {"vision' or 'shape": shape.weights, "experts": experts})
    for key, run in (("pretrain", setting.pretrain), ("finetune", setting.finetune)):
        states = run.batch * (shape.image // shape.patch) ** 2 * shape.width / (setting.devices * setting.nodes)
        check_memory(experiment.setting_file, {f"{key}.batch": states})


def _check_side(experiment: Experiment) -> None:
    """The transformer should have the side and the channels of the images, and these should not be moved out of sight."""
    setting, files = experiment.setting, experiment.data.files
    given = {"vision.image": setting.vision.image, "finetune_side": setting.finetune_side or setting.vision.image}
    prepared = {"vision.image": BUILT_IN_SIDE, "finetune_side": BUILT_IN_SIDE, "vision.channels": BUILT_IN_CHANNELS}
    if files is not None:
        prepared = {"vision.image": files.upstream_side or files.side, "finetune_side": files.side, "vision.channels": 3}
    for key, value in prepared.items():
        if (mine := given.get(key, setting.vision.channels)) != value:
            raise MoebenchError(
                f"{experiment.setting_file}: key {key!r} has the value {mine}; the images that {experiment.data_file} prepares have {value}"
            )
    for key, run, side in (("pretrain", setting.pretrain, "vision.image"), ("finetune", setting.finetune, "finetune_side")):
        if run.shift >= prepared[side]:
            raise MoebenchError(
                f"{experiment.setting_file}: key '{key}.shift' has the value {run.shift}; should be below {prepared[side]},"
                " the side of the images in pixels, or nothing is left of them"
            )


def _check_start(path: Path, method: Method, start: Method) -> None:
    layered = (method.router is not None, start.variant == "vmoe")
    if start.pretrain_as or start.variant not in ("dense", "vmoe") or layered[0] != layered[1]:
        wanted = "a V-MoE" if layered[0] else "a dense transformer"
        raise MoebenchError(
            f"{path}: key 'pretrain_as' names {method.pretrain_as!r}, which should be {wanted} that is pre-trained by itself"
        )
    mine, theirs = ({key: value for key, value in each.shape.items() if key != "dropout"} for each in (method, start))
    if mine != theirs:
        raise MoebenchError(f"{path}: key 'shape' has the value {mine}, but {method.pretrain_as!r} was pre-trained with {theirs}")

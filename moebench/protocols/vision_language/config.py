"""What data, a setting and a method may say: an encoder of images and words is pre-trained by masking and fine-tuned. Imports no torch."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from moebench.config import BaseData, BaseSetting, Config, Count, Few, Optimisation, Positive, Seed, Share, check_memory, layers
from moebench.errors import MoebenchError, nearest
from moebench.experiment import Experiment
from moebench.models.feed_forward import FeedForwardMethod, looks_at_attention, sizes
from moebench.models.shapes import VisionLanguage

TASKS = ("vqa", "nlvr", "caption")
"""Answer a question about an image, judge a sentence about two images, describe an image."""
MODALITIES = ("text", "image", "pair_text", "pair_image")
"""What is masked in pre-training: words of text alone, patches of an image alone, words and patches of pairs."""
MASKED = ("nll", "perplexity", "accuracy")
SCORES = {"vqa": ("accuracy", "nll"), "nlvr": ("accuracy", "consistency", "nll"), "caption": ("bleu4", "cider")}
"""Task → metrics of its predictions; the first decides whether the task counts."""
ROUTING = (
    "load_entropy",
    "router_entropy",
    "rank_margin",
    "idle",
    "max_violation",
    "experts_per_token",
    "coupling",
    "load",
    "macs_per_token",
)
METRICS = tuple(dict.fromkeys((*MASKED, *(metric for metrics in SCORES.values() for metric in metrics), *ROUTING)))
"""Metrics of the records."""
SIDE, CHANNELS = 24, 1
"""Of scenes (``moebench/data/scenes.py``), in pixels."""
SPECIAL = ("[pad]", "[cls]", "[sep]", "[mask]", "[unk]")
"""The first words of the vocabulary; a word's id is its place."""


class Rows(Config):
    """How many rows of a task at most; of original files they are drawn, none: all."""

    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class Masked(Config):
    """How many rows of each kind there are at most to pre-train on, and in each kind to validate."""

    pairs: Positive
    """Images with a caption."""
    images: Positive
    """Images alone."""
    texts: Positive
    """Sentences alone."""
    validation: Positive


def _below(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} leaves the folder; give a path below it")
    return path


Below = Annotated[str, Field(min_length=1), AfterValidator(_below)]
"""A path below the folder of original files."""


class Pairs(Config):
    """More images with captions, in the format of COCO's."""

    captions: Below
    """The file."""
    pictures: Below
    """The folder that its names are below."""


class Originals(Config):
    """Where the original files are; their names in these folders are those that data/README.md lists. Pictures are resized."""

    coco: Below
    """Folder of ``train2014`` and ``val2014``."""
    vqa: Below
    """Folder of VQAv2's questions and annotations."""
    nlvr: Below
    """Folder of NLVR2's files and of ``images``."""
    captions: Below
    """Karpathy's file of COCO's captions and their splits."""
    pairs: tuple[Pairs, ...] = ()
    """To pre-train on beside COCO's captions."""
    pictures: Below | None = None
    """Folder of the images alone; none: the training images of NLVR2."""
    texts: Below | None = None
    """The texts alone, a file or a folder of ``*.txt``, a line each; none: the training questions and sentences."""


class Data(BaseData):
    """The images and texts of a profile."""

    source: Literal["scenes", "files"]
    """Made on the spot (``moebench/data/scenes.py``), or VQAv2, NLVR2 and COCO captions in their original files."""
    files: Originals | None = None
    """Where the original files are; only for source ``files``, where it is required."""
    seed: Seed = 0
    """Draws scenes, what is taken of original files, and the start of the codebook."""
    masked: Masked
    vqa: Rows = Rows()
    nlvr: Rows = Rows()
    caption: Rows = Rows()
    codebook: Annotated[Positive, Field(ge=2, le=65536)]
    """K, visual tokens."""
    codebook_images: Positive = 1000
    """The first so many images of pre-training make them."""
    vocabulary: Annotated[Positive, Field(gt=len(SPECIAL))] | None = None
    """The most frequent words of the training texts that are kept, special ones included; none: all."""
    answers: Positive | None = None
    """The most frequent training answers, which are those that a model can give; none: all."""

    @property
    def outside(self) -> bool:
        """Whether files outside the project are read."""
        return self.source == "files"

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> Data:
        if (self.files is not None) != (self.source == "files"):
            raise ValueError("the section 'files' belongs to, and is required by, source 'files' alone")
        if self.source == "files" and self.vqa.validation is None:
            raise ValueError("vqa.validation is missing: it is held out from the training questions")
        if self.source == "scenes":
            for task in TASKS:
                for split, count in getattr(self, task):
                    if count is None:
                        raise ValueError(f"{task}.{split} is missing: scenes are drawn, and there is no end of them")
        return self


class Parts(Config):
    """Rows of a batch of pre-training, by kind."""

    pairs: Positive
    images: Positive
    texts: Positive


class Pretraining(Optimisation):
    """Masked modelling of texts, images and pairs; the rate rises linearly and falls as ``decay`` says, to ``floor`` times its peak."""

    rows: Parts
    """How the batch is made up; together they are ``batch``."""
    mask_text: Annotated[Share, Field(gt=0)] = 0.15
    """Share of the words of text alone that are masked."""
    mask_text_of_pairs: Annotated[Share, Field(gt=0)] = 0.5
    mask_image: Annotated[Share, Field(gt=0)] = 0.4
    """Share of the patches, alone and in pairs."""
    decay: Literal["linear", "cosine"] = "cosine"
    floor: Share = 0.0

    @model_validator(mode="after")
    def _rows_make_the_batch(self) -> Pretraining:
        if (together := self.rows.pairs + self.rows.images + self.rows.texts) != self.batch:
            raise ValueError(f"batch {self.batch}: should be {together}, the sum of rows")
        return self


class Captioning(Optimisation):
    """Fine-tuning on captions: masked words are predicted from the image and the words before them."""

    mask: Annotated[Share, Field(gt=0)] = 0.7
    """Share of a caption's words that are masked."""


class Setting(BaseSetting):
    """A paper under a profile: ``experiments/<paper>/profiles/<profile>.yaml``."""

    model: VisionLanguage
    experts: Few
    """E of the baseline's layer of experts."""
    chosen: Few = 1
    """K of the baseline, which the parity of multi-head layers is with; a router's own is its option ``k``."""
    sparse_every: Few = 1
    """Blocks number n, 2n, … (from 1) have a layer of experts for tokens of both modalities; the others dense networks."""
    experts_of: dict[str, Few] = Field(default_factory=dict)
    """Method → its own E, where it is not the one that follows from its parity."""
    pretrain: Pretraining
    vqa: Optimisation
    nlvr: Optimisation
    caption: Captioning
    predict_batch: Positive = 256
    """Rows at once in validation and prediction."""
    shallow: Count = 5000
    """How many training rows the shallow baselines see, the first ones; 0: there are none."""

    def check(self, experiment: Experiment) -> None:
        """See `_check`."""
        _check(experiment)


class Method(FeedForwardMethod):
    """One method: ``experiments/<paper>/methods/<method>.yaml``; its layer stands in the blocks that ``sparse_every`` says."""

    @model_validator(mode="after")
    def _trains_itself(self) -> Method:
        if self.pretrain_as is not None:
            raise ValueError(f"pretrain_as {self.pretrain_as!r}: every method is pre-trained by itself here")
        return self


def shape_of(setting: Setting, method: Method, name: str) -> dict[str, int]:
    """The experts of a method: ``experts`` E and ``inner`` F.

    Raises:
        ValueError: widths do not divide, or nothing is left for experts.
    """
    found = sizes(method, setting.model.width, setting.model.inner, setting.experts, setting.chosen)
    return found | {"experts": setting.experts_of.get(name, found["experts"])}


def _check(experiment: Experiment) -> None:
    """Check that data, setting and methods fit together.

    Raises:
        MoebenchError: they do not; the message names the file, the key and what would be right.
    """
    setting: Setting = experiment.setting
    data: Data = experiment.data
    shape, path = setting.model, experiment.setting_file
    made = data.source == "scenes"
    for key, there in (("image", SIDE), ("channels", CHANNELS)) if made else (("channels", 3),):
        if (mine := getattr(shape, key)) != there:
            raise MoebenchError(f"{path}: key 'model.{key}' has the value {mine}; {'scenes' if made else 'pictures'} have {there}")
    if made:
        drawn = {f"masked.{key}": count for key, count in data.masked} | {
            f"{task}.{split}": count for task in TASKS for split, count in getattr(data, task)
        }
        check_memory(experiment.data_file, {key: count * SIDE**2 * CHANNELS for key, count in drawn.items()})
    weights = setting.experts * shape.layers * 3 * shape.width * shape.inner
    check_memory(path, {"model": shape.weights, "experts": weights})
    sizes_of = {"vocabulary": data.vocabulary or 0, "answers": data.answers or 0, "codebook": data.codebook}
    check_memory(experiment.data_file, {key: count * shape.width for key, count in sizes_of.items()})
    ranks = setting.devices * setting.nodes
    for key, run in (("pretrain", setting.pretrain), *((task, getattr(setting, task)) for task in TASKS)):
        check_memory(path, {f"{key}.batch": run.batch * shape.positions * shape.width / (ranks * run.accumulate)})
    for name in setting.experts_of:
        if name not in experiment.methods:
            raise MoebenchError(f"{path}: key 'experts_of' names {name!r}{nearest(name, experiment.methods)}, which is no method here")
    if setting.sparse_every > shape.layers:
        raise MoebenchError(f"{path}: key 'sparse_every' has the value {setting.sparse_every}; there are {shape.layers} blocks")
    for name, method in experiment.methods.items():
        _check_method(experiment, name, method)


def _check_method(experiment: Experiment, name: str, method: Method) -> None:
    path, setting = experiment.method_file(name), experiment.setting
    if method.layer not in layers():
        raise MoebenchError(
            f"{path}: key 'layer' has the value {method.layer!r}{nearest(method.layer, layers())}; layers are: {', '.join(layers())}"
        )
    if method.router is not None and looks_at_attention(method.router):
        raise MoebenchError(
            f"{path}: key 'router' has the value {method.router!r}, which looks at attention probabilities; they are not computed here"
        )
    try:
        found = shape_of(setting, method, name)
    except ValueError as error:
        raise MoebenchError(f"{path}: what follows from keys 'split', 'multi_head' and 'options.k' cannot be: {error}") from error
    experiment.check_options(name, setting.model.width // method.heads, found["experts"])
    if method.layer == "aoe" and method.options["node"] == "reduced":
        raise MoebenchError(f"{path}: key 'options.node' has the value 'reduced', which takes factorised experts; here their gate is whole")

"""What a profile's images may be: ``experiments/<paper>/data/<profile>.yaml`` of papers on images. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moebench.config import BaseData, Config, Positive, Seed
from moebench.errors import nearest

UPSTREAM, DOWNSTREAM = "upstream", "downstream"
"""Training sets: what is pre-trained on, what is fine-tuned on."""
TRAINABLE = ("cifar10", "cifar100", "svhn", "imagenet")
"""Datasets with a training and a test set."""
SHIFTS = {"imagenet_a": "imagenet", "imagenet_r": "imagenet", "imagenet_v2": "imagenet"}
"""Dataset → the one whose classes it shows in other pictures."""
CORRUPTED = {"cifar10_c": "cifar10", "cifar100_c": "cifar100", "imagenet_c": "imagenet"}
"""Dataset → the one whose test images it holds corrupted."""

BUILT_IN_SIDE, BUILT_IN_CHANNELS = 28, 1
"""Of the built-in images."""
OURS = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur", "pixelate", "elastic", "contrast", "brightness")
"""Our own corruptions (``moebench/data/corruptions.py``)."""
THEIRS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog"),
    *("brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
"""Those of the corrupted datasets; the last four are meant for validation."""


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


class ImageData(BaseData):
    """Which images a profile uses, built-in ones (``moebench/data/images.py``) or original files."""

    source: Literal["builtin", "files"] = "builtin"
    files: ImageFiles | None = None
    """Which original files; only for source ``files``."""
    seed: Seed = 0
    """Draws the splits, what is taken of larger sets, and the corruptions."""
    max_train: Positive | None = None
    max_test: Positive | None = None
    """At most this many images of a training / test set, of the built-in ones the first, of files drawn; none: all."""
    max_corrupted: Positive | None = None
    """At most this many test images are corrupted, or taken from a corrupted dataset; none: all."""
    corruptions: tuple[str, ...] | None = None
    """Which of the seeded corruptions; none: all. Of a corrupted dataset they have to be named, as its files are."""
    severities: tuple[Annotated[Positive, Field(le=5)], ...] = (1, 2, 3, 4, 5)

    @property
    def outside(self) -> bool:
        """Whether files outside the project are read."""
        return self.source != "builtin"

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> ImageData:
        if (self.files is not None) != (self.source == "files"):
            raise ValueError("the section 'files' belongs to, and is required by, source 'files' alone")
        if self.files is not None and self.files.corrupted and self.corruptions is None:
            raise ValueError(f"corruptions is missing: which of {self.files.corrupted!r}")
        allowed = THEIRS if self.files is not None and self.files.corrupted else OURS
        for name in self.corruptions or ():
            if name not in allowed:
                raise ValueError(f"corruptions names {name!r}{nearest(name, allowed)}; should be one of {', '.join(allowed)}")
        for key in ("corruptions", "severities"):
            if (given := getattr(self, key)) and len(set(given)) < len(given):
                raise ValueError(f"{key} names one twice: {', '.join(map(str, given))}")
        return self

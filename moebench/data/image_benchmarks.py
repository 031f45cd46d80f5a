"""The image sets of source ``files``: which original dataset serves as which set, split and cut to size.

| set | what |
|---|---|
| upstream_train, _test | the dataset pre-trained on |
| downstream_train, _validation, _test | the dataset fine-tuned on; validation is drawn from its training set, never trained on |
| ood_near_<dataset>, ood_far_<dataset> | test images of other datasets, as many as downstream_test has, drawn; all, where there are fewer |
| shift_<dataset> | the downstream classes in other pictures |
| corrupted_<corruption>_<severity> | the same test images for every corruption |

AUPR depends on the ratio of sizes, so a smaller set's is not to be compared with the others'. Of DTD the test part of its first split is
taken, of Places365 the validation set. Draws are those of `moebench.data.sampling`, and the order is that of the files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moebench.data import image_files as readers
from moebench.data.corruptions import CORRUPTIONS, corrupt
from moebench.data.image_files import Resized, part
from moebench.data.image_settings import CORRUPTED, DOWNSTREAM, UPSTREAM, ImageData, ImageFiles
from moebench.data.images import ImageSet
from moebench.data.sampling import permutation
from moebench.errors import MoebenchError

HOMES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "svhn": "http://ufldl.stanford.edu/housenumbers/",
    "dtd": "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    "places365": "http://places2.csail.mit.edu/download.html",
    "imagenet": "https://www.image-net.org/download.php",
    "imagenet_a": "https://github.com/hendrycks/natural-adv-examples",
    "imagenet_r": "https://github.com/hendrycks/imagenet-r",
    "imagenet_v2": "https://github.com/modestyachts/ImageNetV2",
    "cifar10_c": "https://zenodo.org/records/2535967",
    "cifar100_c": "https://zenodo.org/records/3555552",
    "imagenet_c": "https://zenodo.org/records/2235448",
}
"""Dataset → where it is published."""


def benchmark_sets(folder: Path, data: ImageData, files: ImageFiles) -> Iterator[tuple[str, ImageSet]]:
    """Give every set by name, one after the other; pictures in folders are not decoded yet.

    Args:
        folder: the folder of original files.
        data: what the profile says.
        files: its section ``files``.

    Raises:
        MoebenchError: a file is missing or not as it should be, or sets do not fit together.
    """
    upstream_side = files.upstream_side or files.side
    train = _read(folder, files, files.downstream, "train", files.side)
    if files.validation >= len(train):
        raise MoebenchError(
            f"key 'files.validation' has the value {files.validation}: should be less than the {len(train)} training images of"
            f" {files.downstream!r}"
        )
    order = permutation(data.seed, f"{files.downstream} validation", len(train))
    held_out, kept = np.sort(order[: files.validation]), np.sort(order[files.validation :])
    test = _read(folder, files, files.downstream, "test", files.side, train.classes)
    tested = _drawn(data, files.downstream, len(test), data.max_test)

    upstream = _read(folder, files, files.upstream, "train", upstream_side)
    if files.upstream == files.downstream:
        upstream = part(upstream, kept)
    yield f"{UPSTREAM}_train", _at_most(data, f"{UPSTREAM}_train", upstream, data.max_train, upstream_side)
    upstream_test = _read(folder, files, files.upstream, "test", upstream_side, upstream.classes)
    yield f"{UPSTREAM}_test", _at_most(data, f"{UPSTREAM}_test", upstream_test, data.max_test, upstream_side)
    yield f"{DOWNSTREAM}_train", _at_most(data, f"{DOWNSTREAM}_train", part(train, kept), data.max_train, files.side)
    yield f"{DOWNSTREAM}_validation", _at_most(data, f"{DOWNSTREAM}_validation", part(train, held_out), data.max_test, files.side)
    yield f"{DOWNSTREAM}_test", _sized(part(test, tested), files.side)

    there = files.folders.keys() - left_out(folder, files)
    for kind, names in (("near", files.near), ("far", files.far)):
        for name in (name for name in names if name in there):
            yield f"ood_{kind}_{name}", _at_most(data, name, _read(folder, files, name, "test", files.side), len(tested), files.side)
    for name in (name for name in files.shifts if name in there):
        shifted = _read(folder, files, name, "test", files.side, train.classes)
        yield f"shift_{name}", _at_most(data, name, shifted, data.max_test, files.side)
    if files.corrupted is None or files.corrupted in there:
        yield from _corrupted(folder, data, files, test, tested[_drawn(data, "corrupted", len(tested), data.max_corrupted)])


def left_out(folder: Path, files: ImageFiles) -> list[str]:
    """Optional datasets whose folder is not there, sorted."""
    return sorted(name for name in files.optional if not (folder / files.folders[name]).is_dir())


def listing(folder: Path) -> str | None:
    """SHA-256 over the names and sizes of all files below a folder, in hexadecimal; none if it is not there."""
    if not folder.is_dir():
        return None
    found = []
    for where, _, names in os.walk(folder, followlinks=True):
        found += [(os.path.relpath(f"{where}/{name}", folder), Path(where, name).lstat().st_size) for name in names]
    return hashlib.sha256("".join(f"{name}\0{size}\n" for name, size in sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()


def _corrupted(folder: Path, data: ImageData, files: ImageFiles, test: ImageSet, places: np.ndarray) -> Iterator[tuple[str, ImageSet]]:
    """The test images at ``places``, as a dataset holds them corrupted or corrupted here, in memory."""
    clean = _sized(part(test, places), files.side)
    for corruption in data.corruptions if data.corruptions is not None else CORRUPTIONS:
        for severity in data.severities:
            name = f"corrupted_{corruption}_{severity}"
            if files.corrupted is None:
                yield name, ImageSet(corrupt(clean.images[:], corruption, severity, data.seed), clean.labels, clean.classes)
                continue
            whole = _read(folder, files, files.corrupted, corruption, files.side, test.classes, severity)
            if not np.array_equal(whole.labels, test.labels):
                where = folder / files.folders[files.corrupted]
                raise MoebenchError(f"{where}: {corruption}, severity {severity}, has not the labels of the test set that it corrupts")
            yield name, _sized(part(whole, places), files.side)


def _read(folder: Path, files: ImageFiles, name: str, split: str, side: int, classes: Sequence[str] = (), severity: int = 0) -> ImageSet:
    """Read a split, or one corruption of a corrupted dataset; labels count through ``classes`` where folders are classes."""
    where = folder / files.folders[name]
    try:
        if name in ("cifar10", "cifar100", "svhn"):
            return {"cifar10": readers.cifar10, "cifar100": readers.cifar100, "svhn": readers.svhn}[name](where, split)
        if name == "dtd":
            return readers.dtd(where, "test", 1, side)
        if name == "places365":
            return readers.places365(where, side)
        if name == "imagenet_c":
            return readers.imagenet_corrupted(where, split, severity, side, classes)
        if name in CORRUPTED:
            return readers.cifar_corrupted(where, split, severity, tuple(classes))
        if name == "imagenet":
            where /= {"train": "train", "test": "val"}[split]
        return readers.class_folders(where, side, classes)
    except MoebenchError as error:
        raise MoebenchError(f"{error}\nIt belongs to {name!r}, which is at {HOMES[name]}") from error


def _drawn(data: ImageData, name: str, count: int, limit: int | None) -> np.ndarray:
    """At most ``limit`` of ``count`` places, in order; none: all."""
    return np.sort(permutation(data.seed, name, count)[:limit])


def _at_most(data: ImageData, name: str, whole: ImageSet, limit: int | None, side: int) -> ImageSet:
    return _sized(part(whole, _drawn(data, name, len(whole), limit)), side)


def _sized(images: ImageSet, side: int) -> ImageSet:
    if images.images.shape[1] == side:
        return images
    return ImageSet(Resized(images.images, side), images.labels, images.classes)

"""Readers of image benchmarks in their original formats; nothing is unpickled. Each error names the file and what would be right.

N images, H height, W width, S side of a decoded image.

| reader | what it reads |
|---|---|
| `cifar10`, `cifar100` | the binary versions, `cifar-10-batches-bin` and `cifar-100-binary` |
| `cifar_corrupted` | CIFAR-10-C and CIFAR-100-C: `<corruption>.npy`, `labels.npy` |
| `svhn` | cropped digits: `train_32x32.mat`, `test_32x32.mat`, `extra_32x32.mat` |
| `class_folders` | a folder a class: ImageNet (and A, R, V2) |
| `imagenet_corrupted` | ImageNet-C: `<corruption>/<severity>/<class>/` |
| `dtd` | Describable Textures with its ten splits |
| `places365` | Places365's validation images with their list |

CIFAR's and SVHN's files are read whole, CIFAR-C's are mapped into memory, and pictures in folders are decoded when asked for: memory holds
their paths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import io

from moebench.data.images import Images, ImageSet
from moebench.errors import MoebenchError, nearest
from moebench.files import read_array

CIFAR_SIDE = 32
SUFFIXES = (".jpeg", ".jpg", ".png")
"""Of pictures in folders, in lower case; files with another are passed over."""


class Pictures:
    """Picture files as images (N, S, S, 3) uint8, decoded when asked for: ``pictures[3]``, ``pictures[8:16]``, ``pictures[indices]``.

    A picture is made RGB, resized so that its shorter edge is S (Pillow's bilinear filter, antialiased) and cropped to its middle.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[str], side: int) -> None:
        self.paths = paths
        self.shape = (len(paths), side, side, 3)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """(S, S, 3) of an integer, (n, S, S, 3) of a slice or an array.

        Raises:
            MoebenchError: a file cannot be decoded.
        """
        chosen = np.arange(len(self))[index]
        if chosen.ndim == 0:
            return self._decode(self.paths[chosen])
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for image, at in zip(images, chosen, strict=True):
            image[:] = self._decode(self.paths[at])
        return images

    def _decode(self, path: str) -> np.ndarray:
        side = self.shape[1]
        try:
            with Image.open(path) as picture:
                width, height = picture.size
                scale = side / min(width, height)
                size = max(side, round(width * scale)), max(side, round(height * scale))
                resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise MoebenchError(f"{path}: cannot be decoded as a picture ({error}); put the original file in its place") from error
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return np.array(resized.crop((left, top, left + side, top + side)))


class Resized:
    """Square images (N, H, H, 3) as images (N, S, S, 3) uint8, resized when asked for, as `Pictures` are."""

    dtype = np.dtype(np.uint8)

    def __init__(self, images: Images, side: int) -> None:
        self.images = images
        self.shape = (len(images), side, side, 3)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """(S, S, 3) of an integer, (n, S, S, 3) of a slice or an array."""
        chosen = np.asarray(self.images[index])
        many = chosen.reshape(-1, *chosen.shape[-3:])
        resized = np.empty((len(many), *self.shape[1:]), np.uint8)
        for new, old in zip(resized, many, strict=True):
            new[:] = np.asarray(Image.fromarray(old).resize(self.shape[1:3], Image.Resampling.BILINEAR))
        return resized.reshape(*chosen.shape[:-3], *self.shape[1:])


def part(whole: ImageSet, places: np.ndarray) -> ImageSet:
    """The images of a set at ``places``; pictures in folders stay undecoded."""
    images = whole.images
    chosen = Pictures([images.paths[place] for place in places], images.shape[1]) if isinstance(images, Pictures) else images[places]
    return ImageSet(chosen, whole.labels[places], whole.classes)


# ----------------------------------------------------------------------------------------------------------- whole arrays


def cifar10(folder: Path, split: str) -> ImageSet:
    """Read ``cifar-10-batches-bin``.

    Args:
        folder: holds ``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin`` and ``batches.meta.txt``.
        split: ``train`` or ``test``.

    Raises:
        MoebenchError: a file is missing or not as it should be.
    """
    files = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
    return _cifar(folder, _choice("split", split, files), 1, "batches.meta.txt")


def cifar100(folder: Path, split: str) -> ImageSet:
    """Read ``cifar-100-binary`` with its 100 fine classes.

    Args:
        folder: holds ``train.bin``, ``test.bin`` and ``fine_label_names.txt``.
        split: ``train`` or ``test``.

    Raises:
        MoebenchError: a file is missing or not as it should be.
    """
    return _cifar(folder, _choice("split", split, {"train": ["train.bin"], "test": ["test.bin"]}), 2, "fine_label_names.txt")


def _cifar(folder: Path, files: list[str], header: int, names: str) -> ImageSet:
    """Records of ``header`` label bytes, the last of which counts, and the red, green and blue plane."""
    classes = tuple(_lines(folder / names))
    size = header + 3 * CIFAR_SIDE**2
    parts = []
    for path in (folder / name for name in files):
        data = _bytes(path)
        if not data or len(data) % size:
            raise MoebenchError(f"{path}: {len(data)} bytes; should be a multiple of {size}, the bytes of one labelled image")
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, size))
        _check_labels(path, parts[-1][:, header - 1], classes)
    records = np.concatenate(parts)
    images = records[:, header:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)
    return ImageSet(np.ascontiguousarray(images), records[:, header - 1].astype(np.int64), classes)


def cifar_corrupted(folder: Path, corruption: str, severity: int, classes: tuple[str, ...]) -> ImageSet:
    """Map one corruption of CIFAR-10-C or CIFAR-100-C into memory: a fifth of its file (10,000 images) is one severity.

    Args:
        folder: holds ``<corruption>.npy`` (50000, 32, 32, 3) and ``labels.npy`` (50000,).
        corruption: the file's name without ``.npy``.
        severity: 1 to 5.
        classes: those of the clean set, which the folder does not name.

    Raises:
        MoebenchError: unknown corruption or severity, or a file that is missing or not as it should be.
    """
    _check_severity(severity)
    if not (folder / f"{corruption}.npy").exists():
        known = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
        raise MoebenchError(
            f"{folder / corruption}.npy: not there{nearest(corruption, known)}; {folder} holds: {', '.join(known) or 'no .npy file'}"
        )
    images, labels = _npy(folder / f"{corruption}.npy"), _npy(folder / "labels.npy")
    if images.dtype != np.uint8 or images.shape[1:] != (CIFAR_SIDE, CIFAR_SIDE, 3) or len(images) % 5:
        raise MoebenchError(
            f"{folder / corruption}.npy: {images.dtype} of shape {images.shape}; should be uint8 (50000, 32, 32, 3), five severities"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise MoebenchError(f"{folder / 'labels.npy'}: {labels.dtype} of shape {labels.shape}; should be integers ({len(images)},)")
    _check_labels(folder / "labels.npy", labels, classes)
    count = len(images) // 5
    part = slice((severity - 1) * count, severity * count)
    return ImageSet(images[part], labels[part].astype(np.int64), classes)


def svhn(folder: Path, split: str) -> ImageSet:
    """Read the cropped digits of SVHN; its label 10 is the digit 0.

    Args:
        folder: holds ``<split>_32x32.mat``.
        split: ``train``, ``test`` or ``extra``.

    Raises:
        MoebenchError: the file is missing or not as it should be.
    """
    path = folder / _choice("split", split, {name: f"{name}_32x32.mat" for name in ("train", "test", "extra")})
    try:
        arrays = io.loadmat(path, variable_names=("X", "y"))
        images, labels = np.moveaxis(arrays["X"], -1, 0), arrays["y"].ravel()
    except Exception as error:  # a damaged file fails in many ways
        raise MoebenchError(f"{path}: cannot be read ({error!r}); should be a MATLAB 5 file of X (32, 32, 3, N) and y (N, 1)") from error
    if images.dtype != np.uint8 or images.shape[1:] != (CIFAR_SIDE, CIFAR_SIDE, 3) or len(labels) != len(images):
        raise MoebenchError(
            f"{path}: X is {arrays['X'].dtype} {arrays['X'].shape}, y {arrays['y'].shape}; should be uint8 (32, 32, 3, N) and (N, 1)"
        )
    if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
        raise MoebenchError(f"{path}: labels are {labels.min()} to {labels.max()}; should be 1 to 10, where 10 is the digit 0")
    return ImageSet(np.ascontiguousarray(images), labels.astype(np.int64) % 10, tuple("0123456789"))


# --------------------------------------------------------------------------------------------------------------- pictures


def class_folders(folder: Path, side: int, classes: Sequence[str] = ()) -> ImageSet:
    """Read a folder that has a folder of pictures for each class.

    Args:
        folder: holds ``<class>/<picture>``; ImageNet's classes are called by their WordNet ids (n01440764, ...).
        side: S.
        classes: the classes that labels count through, in order; some may be missing, as 800 of ImageNet's are from ImageNet-A and -R. If
            every folder is called by a number, that is the class's place (ImageNet-V2). Empty: the folders, sorted.

    Raises:
        MoebenchError: no folder or no pictures, or a folder that is none of ``classes``.
    """
    if not folder.is_dir():
        raise MoebenchError(f"{folder}: not a folder; should hold a folder of pictures for each class")
    found = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    classes = tuple(classes or found)
    place = {name: number for number, name in enumerate(classes)}
    if all(name.isdecimal() for name in found) and not place.keys() & set(found):
        place = {name: int(name) for name in found if int(name) < len(classes)}
    paths: list[str] = []
    labels: list[int] = []
    for name in found:
        if name not in place:
            raise MoebenchError(f"{folder / name}: not a class{nearest(name, classes)}; there are {len(classes)}, from {classes[0]!r} on")
        names = (each.name for each in (folder / name).iterdir())
        pictures = sorted(each for each in names if each.lower().endswith(SUFFIXES) and not each.startswith("."))
        paths += [f"{folder}/{name}/{each}" for each in pictures]
        labels += [place[name]] * len(pictures)
    if not paths:
        raise MoebenchError(f"{folder}: holds no pictures; should hold <class>/<picture> ending in {', '.join(SUFFIXES)}")
    return ImageSet(Pictures(paths, side), np.array(labels, np.int64), classes)


def imagenet_corrupted(folder: Path, corruption: str, severity: int, side: int, classes: Sequence[str] = ()) -> ImageSet:
    """Read one corruption of ImageNet-C, ``<corruption>/<severity>/<class>/``.

    Args:
        folder: holds the corruptions.
        corruption: the folder's name.
        severity: 1 to 5.
        side: as of `class_folders`.
        classes: as of `class_folders`.

    Raises:
        MoebenchError: as `class_folders`, or a severity that is not 1 to 5.
    """
    _check_severity(severity)
    return class_folders(folder / corruption / str(severity), side, classes)


def dtd(folder: Path, split: str, number: int, side: int) -> ImageSet:
    """Read a split of the Describable Textures Dataset.

    Args:
        folder: holds ``images/<class>/`` and ``labels/{train,val,test}{1..10}.txt``.
        split: ``train``, ``val`` or ``test``.
        number: 1 to 10, which of the ten splits.
        side: S.

    Raises:
        MoebenchError: the list or a picture in it is missing, or a line is not ``<class>/<picture>``.
    """
    listed = folder / "labels" / f"{split}{number}.txt"
    lines = _lines(listed)
    images = folder / "images"
    classes = tuple(sorted(each.name for each in images.iterdir() if each.is_dir())) if images.is_dir() else ()
    place = {name: label for label, name in enumerate(classes)}
    labels = []
    for at, line in enumerate(lines, start=1):
        name = line.split("/")[0]
        if name not in place or line.count("/") != 1:
            raise MoebenchError(f"{listed}:{at}: {line!r}; should be <class>/<picture> of a class in {images}")
        labels.append(place[name])
    return _listed(listed, [images / line for line in lines], labels, classes, side)


def places365(folder: Path, side: int) -> ImageSet:
    """Read Places365's validation pictures.

    Args:
        folder: holds ``val_256/``, ``places365_val.txt`` (lines ``Places365_val_00000001.jpg 165``) and ``categories_places365.txt`` (lines
            ``/a/airfield 0``).
        side: S.

    Raises:
        MoebenchError: a list or a picture in it is missing, or a line is not as above.
    """
    names, listed = folder / "categories_places365.txt", folder / "places365_val.txt"
    categories = _numbered(names)
    if [label for _, label in categories] != list(range(len(categories))):
        raise MoebenchError(f"{names}: should number the categories 0, 1, 2, ... line by line")
    classes, pictures = tuple(name for name, _ in categories), _numbered(listed)
    labels = [label for _, label in pictures]
    _check_labels(listed, np.array(labels), classes)
    return _listed(listed, [folder / "val_256" / name for name, _ in pictures], labels, classes, side)


def _listed(listed: Path, paths: list[Path], labels: list[int], classes: tuple[str, ...], side: int) -> ImageSet:
    for at, path in enumerate(paths, start=1):
        if not path.is_file():
            raise MoebenchError(f"{path}: not there, but in {listed}:{at}; unpack the set's pictures")
    return ImageSet(Pictures([str(path) for path in paths], side), np.array(labels, np.int64), classes)


# ------------------------------------------------------------------------------------------------------------ small parts


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}; unpack the set's original files there") from error


def _lines(path: Path) -> list[str]:
    """Lines without tabs and spaces around them; the empty ones at the end are dropped."""
    try:
        text = _bytes(path).decode("utf-8").rstrip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise MoebenchError(f"{path}: not UTF-8 text ({error})") from error
    # not str.splitlines, which cuts at U+0085, U+2028 and the like too
    lines = [line.strip(" \t\r") for line in text.split("\n")] if text else []
    if not lines:
        raise MoebenchError(f"{path}: empty; should have a line for each name")
    return lines


def _numbered(path: Path) -> list[tuple[str, int]]:
    """Lines of a name and a number."""
    rows = []
    for at, line in enumerate(_lines(path), start=1):
        name, _, number = line.rpartition(" ")
        if not name or not number.isdecimal():
            raise MoebenchError(f"{path}:{at}: {line!r}; should be a name, a space and a number")
        rows.append((name, int(number)))
    return rows


def _npy(path: Path) -> np.ndarray:
    return read_array(path, mapped=True, remedy="get the original again")


def _check_labels(path: Path, labels: np.ndarray, classes: Sequence[str]) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise MoebenchError(f"{path}: labels are {labels.min()} to {labels.max()}; should be 0 to {len(classes) - 1}")


def _check_severity(severity: int) -> None:
    if severity not in range(1, 6):
        raise MoebenchError(f"severity {severity!r}; should be 1 to 5")


def _choice(key: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise MoebenchError(f"{key} {value!r}{nearest(value, choices)}; should be one of {', '.join(choices)}")
    return choices[value]

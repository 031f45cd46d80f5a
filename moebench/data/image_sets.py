"""Prepared image sets on disk.

A set is ``<set>.npz``, ``images`` and ``labels``; of a large one the images are in ``<set>.images.npy`` instead, and mapped into memory.
``manifest.json`` beside them says what they hold.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moebench.data.images import AT_ONCE, Images, ImageSet
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_array, read_object

LARGE = 1 << 28
"""Bytes of images above which a set is never in memory as a whole."""


def written(folder: Path, sets: Iterable[tuple[str, ImageSet]], about: dict[str, Any]) -> Iterator[tuple[str, ImageSet]]:
    """Write each set, describe it in ``about``, and give it as it is read again."""
    for name, each in sets:
        shape = each.images.shape
        arrays = {"labels": each.labels}
        if np.prod(shape, dtype=np.int64) <= LARGE:
            arrays["images"] = np.asarray(each.images[:])
        else:
            write_images(folder / f"{name}.images.npy", each.images)
        with atomic_write(folder / f"{name}.npz", binary=True) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        about[name] = {"images": len(each), "shape": list(shape[1:]), "classes": list(each.classes)}
        yield name, _read(folder, name, each.classes)


def write_images(path: Path, images: Images) -> None:
    """Write images as one array, without ever holding all of them."""
    with atomic_write(path, binary=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": images.shape})
        for begin in range(0, len(images), AT_ONCE):
            file.write(np.ascontiguousarray(images[begin : begin + AT_ONCE]).data)


def read_set(folder: Path, name: str) -> ImageSet:
    """Read a prepared set.

    Raises:
        MoebenchError: it is missing or damaged.
    """
    about = read_object(folder / "manifest.json", sets=dict)["sets"]
    try:
        return _read(folder, name, tuple(about[name]["classes"]))
    except (OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise MoebenchError(f"{folder / name}.npz: not a readable image set ({error}); prepare the images again") from error


def _read(folder: Path, name: str, classes: tuple[str, ...]) -> ImageSet:
    with np.load(folder / f"{name}.npz") as arrays:
        if "images" in arrays:
            return ImageSet(arrays["images"], arrays["labels"], classes)
        return ImageSet(read_array(folder / f"{name}.images.npy", mapped=True), arrays["labels"], classes)


def names(folder: Path) -> list[str]:
    """Names of the prepared sets, in the order in which they were made."""
    return list(read_object(folder / "manifest.json", sets=dict)["sets"])

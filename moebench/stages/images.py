"""Stage ``images``: the image sets of a profile, in ``data/prepared/images/<profile>``, and ``manifest.json``.

A set is ``<set>.npz``, ``images`` and ``labels``; of a large one the images are in ``<set>.images.npy`` instead, and mapped into memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moebench import config, config_images
from moebench.config_images import ImageData, ImageFiles
from moebench.data import images as built
from moebench.data.corruptions import CORRUPTIONS, corrupt
from moebench.data.images import AT_ONCE, ImageSet
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_json, write_json

CORRUPTED = "corrupted_{name}_{severity}"
LARGE = 1 << 28
"""Bytes of images above which a set is never in memory as a whole."""


def images(root: Path, profile: str) -> None:
    """Prepare the images of ``profile``; a previous result is replaced by a complete one.

    Raises:
        MoebenchError: the profile's configuration is wrong, or its source is not there.
    """
    data = config_images.data(root, profile)
    folder = root / "data" / "prepared" / "images" / profile
    making = folder.with_name(f".{profile}.making")
    shutil.rmtree(making, ignore_errors=True)
    about: dict[str, Any] = {}
    facts: dict[str, Any] = {"profile": profile, "source": data.source, "sets": about}
    try:
        if data.files is None:
            facts["revision"] = built.revision(_written(making, _built_in(data).items(), about))
        else:
            from moebench.data.image_benchmarks import left_out

            originals = _originals(root, profile, data, data.files)
            facts["revision"] = built.revision(_written(making, originals, about)).removeprefix("images-")
            facts["left_out"] = left_out(config.benchmark_folder(root), data.files)
        write_json(making / "manifest.json", facts)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _built_in(data: ImageData) -> dict[str, ImageSet]:
    sets = built.built_in(data.seed)
    for name, each in sets.items():
        limit = data.max_train if name.endswith("_train") else data.max_test
        sets[name] = ImageSet(each.images[:limit], each.labels[:limit], each.classes)
    test = sets["downstream_test"]
    clean = ImageSet(test.images[: data.max_corrupted], test.labels[: data.max_corrupted], test.classes)
    for name in data.corruptions if data.corruptions is not None else CORRUPTIONS:
        for severity in data.severities:
            pictures = corrupt(np.asarray(clean.images), name, severity, data.seed)
            sets[CORRUPTED.format(name=name, severity=severity)] = ImageSet(pictures, clean.labels, clean.classes)
    return sets


def _originals(root: Path, profile: str, data: ImageData, files: ImageFiles) -> Iterator[tuple[str, ImageSet]]:
    """The sets of source ``files``; whoever lacks the files can still run the papers on texts."""
    from moebench.data.image_benchmarks import benchmark_sets

    try:
        yield from benchmark_sets(config.benchmark_folder(root), data, files)
    except MoebenchError as error:
        texts = [name for name in config.papers(root, profile) if not config_images.of_images(root, name)]
        without = "".join(f"; without images, `moebench run --profile {profile} --paper {name}` runs {name} alone" for name in texts)
        raise MoebenchError(f"{error}\ndata/README.md, section Images, says which files go where{without}") from error


def _written(folder: Path, sets: Iterable[tuple[str, ImageSet]], about: dict[str, Any]) -> Iterator[tuple[str, ImageSet]]:
    """Write each set, describe it in ``about``, and give it as it is read again."""
    for name, each in sets:
        shape = each.images.shape
        arrays = {"labels": each.labels}
        if np.prod(shape, dtype=np.int64) <= LARGE:
            arrays["images"] = np.asarray(each.images[:])
        else:
            with atomic_write(folder / f"{name}.images.npy", binary=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for begin in range(0, len(each), AT_ONCE):
                    file.write(np.ascontiguousarray(each.images[begin : begin + AT_ONCE]).data)
        with atomic_write(folder / f"{name}.npz", binary=True) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        about[name] = {"images": len(each), "shape": list(shape[1:]), "classes": list(each.classes)}
        yield name, _read(folder, name, each.classes)


def read_set(folder: Path, name: str) -> ImageSet:
    """Read a prepared set.

    Raises:
        MoebenchError: it is missing or damaged.
    """
    about = read_json(folder / "manifest.json")["sets"]
    try:
        return _read(folder, name, tuple(about[name]["classes"]))
    except (OSError, ValueError, KeyError) as error:
        raise MoebenchError(f"{folder / name}.npz: not a readable image set ({error}); prepare the images again") from error


def _read(folder: Path, name: str, classes: tuple[str, ...]) -> ImageSet:
    with np.load(folder / f"{name}.npz") as arrays:
        if "images" in arrays:
            return ImageSet(arrays["images"], arrays["labels"], classes)
        return ImageSet(np.load(folder / f"{name}.images.npy", mmap_mode="r"), arrays["labels"], classes)


def names(folder: Path) -> list[str]:
    """Names of the prepared sets, in the order in which they were made."""
    return list(read_json(folder / "manifest.json")["sets"])

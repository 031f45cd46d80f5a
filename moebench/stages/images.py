"""Stage ``images``: the image sets of a profile, in ``data/prepared/images/<profile>``: one ``.npz`` a set, and ``manifest.json``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from moebench import config_images
from moebench.data import images as built
from moebench.data.corruptions import CORRUPTIONS, corrupt
from moebench.data.images import ImageSet
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_json, write_json

CORRUPTED = "corrupted_{name}_{severity}"


def images(root: Path, profile: str) -> None:
    """Prepare the images of ``profile``; a previous result is replaced.

    Raises:
        MoebenchError: the profile's configuration is wrong, or its source is not there.
    """
    data = config_images.data(root, profile)
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
    folder = root / "data" / "prepared" / "images" / profile
    shutil.rmtree(folder, ignore_errors=True)
    for name, each in sets.items():
        with atomic_write(folder / f"{name}.npz", binary=True) as file:
            np.savez(file, images=np.asarray(each.images), labels=each.labels)
    about = {
        name: {"images": len(each), "shape": list(each.images.shape[1:]), "classes": list(each.classes)} for name, each in sets.items()
    }
    write_json(folder / "manifest.json", {"profile": profile, "source": "builtin", "revision": built.revision(sets), "sets": about})


def read_set(folder: Path, name: str) -> ImageSet:
    """Read a prepared set.

    Raises:
        MoebenchError: it is missing or damaged.
    """
    about = read_json(folder / "manifest.json")["sets"]
    try:
        with np.load(folder / f"{name}.npz") as arrays:
            return ImageSet(arrays["images"], arrays["labels"], tuple(about[name]["classes"]))
    except (OSError, ValueError, KeyError) as error:
        raise MoebenchError(f"{folder / name}.npz: not a readable image set ({error}); prepare the images again") from error


def names(folder: Path) -> list[str]:
    """Names of the prepared sets, in the order in which they were made."""
    return list(read_json(folder / "manifest.json")["sets"])

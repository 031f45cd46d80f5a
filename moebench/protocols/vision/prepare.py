"""Which data there are, and how they are made: image sets from packages or from original files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moebench.config import benchmark_folder
from moebench.data import images as built
from moebench.data.corruptions import CORRUPTIONS, corrupt
from moebench.data.image_sets import written
from moebench.data.image_settings import ImageData, ImageFiles
from moebench.data.images import ImageSet
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import write_json
from moebench.protocol import Plan
from moebench.protocols.vision.runs import IMAGES, ORIGINALS

CORRUPTED = "corrupted_{name}_{severity}"


def plan(experiment: Experiment) -> Plan:
    """What the prepared images depend on. Original files that are not there are this stage's error, not the plan's."""
    data: ImageData = experiment.data
    what = data.model_dump(mode="json")
    if data.files is not None:
        from moebench.data.image_benchmarks import listing

        with contextlib.suppress(MoebenchError):  # no folder is given
            folder = benchmark_folder(experiment.root)
            what["listings"] = {name: listing(folder / where) for name, where in sorted(data.files.folders.items())}
    return Plan(what, [__name__], [] if data.files else ORIGINALS)


def parts(experiment: Experiment) -> dict[str, list[str]]:
    """Part of the data → what runs of it read: all of them, as a run predicts every set."""
    return {IMAGES: ["."]}


def prepare(experiment: Experiment, folder: Path, say: Callable[[str], object]) -> None:
    """Write the image sets and ``manifest.json`` into an empty folder.

    Raises:
        MoebenchError: the source is not there.
    """
    data: ImageData = experiment.data
    say("images")
    about: dict[str, Any] = {}
    facts: dict[str, Any] = {"profile": experiment.profile, "source": data.source, "sets": about}
    if data.files is None:
        facts["revision"] = built.revision(written(folder, _built_in(data).items(), about))
    else:
        from moebench.data.image_benchmarks import left_out

        originals = _originals(experiment, data, data.files)
        facts["revision"] = built.revision(written(folder, originals, about)).removeprefix("images-")
        facts["left_out"] = left_out(benchmark_folder(experiment.root), data.files)
    write_json(folder / "manifest.json", facts)


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


def _originals(experiment: Experiment, data: ImageData, files: ImageFiles) -> Iterator[tuple[str, ImageSet]]:
    """The sets of source ``files``."""
    from moebench.data.image_benchmarks import benchmark_sets

    try:
        yield from benchmark_sets(benchmark_folder(experiment.root), data, files)
    except MoebenchError as error:
        raise MoebenchError(
            f"{error}\ndata/README.md, section Images, says which files go where;"
            f" without images, `moebench run --profile {experiment.profile} --paper NAME` runs another paper alone"
        ) from error

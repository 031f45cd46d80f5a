"""What the pixels give away without a network: predictions of the shallow baselines on the test set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moebench.data.image_sets import read_set
from moebench.data.images import ImageSet
from moebench.experiment import Experiment
from moebench.files import atomic_write
from moebench.protocols.vision.numbers import TEST
from moebench.protocols.vision.shallow import BASELINES

TRAIN = "downstream_train"


def baselines(experiment: Experiment, folder: Path) -> None:
    """Write ``<baseline>/downstream_test.npz`` into an empty folder: ``labels`` and ``probabilities`` or ``predictions``.

    Raises:
        MoebenchError: a prepared set is missing or damaged.
    """
    if not experiment.setting.shallow:
        return
    train, test = (read_set(experiment.prepared, name) for name in (TRAIN, TEST))
    few = ImageSet(train.images[: experiment.setting.shallow], train.labels[: experiment.setting.shallow], train.classes)
    for name, predict in BASELINES.items():
        with atomic_write(folder / name / f"{TEST}.npz", binary=True) as file:
            np.savez(file, labels=test.labels, **predict(few, test))  # type: ignore[arg-type]

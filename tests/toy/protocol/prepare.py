"""Points of a square, each with the number of its quadrant; for training some numbers are wrong."""

import numpy as np

from moebench.files import write_json
from moebench.protocol import Plan


def plan(experiment):
    return Plan(experiment.data.model_dump(), [__name__])


def parts(experiment):
    return {"points": ["train.npz", "test.npz"]}


def prepare(experiment, folder, say):
    generator, count = np.random.default_rng(0), experiment.data.points
    for split, noise in (("train", experiment.data.noise), ("test", 0.0)):
        points = generator.uniform(-1, 1, (count, 2)).astype(np.float32)
        labels = 2 * (points[:, 0] > 0) + (points[:, 1] > 0)
        labels = np.where(generator.random(count) < noise, generator.integers(0, 4, count), labels)
        np.savez(folder / f"{split}.npz", points=points, labels=labels)
    write_json(folder / "manifest.json", {"source": "built-in", "revision": "points-1"})

"""Points of a square, each with the number of its quadrant; for training some numbers are wrong."""

import numpy as np

from moebench.files import write_json
from moebench.protocol import Plan


def plan(experiment):
    return Plan(experiment.data.model_dump(), [__name__])


def parts(experiment):
    return {"points": ["train.npz", "test.npz"]}


def prepare(experiment, folder, say):
    generator, count, noise = np.random.default_rng(0), experiment.data.points, experiment.data.noise
    for split in ("train", "test"):
        points = generator.uniform(-1, 1, (count, 2)).astype(np.float32)
        right = 2 * (points[:, 0] > 0) + (points[:, 1] > 0)
        wrong = (split == "train") & (generator.random(count) < noise)
        np.savez(folder / f"{split}.npz", points=points, labels=np.where(wrong, generator.integers(0, 4, count), right))
    write_json(folder / "manifest.json", {"source": "built-in", "revision": "points-1"})

"""Fine-tuning: train the downstream task, then predict test, shifted, corrupted and foreign images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch

from moebench.data.image_sets import names, read_set
from moebench.data.image_settings import DOWNSTREAM, UPSTREAM
from moebench.experiment import Experiment, Run
from moebench.files import atomic_write
from moebench.models.shapes import Vision
from moebench.protocols.vision.build import build_vit
from moebench.protocols.vision.classification import ImageBatches, ImageModule, costs_of, predict
from moebench.protocols.vision.config import ImageTraining, Method
from moebench.training.job import Job

FEATURES = (f"{DOWNSTREAM}_train", f"{DOWNSTREAM}_test", "ood_")
"""Beginnings of the names of the sets whose features are kept, for distances between them."""


class FinetuningJob(Job):
    """Classify the downstream images.

    ``predictions/<set>.npz`` has the members' ``logits`` (N, M, C), ``labels`` (N,), and for some sets ``features`` (N, F), members side by
    side. ``fewshot.npz`` has the features of the pre-trained model, before fine-tuning.
    """

    def __init__(self, experiment: Experiment, run: Run, plan: dict[str, Any]):
        self.method = Method.model_validate(plan["method"])
        self.optimisation: ImageTraining = ImageTraining.model_validate(plan["finetune"])
        self.prepared = experiment.prepared
        self.train = read_set(self.prepared, f"{DOWNSTREAM}_train")
        self.draw = run.seed * 1000 + self.method.draw
        torch.manual_seed(self.draw)
        shape, start = Vision.model_validate(plan["vision"]), experiment.start(run)
        where = {key: plan.get(key) for key in ("last", "blocks", "group")}
        self.model = build_vit(shape, self.method, plan["experts"], classes=len(self.train.classes), start=start, **where)
        self.module: ImageModule = ImageModule(self.model, self.method, self.optimisation, self.draw)

    def batches(self, part: int, parts: int) -> ImageBatches:
        """The downstream images, epoch by epoch."""
        return ImageBatches(self.train, self.optimisation, self.draw, part, parts)

    def before(self, trainer: lightning.Trainer, folder: Path) -> None:
        """Keep the features of the pre-trained model."""
        if (folder / "fewshot.npz").is_file():  # a resumed run has it
            return
        features: dict[str, np.ndarray] = {}
        for split in ("train", "validation", "test"):
            images = read_set(self.prepared, f"{DOWNSTREAM}_{split}")
            features |= {split: predict(trainer, self.module, images)["features"], f"{split}_labels": images.labels}
        if trainer.is_global_zero:
            _write(folder / "fewshot.npz", features)

    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Predict every set, and tell the sizes of the model."""
        for name in names(self.prepared):
            if name.startswith(UPSTREAM):
                continue
            images = read_set(self.prepared, name)
            found = predict(trainer, self.module, images)
            arrays = {"labels": images.labels}
            if name != f"{DOWNSTREAM}_train":
                arrays["logits"] = found["logits"]
            if name.startswith(FEATURES):
                arrays["features"] = found["features"]
            if trainer.is_global_zero:
                _write(folder / "predictions" / f"{name}.npz", arrays)
        sizes = self.costs()
        facts = {"task": "model", "language": "", "n": 1}
        return [facts | {"metric": metric, "value": sizes[metric]} for metric in ("flops_per_image", "parameters")]

    def costs(self) -> dict[str, Any]:
        """Parameters and operations an image."""
        return costs_of(self.model, self.method, self.module.rows_per_token())


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_write(path, binary=True) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]

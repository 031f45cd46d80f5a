"""Pre-training: from random weights to a checkpoint, and its accuracy on the upstream task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor

from moebench.data.image_sets import read_set
from moebench.data.image_settings import UPSTREAM
from moebench.experiment import Experiment, Run
from moebench.models.shapes import Vision
from moebench.protocols.vision.build import build_vit
from moebench.protocols.vision.classification import ImageBatches, ImageModule, costs_of, predict
from moebench.protocols.vision.config import ImageTraining, Method
from moebench.training.job import Job


class PretrainingJob(Job):
    """Classify the upstream images."""

    def __init__(self, experiment: Experiment, run: Run, plan: dict[str, Any]):
        self.method = Method.model_validate(plan["method"])
        self.optimisation: ImageTraining = ImageTraining.model_validate(plan["pretrain"])
        self.train, self.test = (read_set(experiment.prepared, f"{UPSTREAM}_{split}") for split in ("train", "test"))
        self.seed = run.seed
        torch.manual_seed(run.seed)
        shape, where = Vision.model_validate(plan["vision"]), {key: plan.get(key) for key in ("last", "blocks", "group")}
        self.model = build_vit(shape, self.method, plan["experts"], classes=len(self.train.classes), **where)
        self.module: ImageModule = ImageModule(self.model, self.method, self.optimisation, run.seed)

    def batches(self, part: int, parts: int) -> ImageBatches:
        """The upstream images, epoch by epoch."""
        return ImageBatches(self.train, self.optimisation, self.seed, part, parts)

    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Measure the accuracy on the upstream test set, in percent."""
        logits_NMC = predict(trainer, self.module, self.test)["logits"]
        right = (mean_probabilities(logits_NMC).argmax(-1) == self.test.labels).mean()
        measure = {"task": f"{UPSTREAM}_test", "language": "", "metric": "accuracy", "value": 100 * float(right), "n": len(self.test)}
        return [measure]

    def costs(self) -> dict[str, Any]:
        """Parameters and operations an image."""
        return costs_of(self.model, self.method, self.module.rows_per_token())

    def weights(self) -> dict[str, Tensor]:
        """The whole transformer."""
        return self.model.state_dict()


def mean_probabilities(logits_NMC: np.ndarray) -> np.ndarray:
    """Mean over the members of their probabilities, (N, C)."""
    return torch.from_numpy(logits_NMC).softmax(-1).mean(1).numpy()

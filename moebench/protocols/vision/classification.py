"""Training and prediction on images: batches, the Lightning module, logits and features.

B images, M members of an ensemble, C classes, N images of a set, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor

from moebench.data.images import ImageSet
from moebench.ensembles import mimo
from moebench.ensembles.batch_ensemble import fast_weights
from moebench.ensembles.mc_dropout import mc_dropout
from moebench.models.vit import ViT, flops_per_image
from moebench.moe.layer import Aux
from moebench.protocols.vision.config import ImageTraining, Method
from moebench.training.batches import Batch, loader, order, weight
from moebench.training.module import Training

PREDICTED_AT_ONCE = 250
"""Images of a batch in prediction; layers of experts with a capacity in evaluation would depend on it, ours drop nothing there."""


def pixels(images: np.ndarray) -> Tensor:
    """Images (N, H, W, C) uint8 as (N, C, H, W) floats in -1..1."""
    return torch.tensor(images).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def shifted(images: np.ndarray, reach: int, moves_2N: np.ndarray) -> np.ndarray:
    """Move each of the images (N, H, W, C) up and left by its number, 0 to 2 reach, less ``reach`` pixels, black coming in."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))  # (N, 2 reach + 1, 2 reach + 1, C, H, W)
    down_N, right_N = moves_2N
    return windows[np.arange(count), down_N, right_N].transpose(0, 2, 3, 1)


class ImageBatches:
    """A part of the training batch of a step, drawn epoch by epoch, each image moved a little."""

    def __init__(self, images: ImageSet, optimisation: ImageTraining, seed: int, part: int, parts: int):
        self.images, self.seed, self.part, self.parts = images, seed, part, parts
        self.batch, self.shift = optimisation.batch, optimisation.shift
        self.epoch = -1
        self.batches: list[np.ndarray] = self._order(0)

    def _order(self, epoch: int) -> list[np.ndarray]:
        if epoch != self.epoch:
            self.batches, self.epoch = order([1] * len(self.images), self.batch, self.seed, epoch), epoch
        return self.batches

    def __call__(self, step: int) -> Batch:
        """Return the part of the batch of ``step``."""
        epoch, place = divmod(step, len(self.batches))
        whole = np.sort(self._order(epoch)[place])
        mine = whole[self.part :: self.parts]
        images = self.images.images[mine]
        if self.shift:
            moves_2B = np.random.default_rng([self.seed, step, 0]).integers(0, 2 * self.shift + 1, (2, len(whole)))
            images = shifted(images, self.shift, moves_2B[:, self.part :: self.parts])
        labels = torch.from_numpy(self.images.labels[mine])
        return {"images": pixels(images), "labels": labels, "weight": weight(np.ones(len(whole)), self.part, self.parts)}


class ImageModule(Training):
    """Classification; the loss is the mean over members of each member's own cross-entropy."""

    def __init__(self, model: ViT, method: Method, optimisation: ImageTraining, seed: int):
        super().__init__(optimisation, method.losses, 0.0, seed)
        self.model, self.method = model, method

    def rates(self) -> dict[str, float]:
        """The head and BatchEnsemble's vectors may learn faster than the rest."""
        fast = {f"model.{name}": self.optimisation.ensemble_rate for name in fast_weights(self.model)}  # type: ignore[attr-defined]
        return fast | {"model.head.": self.optimisation.head_rate, "": 1.0}

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return the members' logits (B·M, C), their targets, and what each layer of experts reports."""
        if self.method.variant == "mimo":
            images, labels_BM = mimo.training_batch(batch["images"], batch["labels"], self.model.heads, self.method.repetition)
            logits_BMC, reports = self.model(images)
            return logits_BMC.flatten(0, 1).float(), labels_BM.flatten(), reports
        logits_BMC, reports = self.model(batch["images"])
        return logits_BMC.flatten(0, 1).float(), batch["labels"].repeat_interleave(logits_BMC.shape[1]), reports

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the members' logits (B, M, C) and the features (B, F) that the heads are given, members side by side."""
        torch.default_generator.manual_seed(batch_idx)  # MC dropout
        images = batch["images"]
        if self.method.variant == "mimo" and self.model.heads > 1:
            images = mimo.tile(images, self.model.heads)
        features, _ = self.model.features(images)
        logits_BMC = self.model.classified(features)
        if self.method.variant == "mc_dropout" and self.model.shape.dropout:
            logits_BMC = mc_dropout(self.model, lambda: self.model(images)[0], self.method.members).flatten(1, 2)
        return {"logits": logits_BMC.float().cpu().numpy(), "features": features.flatten(1).float().cpu().numpy()}


def predict(trainer: lightning.Trainer, module: ImageModule, images: ImageSet) -> Mapping[str, np.ndarray]:
    """Predict a set: ``logits`` (N, M, C) and ``features`` (N, F)."""
    parts = range(0, len(images), PREDICTED_AT_ONCE)
    batches = [{"images": pixels(images.images[begin : begin + PREDICTED_AT_ONCE])} for begin in parts]
    outputs: Any = trainer.predict(module, loader(batches))
    return {name: np.concatenate([output[name] for output in outputs]) for name in ("logits", "features")}


def costs_of(model: ViT, method: Method, rows: float) -> dict[str, Any]:
    """Parameters, all and those of a forward pass through ``rows`` experts a token, and forward FLOPs of a prediction of an image."""
    passes = method.members if method.variant == "mc_dropout" else 1
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    count = next((len(parameter) for name, parameter in model.named_parameters() if ".experts." in name), 1)
    active = total - experts + round(experts * min(rows * model.copies / count, 1))
    return {"parameters": total, "active_parameters": active, "flops_per_image": round(passes * flops_per_image(model, rows))}

"""Masked modelling of texts, of images and of pairs: its module, its validation, and the checkpoint that it leaves.

B rows, T patches, W words, D width, V vocabulary, K visual tokens, N masked words, M masked patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moebench.experiment import Experiment, Run
from moebench.files import read_object
from moebench.models.heads import MaskedLMHead
from moebench.models.vision_language import VisionLanguage, costs, macs_per_token
from moebench.moe.layer import Aux
from moebench.protocols.vision_language.batches import MaskedBatches, MaskedRows, validation_batches
from moebench.protocols.vision_language.build import build
from moebench.protocols.vision_language.config import Pretraining
from moebench.training.batches import Batch, loader
from moebench.training.decay import decaying
from moebench.training.job import Job
from moebench.training.module import Training
from moebench.training.usage import measured, used


def words_head(encoder: VisionLanguage) -> MaskedLMHead:
    """A head that says a masked word; its output matrix is the embedding."""
    shape = encoder.shape
    return MaskedLMHead(shape.width, encoder.words.num_embeddings, shape.epsilon, shape.initial_std)


class MaskedModelling(Training):
    """BEiT-3's pre-training (arXiv 2208.10442): masked words of texts, visual tokens of masked patches of images, and both of pairs.

    The loss is the sum of three: the mean over the masked words of texts, over the masked patches of images, and over all that is masked
    of pairs, of which words and patches are masked at once. How BEiT-3 weighs its objectives, and whether it masks both sides of a pair in
    one pass, is not known here; MH-MoE (arXiv 2404.15045) says neither.
    """

    def __init__(self, encoder: VisionLanguage, codebook: int, optimisation: Pretraining, losses: Mapping[str, float], seed: int):
        super().__init__(optimisation, losses, 0.0, seed)
        self.optimisation: Pretraining = optimisation
        self.encoder = encoder
        self.words_head = words_head(encoder)
        self.patches_head = nn.Linear(encoder.shape.width, codebook)
        nn.init.normal_(self.patches_head.weight, std=encoder.shape.initial_std)
        nn.init.zeros_(self.patches_head.bias)

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return (N, V) logits of the masked words, (M, K) of the masked patches, and what each layer for both modalities reports."""
        given = {f"{name}_B{axis}": batch[name] for name, axis in (("visual", "T"), ("hidden", "T"), ("apart", ""))}
        states_BSD, reports = self.encoder(batch["patches"], batch["words"], batch["mask"], **given)
        begin = 1 + batch["patches"].shape[1]
        words_ND, patches_MD = states_BSD[:, begin:][batch["chosen"]], states_BSD[:, 1:begin][batch["hidden"]]
        return self.words_head(words_ND, self.encoder.words.weight).float(), self.patches_head(patches_MD).float(), reports

    def part_loss(self, batch: Batch) -> tuple[Tensor, list[list[Aux]]]:
        """Return the loss of a part of a batch, and what each layer for both modalities reports."""
        words_NV, patches_MK, reports = self.logits(batch)
        words_N = functional.cross_entropy(words_NV, batch["targets"], reduction="none")
        patches_M = functional.cross_entropy(patches_MK, batch["visual"][batch["hidden"]], reduction="none")
        words, patches = (int(batch[name][~batch["apart"]].sum()) for name in ("chosen", "hidden"))  # rows of pairs come first
        objectives = torch.cat([words_N[:words], patches_M[:patches]]), patches_M[patches:], words_N[words:]
        means = torch.stack([nll.sum() / max(len(nll), 1) for nll in objectives])
        return self.total_loss((batch["weight"] * means).sum(), reports), [reports]

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return sums over what is masked of each kind, ``nll``, ``right`` and ``n``, and how each layer's experts were used."""
        words_NV, patches_MK, reports = self.logits(batch)
        sides = {"text": (words_NV, batch["targets"], "chosen"), "image": (patches_MK, batch["visual"][batch["hidden"]], "hidden")}
        found: dict[str, Any] = {
            "tokens": int(batch["mask"].sum()),
            "layers": dict(zip(self.encoder.layers, map(used, reports), strict=True)),
        }
        for name, (logits, targets, masked) in sides.items():
            nll = functional.cross_entropy(logits, targets, reduction="none").double()
            right = logits.argmax(-1) == targets
            apart = batch["apart"][:, None].expand_as(batch[masked])[batch[masked]]
            for kind, mine in ((name, apart), (f"pair_{name}", ~apart)):
                found[kind] = np.array([nll[mine].sum().item(), right[mine].sum().item(), mine.sum().item()])
        return found

    def rates(self) -> dict[str, float]:
        """All parameters learn at one rate."""
        return {"": 1.0}

    def configure_optimizers(self) -> Any:
        """AdamW as everywhere; the rate rises linearly, then falls by the setting's ``decay`` to ``floor`` times its peak."""
        found, options = super().configure_optimizers(), self.optimisation
        found["lr_scheduler"]["scheduler"] = decaying(found["optimizer"], options.steps, options.warmup, options.decay, options.floor)
        return found


class PretrainingJob(Job):
    """From random weights to a pre-trained checkpoint, with what it predicts of masked validation rows."""

    def __init__(self, experiment: Experiment, run: Run, plan: dict[str, Any]):
        manifest = read_object(experiment.prepared / "manifest.json", vocabulary=int, codebook=int)
        self.vocabulary, self.codebook = manifest["vocabulary"], manifest["codebook"]
        self.optimisation: Pretraining = Pretraining.model_validate(plan["pretrain"])
        self.seed, self.size = run.seed, plan["predict_batch"]
        torch.manual_seed(run.seed)
        self.encoder = build(plan, self.vocabulary, self.codebook)
        self.train, self.validation = (
            MaskedRows(experiment.prepared / "pretrain" / split, self.encoder.shape.patch) for split in ("train", "validation")
        )
        self.module: MaskedModelling = MaskedModelling(self.encoder, self.codebook, self.optimisation, plan["method"]["losses"], run.seed)

    def batches(self, part: int, parts: int) -> MaskedBatches:
        """The rows, whose words and visual tokens the routers see once."""
        counts = torch.from_numpy(self.train.counts(self.vocabulary, self.codebook))
        for layer in self.encoder.layers.values():
            if (router := getattr(layer, "router", None)) is not None:
                router.before_training(counts)
        return MaskedBatches(self.train, self.optimisation, self.vocabulary, self.seed, part, parts)

    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Measure likelihood and accuracy of what is masked, by kind and in all, and how experts were used."""
        measures: list[dict[str, Any]] = []

        def measure(task: str, language: str, metric: str, value: float, n: int) -> None:
            measures.append({"task": task, "language": language, "metric": metric, "value": float(value), "n": int(n)})

        batches = validation_batches(self.validation, self.optimisation, self.vocabulary, self.size)
        outputs: Any = trainer.predict(self.module, loader(batches))
        sums = {kind: sum(output[kind] for output in outputs) for kind in ("text", "image", "pair_text", "pair_image")}
        for kind, (nll, right, n) in (sums | {"all": sum(sums.values())}).items():
            for metric, value in (("nll", nll / n), ("perplexity", math.exp(nll / n)), ("accuracy", 100 * right / n)):
                measure("masked", kind, metric, value, n)
        tokens = sum(output["tokens"] for output in outputs)
        rows = measured(self.encoder.layers, [output["layers"] for output in outputs], tokens, measure)
        measure("routing", "all", "macs_per_token", macs_per_token(self.encoder, rows, self.encoder.shape.words), tokens)
        return measures

    def costs(self) -> dict[str, Any]:
        """Parameters and operations a token of the encoder."""
        return costs(self.encoder, self.module.rows_per_token())

    def weights(self) -> dict[str, Tensor]:
        """The encoder, and the head of words, from which captions start."""
        heads = {f"words_head.{name}": value for name, value in self.module.words_head.state_dict().items()}
        return dict(self.encoder.state_dict()) | heads

"""Fine-tuning on one training set: its batches, its module and its predictions.

B batch, S positions, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as lightning
import numpy as np
from torch import Tensor, nn

from moebench.catalogue import Task
from moebench.config import Finetuning
from moebench.data.tokenizer import Tokenizer
from moebench.models.encoder import Encoder
from moebench.models.heads import PairHead, SpanHead, TagHead
from moebench.moe.layer import Aux
from moebench.training.batches import Batch, loader, order
from moebench.training.features import Feature, Row, best_spans, collate, features, predictions
from moebench.training.module import Training


class TaskBatches:
    """The fine-tuning batch of a step, drawn epoch by epoch; every rank takes its own part."""

    def __init__(self, kind: Task, inputs: list[Feature], batch: int, pad: int, seed: int, rank: int, ranks: int):
        self.task, self.inputs, self.batch, self.pad, self.seed, self.rank, self.ranks = kind, inputs, batch, pad, seed, rank, ranks
        self.lengths = [len(feature.ids) for feature in inputs]
        self.epoch = -1
        self.batches = order(self.lengths, batch, seed, 0)

    def __call__(self, step: int) -> Batch:
        """Return this rank's part of the batch of ``step``."""
        epoch, place = divmod(step, len(self.batches))
        if epoch != self.epoch:
            self.batches, self.epoch = order(self.lengths, self.batch, self.seed, epoch), epoch
        chosen = self.batches[place]
        mine = chosen[self.rank :: self.ranks] if len(chosen) >= self.ranks else chosen
        return collate(self.task, [self.inputs[index] for index in mine], self.pad)


class FinetuningModule(Training):
    """Fine-tuning on one training set, all its tasks of one kind."""

    def __init__(
        self,
        encoder: Encoder,
        optimisation: Finetuning,
        losses: Mapping[str, float],
        consistency: float,
        seed: int,
        task: Task,
        freeze_sparse: bool,
    ):
        super().__init__(optimisation, losses, consistency, seed)
        self.encoder = encoder
        self.task = task
        width = encoder.shape.width
        self.head: nn.Module
        if task.kind == "qa":
            self.head = SpanHead(width)
        else:
            self.head = (PairHead if task.kind == "pair" else TagHead)(width, len(task.labels))
        if freeze_sparse and encoder.sparse is not None:
            encoder.sparse.requires_grad_(False)

    def _scores(self, batch: Batch) -> tuple[Tensor, Aux | None]:
        states_BSD, aux = self.encoder(batch["ids"], batch["mask"])
        extra = batch[{"pair": "segment", "tagging": "first", "qa": "allowed"}[self.task.kind]]
        return self.head(states_BSD, extra).float(), aux

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return logits of the class, of every word's tag, or of every answer's start and end, with their targets."""
        logits, aux = self._scores(batch)
        if self.task.kind == "qa":
            logits = logits.transpose(1, 2)  # (B, 2, S) against labels (B, 2)
        return logits.flatten(0, -2), batch["labels"].flatten(), [] if aux is None else [aux]

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return one array per feature, as ``features.predictions`` reads them."""
        logits, _ = self._scores(batch)
        result = best_spans(logits, batch["allowed"]) if self.task.kind == "qa" else logits.softmax(dim=-1)
        return result.cpu().numpy()


def predict(
    trainer: lightning.Trainer, module: FinetuningModule, kind: Task, rows: list[Row], tokenizer: Tokenizer, optimisation: Finetuning
) -> tuple[list[Row], np.ndarray | None]:
    """Predict the rows, in batches of similar length; the second result is as that of ``features.predictions``."""
    inputs = features(kind, rows, tokenizer, optimisation)
    by_length = sorted(range(len(inputs)), key=lambda index: len(inputs[index].ids))
    size = max(32, optimisation.batch)
    groups = [by_length[begin : begin + size] for begin in range(0, len(by_length), size)]
    batches = [collate(kind, [inputs[index] for index in group], tokenizer.pad) for group in groups]
    outputs: list[Any] = [None] * len(inputs)
    computed: Any = trainer.predict(module, loader(batches))
    for group, output in zip(groups, computed, strict=True):
        for index, value in zip(group, output, strict=True):
            outputs[index] = value
    return predictions(kind, rows, inputs, outputs)

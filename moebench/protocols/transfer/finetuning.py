"""Fine-tuning on one training set: its batches, its module and its predictions.

B batch, S positions, D width, C classes, M members.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from moebench.data import hub_tokenizer
from moebench.data.catalogue import Task, task
from moebench.data.tokenizer import Tokenizer
from moebench.ensembles.batch_ensemble import batch_ensemble_encoder, tile
from moebench.ensembles.mc_dropout import mc_dropout
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, Run
from moebench.files import atomic_write, read_jsonl, write_jsonl
from moebench.models.build import build_encoder, load_weights
from moebench.models.encoder import Encoder
from moebench.models.flops import costs_of
from moebench.models.heads import PairHead, SpanHead, TagHead
from moebench.models.shapes import Encoder as EncoderShape
from moebench.models.shapes import Sparse
from moebench.moe.layer import Aux
from moebench.protocols.transfer.config import Finetuning
from moebench.protocols.transfer.features import Feature, Row, best_spans, collate, features, predictions
from moebench.training.batches import Batch, loader, order, weight
from moebench.training.job import Job
from moebench.training.module import Training


class TaskBatches:
    """A part of the fine-tuning batch of a step, drawn epoch by epoch."""

    def __init__(self, kind: Task, inputs: list[Feature], batch: int, pad: int, seed: int, part: int, parts: int):
        self.task, self.inputs, self.batch, self.pad, self.seed, self.part, self.parts = kind, inputs, batch, pad, seed, part, parts
        self.targets = np.array([len(feature.tags) or 1 for feature in inputs])  # a question's two are as good as one: all have as many
        self.lengths = [len(feature.ids) for feature in inputs]
        self.epoch = -1
        self.batches = order(self.lengths, batch, seed, 0)

    def __call__(self, step: int) -> Batch:
        """Return the part of the batch of ``step``."""
        epoch, place = divmod(step, len(self.batches))
        if epoch != self.epoch:
            self.batches, self.epoch = order(self.lengths, self.batch, self.seed, epoch), epoch
        chosen = self.batches[place]
        batch = collate(self.task, [self.inputs[index] for index in chosen[self.part :: self.parts]], self.pad)
        return batch | {"weight": weight(self.targets[chosen], self.part, self.parts)}


class FinetuningModule(Training):
    """Fine-tuning on one training set, all its tasks of one kind.

    ``ensemble`` makes the model one of M members, whose probabilities are averaged. MC dropout trains as a single model does and predicts M
    passes with the encoder's dropout left on. BatchEnsemble trains on M copies of a batch, so that the loss is the mean of the members';
    the feed-forward layers of the blocks above the middle get vectors of the members' own. The public vision transformers convert their
    last blocks, too; here these are the blocks behind the place of the sparse layer, whose router then sees the same tokens of all
    members. The vectors are drawn last, so that the head starts as that of the single model with the same seed.
    """

    def __init__(
        self,
        encoder: Encoder,
        optimisation: Finetuning,
        losses: Mapping[str, float],
        consistency: float,
        seed: int,
        task: Task,
        freeze_sparse: bool,
        ensemble: str | None = None,
        members: int = 1,
    ):
        super().__init__(optimisation, losses, consistency, seed)
        self.encoder = encoder
        self.task = task
        self.ensemble, self.members = ensemble, members
        width = encoder.shape.width
        self.head: nn.Module
        if task.kind == "qa":
            self.head = SpanHead(width)
        else:
            self.head = (PairHead if task.kind == "pair" else TagHead)(width, len(task.labels))
        if freeze_sparse and encoder.sparse is not None:
            encoder.sparse.requires_grad_(False)
        if ensemble == "batch_ensemble":
            batch_ensemble_encoder(encoder, members, range(encoder.shape.layers // 2, encoder.shape.layers))

    def _scores(self, batch: Batch) -> tuple[Tensor, Aux | None]:
        states_BSD, aux = self.encoder(batch["ids"], batch["mask"])
        extra = batch[{"pair": "segment", "tagging": "first", "qa": "allowed"}[self.task.kind]]
        return self.head(states_BSD, extra).float(), aux

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return logits of the class, of every word's tag, or of every answer's start and end, with their targets."""
        if self.ensemble == "batch_ensemble":
            batch = tile(batch, self.members)
        logits, aux = self._scores(batch)
        if self.task.kind == "qa":
            logits = logits.transpose(1, 2)  # (B, 2, S) against labels (B, 2)
        return logits.flatten(0, -2), batch["labels"].flatten(), [] if aux is None else [aux]

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return one array per feature, as ``features.predictions`` reads them.

        The passes of MC dropout are a function of the batch and its number. In question answering an ensemble's span is the best under the
        mean over members of the probabilities of start and of end, each over the allowed positions of the window, the first included; its
        score, also against those of other windows, is the sum of the logarithms of both means.
        """
        logits = self._member_scores(batch, batch_idx) if self.ensemble else self._scores(batch)[0]
        if self.task.kind != "qa":
            return logits.softmax(dim=-1).cpu().numpy()
        if self.ensemble:
            logits = logits.log_softmax(dim=2).logsumexp(dim=1)  # ln of the mean, but for a constant, where the mean underflows too
        return best_spans(logits, batch["allowed"]).cpu().numpy()

    def _member_scores(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the members' logits, (B, M, ...)."""
        if self.ensemble == "batch_ensemble":
            return self._scores(tile(batch, self.members))[0].unflatten(0, (-1, self.members))
        torch.manual_seed(batch_idx)
        return mc_dropout(self, lambda: self._scores(batch)[0], self.members)


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


class FinetuningJob(Job):
    """Train a task in its training language, then predict its validation set and every language's test set."""

    def __init__(self, experiment: Experiment, run: Run, plan: dict[str, Any]):
        method, start = plan["method"], experiment.start(run)
        self.folder = experiment.prepared / "tasks" / run.training_set
        self.tokenizer = hub_tokenizer.load(experiment.prepared / "tokenizer")
        self.tasks, self.kind, self.seed = plan["tasks"], task(plan["tasks"][0]), run.seed
        optimisation = Finetuning.model_validate(plan["finetune"])
        rows = read_jsonl(self.folder / "train.jsonl")
        if not rows:
            raise MoebenchError(f"{self.folder / 'train.jsonl'}: no examples to train on; delete {experiment.prepared} and run again")
        self.training = features(self.kind, rows, self.tokenizer, optimisation)
        if optimisation.epochs:
            per_epoch = -(-len(self.training) // optimisation.batch)
            optimisation = optimisation.model_copy(update={"steps": optimisation.epochs * per_epoch})
        self.optimisation: Finetuning = optimisation
        self.sparse = Sparse.model_validate(plan["sparse"]) if plan["sparse"] else None
        torch.manual_seed(run.seed)
        self.encoder = build_encoder(EncoderShape.model_validate(plan["encoder"]), self.sparse, method, embedding_rows(start))
        load_weights(self.encoder, start)
        if method["pretrained"]:
            self.encoder.freeze(optimisation.freeze_embedding, optimisation.freeze_blocks)
        freeze, ensemble, self.members = (method[key] for key in ("freeze_in_finetuning", "ensemble", "members"))
        torch.manual_seed(run.seed)
        self.module: FinetuningModule = FinetuningModule(
            self.encoder, optimisation, method["losses"], method["consistency"], run.seed, self.kind, freeze, ensemble, self.members
        )

    def batches(self, part: int, parts: int) -> TaskBatches:
        """The training examples, epoch by epoch."""
        return TaskBatches(self.kind, self.training, self.optimisation.batch, self.tokenizer.pad, self.seed, part, parts)

    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Write ``predictions/<task>/<language>.jsonl``, of classes also the probabilities, ``.npy``; those of validation without task."""
        tests = [(name, path) for name in self.tasks for path in sorted((self.folder / "test" / name).glob("*.jsonl"))]
        for name, path in [("", self.folder / "validation.jsonl"), *tests]:
            kind = task(name) if name else self.kind
            predicted, probabilities = predict(trainer, self.module, kind, read_jsonl(path), self.tokenizer, self.optimisation)
            if trainer.is_global_zero:
                target = folder / "predictions" / name / path.name
                write_jsonl(target, predicted)
                if probabilities is not None:
                    with atomic_write(target.with_suffix(".npy"), binary=True) as file:
                        np.save(file, probabilities.astype(np.float32))
        return []

    def costs(self) -> dict[str, Any]:
        """Parameters, and operations a token of a prediction: each member is a forward pass of its own."""
        counts = costs_of(self.encoder, self.sparse, self.optimisation.max_length, self.module.rows_per_token())
        return counts | {"flops_per_token": counts["flops_per_token"] * self.members}


def embedding_rows(checkpoint: Path) -> int:
    """Read the vocabulary size off a checkpoint without loading it.

    Raises:
        MoebenchError: it is missing or damaged.
    """
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return int(file.get_slice("embedding.weight").get_shape()[0])
    except Exception as error:
        raise MoebenchError(f"{checkpoint}: not a readable checkpoint ({error}); delete its folder and run again") from error

"""Masked-language-model pre-training: its batches, its module and its validation.

N rows or masked positions, B batch, S positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moebench.data import hub_tokenizer
from moebench.data.checkpoint_files import resolve
from moebench.data.corpus import PackedRows
from moebench.data.tokenizer import Tokenizer
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, Run
from moebench.metrics.routing import load_entropy, max_violation
from moebench.models.build import build_encoder, load_bundled
from moebench.models.checkpoints import check_vocabulary, load_checkpoint, rows_of
from moebench.models.encoder import Encoder
from moebench.models.flops import costs_of, flops_per_token
from moebench.models.heads import MaskedLMHead
from moebench.models.shapes import Encoder as EncoderShape
from moebench.models.shapes import Sparse
from moebench.moe.layer import Aux, MoELayer
from moebench.protocols.transfer.config import Pretraining
from moebench.training.batches import Batch, loader, weight
from moebench.training.job import Job
from moebench.training.module import Training


def mask_tokens(ids_BS: np.ndarray, tokenizer: Tokenizer, share: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose positions to predict and hide them (BERT, arXiv 1810.04805, section 3.1).

    Of the chosen ones, 80 % become ``<mask>``, 10 % a random piece and 10 % stay. Special tokens are never chosen. The X-MoE paper does
    not state these shares; the related public code uses the same.

    Returns:
        The corrupted ids, and a boolean (B, S) array that is true on the chosen positions.
    """
    special = (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.mask)
    chosen_BS = (generator.random(ids_BS.shape) < share) & ~np.isin(ids_BS, special)
    fate_BS = generator.random(ids_BS.shape)
    noise_BS = generator.integers(max(special[:4]) + 1, tokenizer.size, ids_BS.shape)
    hidden_BS = np.where(fate_BS < 0.8, tokenizer.mask, np.where(fate_BS < 0.9, noise_BS, ids_BS))
    return np.where(chosen_BS, hidden_BS, ids_BS), chosen_BS


def masked_batch(
    ids_BS: np.ndarray, tokenizer: Tokenizer, share: float, generator: np.random.Generator, part: int = 0, parts: int = 1
) -> Batch:
    """Return ids, padding mask, and the positions and pieces to predict, of a part of the rows; the whole batch is masked at once."""

    def longest(ids_BS: np.ndarray) -> int:
        return int((ids_BS != tokenizer.pad).sum(axis=1).max(initial=1))

    ids_BS = ids_BS[:, : longest(ids_BS)]
    corrupted_BS, chosen_BS = mask_tokens(ids_BS, tokenizer, share, generator)
    share_of_loss = weight(chosen_BS.sum(axis=1), part, parts)
    own = np.s_[part::parts, : longest(ids_BS[part::parts])]
    ids_BS, corrupted_BS, chosen_BS = ids_BS[own], corrupted_BS[own], chosen_BS[own]
    return {
        "weight": share_of_loss,
        "ids": torch.from_numpy(corrupted_BS.astype(np.int64)),
        "mask": torch.from_numpy(ids_BS != tokenizer.pad),
        "chosen": torch.from_numpy(chosen_BS),
        "targets": torch.from_numpy(ids_BS[chosen_BS].astype(np.int64)),
    }


class MaskedLMBatches:
    """Draws the training batch of a step: rows with replacement, a share of them translated pairs.

    Rows and masks are drawn for the whole batch, and a part of them is taken.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, optimisation: Pretraining, seed: int, part: int = 0, parts: int = 1):
        self.rows = PackedRows(folder, "train")
        self.tokenizer, self.optimisation, self.seed, self.part, self.parts = tokenizer, optimisation, seed, part, parts
        self.text = np.flatnonzero(self.rows.kind == "text")
        self.translation = np.flatnonzero(self.rows.kind == "translation")
        if not len(self.text):
            raise MoebenchError(f"{folder}: no text rows to train on")
        if optimisation.translation and not len(self.translation):
            raise MoebenchError(f"{folder}: pretrain.translation is {optimisation.translation}, but the corpus has no translated pairs")

    def __call__(self, step: int) -> Batch:
        """Return the part of the batch of ``step``."""
        generator = np.random.default_rng([self.seed, step])
        size = self.optimisation.batch
        chosen = self.text[generator.integers(0, len(self.text), size)]
        if self.optimisation.translation:
            pairs = self.translation[generator.integers(0, len(self.translation), size)]
            chosen = np.where(generator.random(size) < self.optimisation.translation, pairs, chosen)
        ids_BS = np.asarray(self.rows.rows_NS[np.sort(chosen)])
        generator = np.random.default_rng([self.seed, step, 0])
        return masked_batch(ids_BS, self.tokenizer, self.optimisation.mask, generator, self.part, self.parts)


def validation_batches(folder: Path, tokenizer: Tokenizer, share: float, batch: int = 32) -> list[tuple[str, Batch]]:
    """Return (language, batch) pairs of the validation rows, masked the same way in every run.

    Raises:
        MoebenchError: no piece of a language is masked, so that it has no perplexity.
    """
    rows = PackedRows(folder, "validation")
    result = []
    for language in sorted(set(rows.language)):
        mine = np.flatnonzero(rows.language == language)
        generator = np.random.default_rng(20220420)
        for begin in range(0, len(mine), batch):
            result.append((str(language), masked_batch(np.asarray(rows.rows_NS[mine[begin : begin + batch]]), tokenizer, share, generator)))
        if not sum(len(each["targets"]) for name, each in result if name == language):
            raise MoebenchError(
                f"{folder}: with pretrain.mask {share} no piece of the {len(mine)} validation rows of {str(language)!r} is masked,"
                " so there is no perplexity; mask more, or give more rows"
            )
    return result


class PretrainingModule(Training):
    """Masked language modelling; the vocabulary is scored at the masked positions only."""

    def __init__(self, encoder: Encoder, optimisation: Pretraining, losses: Mapping[str, float], consistency: float, seed: int):
        super().__init__(optimisation, losses, consistency, seed)
        self.encoder = encoder
        encoder.freeze(optimisation.freeze_embedding, optimisation.freeze_blocks)
        self.head = MaskedLMHead(encoder.shape.width, encoder.embedding.num_embeddings, encoder.shape.epsilon, encoder.shape.initial_std)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return (N, V) logits of the masked pieces, those pieces, and what the sparse layer reports."""
        states_BSD, aux = self.encoder(batch["ids"], batch["mask"])
        logits = self.head(states_BSD[batch["chosen"]], self.encoder.embedding.weight).float()
        return logits, batch["targets"], [] if aux is None else [aux]

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the summed negative log-likelihood, the number of masked pieces, and how the experts were used."""
        logits, targets, reports = self.outputs(batch)
        nll = functional.cross_entropy(logits, targets, reduction="none").double().sum()
        result: dict[str, Any] = {"nll": nll.item(), "n": len(targets), "tokens": int(batch["mask"].sum())}
        for aux in reports:
            entropy = torch.special.entr(aux.probs.double()).sum()
            result |= {"load": aux.load.cpu().numpy().astype(float), "entropy": entropy.item()}
        return result


def validate(
    trainer: lightning.Trainer, module: PretrainingModule, sparse: Sparse | None, corpus: Path, tokenizer: Tokenizer, mask: float
) -> list[dict[str, Any]]:
    """Return measures: perplexity of the masked pieces per language, and how the experts were used over all languages.

    Of the routing measures, ``dropped_share`` is that of all training steps; evaluation drops nothing.
    """
    languages, batches = zip(*validation_batches(corpus, tokenizer, mask), strict=True)
    outputs: Any = trainer.predict(module, loader(list(batches)))
    measures = []

    def measure(language: str, metric: str, value: float, n: int) -> None:
        measures.append({"task": "mlm", "language": language, "metric": metric, "value": value, "n": n})

    for language in sorted(set(languages)):
        mine = [output for name, output in zip(languages, outputs, strict=True) if name == language]
        n = sum(output["n"] for output in mine)
        measure(language, "perplexity", math.exp(sum(output["nll"] for output in mine) / n), n)
    tokens = sum(output["tokens"] for output in outputs)
    rows = 0.0
    if module.encoder.sparse is not None:
        load = sum(output["load"] for output in outputs)
        rows = float(load.sum()) / tokens
        measure("all", "max_violation", float(max_violation(load)), tokens)
        measure("all", "load_entropy", float(load_entropy(load)), tokens)
        measure("all", "router_entropy", sum(output["entropy"] for output in outputs) / tokens, tokens)
        measure("all", "experts_per_token", rows, tokens)
        measure("all", "dropped_share", module.dropped_share(), int(module.usage[1:].sum()))
    positions = int(batches[0]["ids"].shape[1])
    measure("all", "flops_per_token", flops_per_token(module.encoder, sparse, positions, rows), tokens)
    return measures


class PretrainingJob(Job):
    """From random or published weights to a pre-trained checkpoint and its validation perplexity."""

    def __init__(self, experiment: Experiment, run: Run, plan: dict[str, Any]):
        method = plan["method"]
        self.corpus = experiment.prepared / "corpus"
        self.tokenizer = hub_tokenizer.load(experiment.prepared / "tokenizer")
        self.sparse = Sparse.model_validate(plan["sparse"]) if plan["sparse"] else None
        self.seed = run.seed
        optimisation = Pretraining.model_validate(plan["pretrain"])
        downloads = experiment.root / "data" / "downloads"
        checkpoint = resolve(plan["checkpoint"], downloads) if plan["initialisation"] == "hub" else None
        rows = self.tokenizer.size
        if checkpoint:
            check_vocabulary(checkpoint, self.tokenizer)
            rows = rows_of(checkpoint)
        torch.manual_seed(run.seed)
        self.encoder = build_encoder(EncoderShape.model_validate(plan["encoder"]), self.sparse, method, rows)
        if checkpoint and method["pretrained"]:
            load_checkpoint(self.encoder, checkpoint)
        elif plan["initialisation"] == "bundled" and method["pretrained"]:
            load_bundled(self.encoder, self.tokenizer.rows, downloads)
        self.module: PretrainingModule = PretrainingModule(self.encoder, optimisation, method["losses"], method["consistency"], run.seed)
        self.optimisation: Pretraining = optimisation if method["pretrained"] else optimisation.model_copy(update={"steps": 0})
        self.positions = 128

    def batches(self, part: int, parts: int) -> MaskedLMBatches:
        """The rows, whose pieces the router sees once."""
        make = MaskedLMBatches(self.corpus, self.tokenizer, self.optimisation, self.seed, part, parts)
        self.positions = make.rows.rows_NS.shape[1]
        if isinstance(self.encoder.sparse, MoELayer):
            self.encoder.sparse.router.before_training(torch.from_numpy(make.rows.piece_counts(self.tokenizer)))
        return make

    def before(self, trainer: lightning.Trainer, folder: Path) -> None:
        """Find out that there is nothing to measure afterwards."""
        if self.optimisation.steps:
            validation_batches(self.corpus, self.tokenizer, self.optimisation.mask)

    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Measure the perplexity; a model that is not pre-trained has none."""
        if not self.optimisation.steps:
            return []
        return validate(trainer, self.module, self.sparse, self.corpus, self.tokenizer, self.optimisation.mask)

    def costs(self) -> dict[str, Any]:
        """Parameters and operations a token."""
        return costs_of(self.encoder, self.sparse, self.positions, self.module.rows_per_token())

    def weights(self) -> dict[str, Tensor]:
        """The encoder, and the head where it was trained."""
        weights = {name.removeprefix("encoder."): value for name, value in self.module.state_dict().items() if name != "usage"}
        return weights if self.optimisation.steps else {name: value for name, value in weights.items() if not name.startswith("head.")}

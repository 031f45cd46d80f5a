"""What a pre-trained model is asked: held-out text, how its experts are used there, and zero-shot tasks. Nothing is learned.

B batch, S positions, V vocabulary, T tokens, L blocks, E experts, K chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moebench.config import Optimisation
from moebench.data import lm_tokenizer
from moebench.data.lm_tokenizer import Pieces
from moebench.data.packing import IGNORED
from moebench.experiment import Experiment, Run
from moebench.metrics.routing import load_entropy, max_violation
from moebench.models.build import load_weights
from moebench.models.decoder import Decoder
from moebench.models.flops import decoder_costs, macs_per_token
from moebench.moe.coupling import coupling
from moebench.moe.layer import Aux
from moebench.protocols.language_model.batches import batch_of, open_rows
from moebench.protocols.language_model.build import build
from moebench.training.batches import Batch, loader
from moebench.training.job import Job
from moebench.training.module import Training


class Examined(Training):
    """A trained decoder that is measured, batch by batch."""

    def __init__(self, decoder: Decoder, optimisation: Optimisation, seed: int):
        super().__init__(optimisation, {}, 0.0, seed)
        self.decoder = decoder

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return sums over the batch: negative log-likelihood in nats, targets, and of each block how experts were used."""
        states_BSD, reports = self.decoder(batch["ids"], positions_BS=batch["positions"])
        targets = batch["targets"].flatten()
        logits = self.decoder.logits(states_BSD).flatten(0, 1)[targets != IGNORED].float()
        targets = targets[targets != IGNORED]
        nll = functional.cross_entropy(logits, targets, reduction="none").double().sum()
        return {
            "nll": nll.item(),
            "n": len(targets),
            "tokens": batch["ids"].numel(),
            "layers": [used(aux) for aux in reports],
        }


def used(aux: Aux) -> dict[str, Any]:
    """Return sums over a batch's tokens, or sub-tokens: how many, load (E,), entropy in nats, and the margin of rank (`margins`)."""
    sums: dict[str, Any] = {
        "units": len(aux.probs),
        "load": aux.load.double().cpu().numpy(),
        "entropy": torch.special.entr(aux.probs.double()).sum().item(),
    }
    if aux.routing is not None:
        sums["margin"] = margins(aux.routing.scores, int(aux.load.sum()) // max(len(aux.probs), 1)).sum().item()
    return sums


def margins(scores_TE: Tensor, chosen: int) -> Tensor:
    """(T,) gap between the K-th and the next score, over the deviation of a token's scores; 0 where all are equal or all are chosen.

    An entropy of softmax falls with the size of the scores alone (norms grow with their width and in training); this does not.
    """
    scores_TE = scores_TE.double()
    if not 0 < chosen < scores_TE.shape[1]:
        return scores_TE.new_zeros(len(scores_TE))
    top = scores_TE.topk(chosen + 1).values
    spread_T = scores_TE.std(dim=1, correction=0)
    return torch.where(spread_T > 0, (top[:, -2] - top[:, -1]) / torch.where(spread_T > 0, spread_T, 1), 0)


def bytes_of(targets_BS: np.ndarray, pieces: Pieces) -> int:
    """UTF-8 bytes of the text that is predicted: of each run of targets, decoded by itself."""
    return sum(
        len(pieces.decode([int(token) for token in group]).encode())
        for targets_S in targets_BS
        for there, group in groupby(targets_S, key=lambda token: token != IGNORED)
        if there
    )


class ExaminationJob(Job):
    """Measures likelihood and routing on held-out text, and leaves the likelihoods of zero-shot choices as files."""

    def __init__(self, experiment: Experiment, run: Run, plan: dict[str, Any]):
        self.prepared, self.plan = experiment.prepared, plan
        self.pieces = lm_tokenizer.load(self.prepared / "tokenizer")
        self.decoder = build(plan, self.pieces.size)
        load_weights(self.decoder, experiment.start(run))
        self.optimisation = Optimisation(steps=0, batch=plan["examine_batch"], rate=1.0)
        self.module: Examined = Examined(self.decoder, self.optimisation, run.seed)
        self.rows, self.context = 0.0, 0

    def batches(self, part: int, parts: int) -> Callable[[int], Batch]:
        """There are none: nothing is learned."""
        raise NotImplementedError

    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Measure everything."""
        measures: list[dict[str, Any]] = []

        def measure(task: str, language: str, metric: str, value: float, n: int) -> None:
            measures.append({"task": task, "language": language, "metric": metric, "value": float(value), "n": int(n)})

        outputs: list[Any] = []
        for name in self.plan["texts"]:
            held_out = list(self._held_out(name))
            mine: Any = trainer.predict(self.module, loader(held_out))
            self.context = held_out[0]["ids"].shape[1]
            nll, n = (sum(output[key] for output in mine) for key in ("nll", "n"))
            size = sum(bytes_of(batch["targets"].numpy(), self.pieces) for batch in held_out)
            measure("text", name, "nll", nll / n, n)
            measure("text", name, "perplexity", math.exp(nll / n), n)
            measure("text", name, "bits_per_byte", nll / math.log(2) / size, size)
            outputs += mine
        self._routing(outputs, measure)
        if self.plan["tasks"] and trainer.is_global_zero:
            from moebench.protocols.language_model.harness import examine  # slow to import

            local = self.prepared / "tasks"
            there = {path.stem for path in local.glob("*.yaml")}
            others = {name: shots for name, shots in self.plan["tasks"].items() if name not in there}
            if there:
                examine(self.decoder, self.pieces, local, folder, self.plan["examine_batch"])
            if others:
                examine(self.decoder, self.pieces, others, folder, self.plan["examine_batch"])
        return measures

    def _held_out(self, name: str) -> Iterator[Batch]:
        rows = open_rows(self.prepared / "validation", name)
        for begin in range(0, len(rows), self.plan["examine_batch"]):
            yield batch_of(rows[begin : begin + self.plan["examine_batch"]], self.pieces)

    def _routing(self, outputs: list[Any], measure: Callable[[str, str, str, float, int], None]) -> None:
        """How experts were used on all held-out text: of each block, ``layer<i>`` from 1, and over all of them."""
        tokens = sum(output["tokens"] for output in outputs)
        layers = self.decoder.layers
        sparse = [place for place, layer in enumerate(layers) if layer.experts.count > 1]  # type: ignore[operator]
        loads = {place: sum(output["layers"][place]["load"] for output in outputs) for place in sparse}
        self.rows = float(np.mean([load.sum() for load in loads.values()])) / tokens if sparse else 1.0
        measure("routing", "all", "macs_per_token", macs_per_token(self.decoder, self.rows, self.context), tokens)
        if not sparse:
            return
        measure("routing", "all", "experts_per_token", self.rows, tokens)
        found: dict[str, list[float]] = {}
        for place, load in loads.items():
            share, layer = load / load.sum(), layers[place]
            units = sum(output["layers"][place]["units"] for output in outputs)
            mine = {"load_entropy": load_entropy(load), "idle": share.max() - share.min(), "max_violation": max_violation(load)}
            mine["router_entropy"] = sum(output["layers"][place]["entropy"] for output in outputs) / units
            if "margin" in outputs[0]["layers"][place]:
                mine["rank_margin"] = sum(output["layers"][place]["margin"] for output in outputs) / units
            embedding, gate_EFD = getattr(getattr(layer, "router", None), "embedding", None), getattr(layer.experts, "gate_EFD", None)
            if isinstance(embedding, Tensor) and gate_EFD is not None and embedding.shape == (gate_EFD.shape[0], gate_EFD.shape[2]):
                with torch.no_grad():
                    mine["coupling"] = coupling(embedding, gate_EFD).item()
            for metric, value in mine.items():
                measure("routing", f"layer{place + 1:02d}", metric, value, tokens)
                found.setdefault(metric, []).append(value)
            for expert, value in enumerate(share):
                measure("routing", f"layer{place + 1:02d}.expert{expert + 1:03d}", "load", value, tokens)
        for metric, values in found.items():
            measure("routing", "all", metric, math.fsum(values) if metric == "idle" else math.fsum(values) / len(values), tokens)

    def costs(self) -> dict[str, Any]:
        """Parameters and operations a token, at the rows that held-out text took."""
        return decoder_costs(self.decoder, self.rows, self.decoder.shape.context)

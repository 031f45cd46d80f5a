"""What a pre-trained model is asked: held-out text, how its experts are used there, and zero-shot tasks. Nothing is learned.

B batch, S positions, V vocabulary, T tokens, L blocks, E experts, K chosen, A assignments, H heads, U = T·H sub-tokens, C classes of words.
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
from torch.nn import functional

from moebench.config import Optimisation
from moebench.data import lm_tokenizer
from moebench.data.constructed.word_classes import CLASSES
from moebench.data.lm_tokenizer import Pieces
from moebench.data.packing import IGNORED
from moebench.experiment import Experiment, Run
from moebench.files import read_array
from moebench.metrics.routing import activation_ratio, assignment_diversity, random_diversity
from moebench.models.build import load_weights
from moebench.models.decoder import Decoder
from moebench.models.flops import decoder_costs, macs_per_token
from moebench.moe.contract import Routing
from moebench.moe.layer import Aux
from moebench.protocols.language_model.batches import batch_of, open_rows
from moebench.protocols.language_model.build import build
from moebench.protocols.language_model.config import (
    ACTIVATION,
    DIVERSITY,
    DIVERSITY_OF,
    THRESHOLDS,
    TOKEN_ACTIVATION,
    WORD_CLASSES,
)
from moebench.training import usage
from moebench.training.batches import Batch, loader
from moebench.training.job import Job
from moebench.training.module import Training

MEMBERS = {"content": ("content", "homonym")}
"""What the measures call a class of words → the codes in the files that it is made of, where it is not that of its name."""
Measure = Callable[[str, str, str, float, int], None]
"""Takes task, language, metric, value, n."""


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
        class_T = batch["classes"].flatten().cpu().numpy()
        return {
            "nll": nll.item(),
            "n": len(targets),
            "tokens": batch["ids"].numel(),
            "classes": np.bincount(class_T, minlength=len(CLASSES)),
            "layers": [used_by_class(aux, class_T) for aux in reports],
        }


def used_by_class(aux: Aux, class_T: np.ndarray) -> dict[str, Any]:
    """Return the sums of `moebench.training.usage.used` over a batch's tokens, or sub-tokens.

    Where there are experts to choose from, and they are chosen, also ``diversities``: of each of `DIVERSITY` a sum for each class (C,).
    """
    sums = usage.used(aux)
    if aux.routing is not None and len(aux.load) > 1:
        found = diversities(aux.routing, aux.heads)
        sums["diversities"] = {name: np.bincount(class_T, found_T, len(CLASSES)) for name, found_T in found.items()}
    return sums


def diversities(routing: Routing, heads: int) -> dict[str, np.ndarray]:
    """(T,) of each of `DIVERSITY`: experts that a token reaches through its H sub-tokens, and what that is at random.

    The paper (arXiv 2404.15045, figure 7) speaks of one expert a sub-token. With several, ``diversity`` is of all of them: a token's output
    depends on each, and what it is at random is known. ``diversity_first`` is of each sub-token's best alone, of 1..H as in the paper.
    """
    units, experts = routing.scores.shape
    unit_A, expert_A, (first_unit_A, first_expert_A) = routing.token.cpu().numpy(), routing.expert.cpu().numpy(), first_choices(routing)
    chosen_TH = np.bincount(unit_A, minlength=units).reshape(-1, heads)
    found = (
        assignment_diversity(unit_A, expert_A, units // heads, experts, heads),
        random_diversity(chosen_TH, experts),
        assignment_diversity(first_unit_A, first_expert_A, units // heads, experts, heads),
        random_diversity(chosen_TH.clip(max=1), experts),
    )
    return dict(zip(DIVERSITY, found, strict=True))


def first_choices(routing: Routing) -> tuple[np.ndarray, np.ndarray]:
    """Sub-tokens that have an expert, and of each the one of its experts that scores highest; of equal ones the first."""
    score_A = routing.scores[routing.token, routing.expert]
    best_U = score_A.new_full((len(routing.scores),), -torch.inf).scatter_reduce(0, routing.token, score_A, "amax")
    expert_A = routing.expert.masked_fill(score_A < best_U[routing.token], len(routing.load))
    first_U = torch.full_like(best_U, len(routing.load), dtype=torch.long).scatter_reduce(0, routing.token, expert_A, "amin").cpu().numpy()
    unit_A = np.flatnonzero(first_U < len(routing.load))
    return unit_A, first_U[unit_A]


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
            self._diversity(name, mine, measure)
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
        """Batches of held-out rows; ``classes`` (B, S) are those of a constructed text's words, 0 in all others."""
        rows, path = open_rows(self.prepared / "validation", name), self.prepared / "classes" / f"{name}.npy"
        classes_NS = read_array(path, remedy="prepare the data again") if path.is_file() else None
        for begin in range(0, len(rows), self.plan["examine_batch"]):
            mine = slice(begin, begin + self.plan["examine_batch"])
            batch = batch_of(rows[mine], self.pieces)
            classes_BS = np.zeros(batch["ids"].shape, dtype=np.uint8) if classes_NS is None else classes_NS[mine]
            yield batch | {"classes": torch.from_numpy(classes_BS)}

    def _diversity(self, name: str, outputs: list[Any], measure: Measure) -> None:
        """How many experts a token of a text reaches: the mean over tokens and over the sparse blocks; also of each class of words."""
        tokens_C = sum(output["classes"] for output in outputs)
        layers = [layer["diversities"] for output in outputs for layer in output["layers"] if "diversities" in layer]
        if not layers:
            return
        sums_C = {metric: sum(layer[metric] for layer in layers) * len(outputs) / len(layers) for metric in DIVERSITY}
        for metric, sum_C in sums_C.items():
            measure("routing", name, metric, sum_C.sum() / tokens_C.sum(), tokens_C.sum())
        for word, metric in zip(WORD_CLASSES, DIVERSITY_OF, strict=True):
            mine = [CLASSES.index(member) for member in MEMBERS.get(word, (word,))]
            if count := tokens_C[mine].sum():
                measure("routing", name, metric, sums_C["diversity"][mine].sum() / count, count)

    def _routing(self, outputs: list[Any], measure: Measure) -> None:
        """How experts were used on all held-out text: of each block, ``layer<i>`` from 1, and over all of them."""
        tokens = sum(output["tokens"] for output in outputs)
        layers = [dict(enumerate(output["layers"])) for output in outputs]
        self.rows = usage.measured(dict(enumerate(self.decoder.layers)), layers, tokens, measure)
        measure("routing", "all", "macs_per_token", macs_per_token(self.decoder, self.rows, self.context), tokens)
        if chosen := [place for place, sums in layers[0].items() if "diversities" in sums]:
            count_LE = np.stack([sum(batch[place]["load"] for batch in layers) for place in chosen])
            for metrics, shares, units in (
                (ACTIVATION, THRESHOLDS, count_LE.sum(axis=1)),
                (TOKEN_ACTIVATION, THRESHOLDS[1:], tokens),
            ):
                for metric, share in zip(metrics, shares, strict=True):
                    measure("routing", "all", metric, activation_ratio(count_LE, units, share / count_LE.shape[1]), tokens)

    def costs(self) -> dict[str, Any]:
        """Parameters and operations a token, at the rows that held-out text took."""
        return decoder_costs(self.decoder, self.rows, self.decoder.shape.context)

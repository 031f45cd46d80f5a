"""Next-token pre-training: its module, what is watched on the way, and the checkpoint that it leaves.

B batch, S positions, V vocabulary, L blocks, E experts, N targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from moebench.data import lm_tokenizer
from moebench.experiment import Experiment, Run
from moebench.files import read_object, write_json
from moebench.models.decoder import Decoder
from moebench.models.flops import decoder_costs
from moebench.moe.layer import Aux
from moebench.moe.layers.aoe import AoE
from moebench.protocols.language_model.batches import TextBatches, open_rows
from moebench.protocols.language_model.build import build
from moebench.protocols.language_model.config import Pretraining
from moebench.training.batches import Batch
from moebench.training.decay import decaying
from moebench.training.job import Job
from moebench.training.module import Training

NORM_POINTS = 24
"""At so many steps, evenly spaced, the mean norm of every expert is kept."""


class LanguageModel(Training):
    """Next-token prediction: the mean negative log-likelihood over all pieces but the first of each document and row.

    Where experts select themselves by norms (`AoE`), ``norms`` holds the mean norm of each expert over the tokens of a step, as the first
    rank saw them, at `NORM_POINTS` steps; it is in the checkpoints, so that resuming is exact.
    """

    norms: Tensor
    """(`NORM_POINTS`, L, E)."""

    def __init__(self, decoder: Decoder, optimisation: Pretraining, losses: Mapping[str, float], seed: int):
        super().__init__(optimisation, losses, 0.0, seed)
        self.optimisation: Pretraining = optimisation
        self.decoder = decoder
        self.selecting = [place for place, layer in enumerate(decoder.layers) if isinstance(layer, AoE)]
        experts = int(decoder.layers[0].experts.count)  # type: ignore[arg-type]
        self.register_buffer("norms", torch.zeros(NORM_POINTS, len(self.selecting), experts if self.selecting else 0))

    def part_loss(self, batch: Batch) -> tuple[Tensor, list[list[Aux]]]:
        """Return the loss of a part of a batch, and what each block's layer reports."""
        states_BSD, reports = self.decoder(batch["ids"], positions_BS=batch["positions"])
        return self.total_loss(batch["weight"][0] * self.decoder.loss(states_BSD, batch["targets"]), reports), [reports]

    def record(self, loss: float, batch: Batch, passes: list[list[Aux]]) -> None:
        """Also keep the experts' mean norms, at the last part of a step that is due."""
        super().record(loss, batch, passes)
        point, due = divmod((self.global_step + 1) * NORM_POINTS, self.optimisation.steps)
        if self.selecting and passes and due < NORM_POINTS and point:
            scores = [passes[0][place].routing.scores.mean(0) for place in self.selecting]  # type: ignore[union-attr]
            self.norms[point - 1] = torch.stack(scores)

    def rates(self) -> dict[str, float]:
        """All parameters learn at one rate."""
        return {"": 1.0}

    def configure_optimizers(self) -> Any:
        """AdamW as everywhere; the rate rises linearly, then falls by the setting's ``decay`` to ``floor`` times its peak."""
        found = super().configure_optimizers()
        options = self.optimisation
        found["lr_scheduler"]["scheduler"] = decaying(found["optimizer"], options.steps, options.warmup, options.decay, options.floor)
        return found


class PretrainingJob(Job):
    """From random weights to a pre-trained checkpoint. What it is worth is measured by the examination that starts from it."""

    def __init__(self, experiment: Experiment, run: Run, plan: dict[str, Any]):
        self.prepared, self.seed = experiment.prepared, run.seed
        self.pieces = lm_tokenizer.load(experiment.prepared / "tokenizer")
        self.optimisation: Pretraining = Pretraining.model_validate(plan["pretrain"])
        torch.manual_seed(run.seed)
        self.decoder = build(plan, self.pieces.size)
        method = plan["method"]
        losses = method["losses"] | ({"coupling": method["coupling"]} if method["coupling"] else {})
        self.module: LanguageModel = LanguageModel(self.decoder, self.optimisation, losses, run.seed)

    def batches(self, part: int, parts: int) -> Callable[[int], Batch]:
        """Rows of all texts, mixed."""
        names = read_object(self.prepared / "manifest.json", texts=dict)["texts"]
        return TextBatches(
            [open_rows(self.prepared / "train", name) for name in names], self.pieces, self.optimisation.batch, self.seed, part, parts
        )

    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Leave how the norms of experts that select themselves grew, ``norms.json``: a list of step and (L, E) means."""
        if self.module.selecting and trainer.is_global_zero:
            steps = self.optimisation.steps
            at = [-(-(point + 1) * steps // NORM_POINTS) for point in range(NORM_POINTS)]
            rows = [{"step": step, "norms": norms} for step, norms in zip(at, self.module.norms.tolist(), strict=True)]
            write_json(folder / "norms.json", rows)
        return []

    def costs(self) -> dict[str, Any]:
        """Parameters and operations a token."""
        return decoder_costs(self.decoder, self.module.rows_per_token(), self.decoder.shape.context)

    def weights(self) -> dict[str, Tensor]:
        """The decoder."""
        return dict(self.decoder.state_dict())

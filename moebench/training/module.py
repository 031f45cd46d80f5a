"""What the Lightning modules of pre-training and fine-tuning share: optimiser, schedule, the sparse layers' losses and hooks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from moebench.config import Optimisation
from moebench.moe.layer import Aux, SparseLayer
from moebench.training.batches import Batch


class Training(lightning.LightningModule):
    """Base of all modules: task loss + Σ coefficient · loss, over the losses of all sparse layers (X-MoE, arXiv 2204.09179, eq. 10 of v3).

    With ``consistency`` α > 0 every batch is run twice, with independent draws of whatever is random, and the loss is that of THOR
    (arXiv 2110.04260, eqs. 4-5): the sum of both losses + α · ½ Σ_c (p − q)(ln p − ln q), the symmetric divergence of both
    predictions, as a mean over what is predicted; the public code sums over it and divides by the number of target tokens later.

    ``loss``, ``gradient_norm`` and ``watched`` are those of the last step: the latter, unless it is none, what its sparse layers reported.

    Args:
        optimisation: optimiser and schedule.
        losses: loss of the sparse layers → coefficient.
        consistency: α.
        seed: of the run.
    """

    usage: Tensor
    """Tokens, expert rows and dropped assignments of all training steps; in the checkpoints, so that resuming is exact."""

    def __init__(self, optimisation: Optimisation, losses: Mapping[str, float], consistency: float, seed: int):
        super().__init__()
        self.optimisation = optimisation
        self.coefficients = dict(losses)
        self.consistency = consistency
        self.seed = seed
        self.loss = math.nan
        self.gradient_norm = torch.tensor(math.nan)
        self.watched: dict[str, float] | None = None
        self.register_buffer("usage", torch.zeros(3, dtype=torch.int64))

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return (N, C) logits, (N,) targets (-100: no target) and what each sparse layer reports."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy plus the losses of the sparse layers; raises FloatingPointError as soon as the sum is not finite."""
        logits, targets, reports = self.outputs(batch)
        loss = self.total_loss(functional.cross_entropy(logits, targets), reports)
        if self.consistency:
            again, _, others = self.outputs(batch)
            loss = loss + self.total_loss(functional.cross_entropy(again, targets), others)
            loss = loss + self.consistency * symmetric_divergence(logits[targets != -100], again[targets != -100])
        self.loss = loss.item()
        if not math.isfinite(self.loss):
            raise FloatingPointError(f"the training loss is {self.loss} at step {self.global_step}; lower the learning rate")
        return loss

    def total_loss(self, task: Tensor, reports: list[Aux]) -> Tensor:
        """Add the losses of the sparse layers."""
        if self.watched is not None and reports:
            self.watched = {name: math.fsum(aux.losses[name].item() for aux in reports) for name in reports[0].losses}
            self.watched["largest_load"] = max((aux.load.max() / aux.load.double().mean()).item() for aux in reports)
        for aux in reports:
            self.usage += torch.tensor([len(aux.probs), int(aux.load.sum()), aux.dropped], device=self.usage.device)
            task = task + sum(coefficient * aux.losses[name] for name, coefficient in self.coefficients.items() if coefficient)
        return task

    def rows_per_token(self) -> float:
        """Rows of routed experts per token, over all training steps of this process so far; 1 before the first."""
        tokens, rows, _ = self.usage.tolist()
        return rows / tokens if tokens else 1.0

    def dropped_share(self) -> float:
        """Share of assignments that a capacity refused, over all training steps of this process so far."""
        _, rows, dropped = self.usage.tolist()
        return dropped / max(rows + dropped, 1)

    def rates(self) -> dict[str, float]:
        """Learning-rate factor per prefix of the parameters' names; the first prefix that fits counts."""
        return {"head.": self.optimisation.head_rate, "encoder.sparse.": self.optimisation.sparse_rate, "": 1.0}

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and linear decay; no weight decay on norms, biases, scalars and BatchEnsemble's vectors."""
        options = self.optimisation
        # found once, not by two walks over all modules in every step
        self.trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.sparse_layers = [module for module in self.modules() if isinstance(module, SparseLayer)]
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                factor = next(value for prefix, value in self.rates().items() if name.startswith(prefix))
                plain = parameter.ndim < 2 or any(part in name for part in ("norm", "bias", "fast_"))
                groups.setdefault((options.rate * factor, 0.0 if plain else options.weight_decay), []).append(parameter)
        optimiser = torch.optim.AdamW(
            [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
            betas=options.betas,
            eps=options.epsilon,
            fused=True,
        )
        warmup = max(1, round(options.warmup * options.steps))

        def scale(step: int) -> float:
            return min((step + 1) / warmup, max(0.0, (options.steps - step) / max(1, options.steps - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, scale)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make all randomness of a step (dropout, noisy routers) a function of seed and step, so that resuming is exact."""
        seed = (self.seed * 1_000_003 + self.global_step) % 2**63
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs milliseconds on a machine without a GPU
        if self.on_gpu:
            torch.cuda.manual_seed_all(seed)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Clip by the norm of all gradients; Lightning's own clipping refuses a fused optimiser in mixed precision."""
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.trained, self.optimisation.clip)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, then let the routers do what they do after a step: before any callback sees the new state and saves it."""
        super().optimizer_step(*arguments, **options)
        for layer in self.sparse_layers:
            layer.after_optimizer_step()


def symmetric_divergence(one: Tensor, other: Tensor) -> Tensor:
    """½ Σ_c (p_c − q_c)(ln p_c − ln q_c) of two (N, C) logits, as a mean over N; 0 where they agree."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    difference = torch.where(p.isfinite(), p - q, 0)  # impossible classes, such as the padding of a context, are -inf in both
    return 0.5 * ((p.exp() - q.exp()) * difference).sum(-1).mean()

"""What the Lightning modules of pre-training and fine-tuning share: optimiser, schedule, the sparse layers' losses and hooks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from moebench.config import Optimisation
from moebench.moe.contract import summed_over_ranks
from moebench.moe.layer import Aux, SparseLayer
from moebench.training.batches import Batch


class Training(lightning.LightningModule):
    """Base of all modules: task loss + Σ coefficient · loss, over the losses of all sparse layers (X-MoE, arXiv 2204.09179, eq. 10 of v3).

    With ``consistency`` α > 0 every batch is run twice, with independent draws of whatever is random, and the loss is that of THOR
    (arXiv 2110.04260, eqs. 4-5): the sum of both losses + α · ½ Σ_c (p − q)(ln p − ln q), the symmetric divergence of both
    predictions, as a mean over what is predicted; the public code sums over it and divides by the number of target tokens later.

    A step's batch may be computed in parts: by several ranks, each in ``accumulate`` parts. Cross-entropy and divergence are means over
    the targets of all parts (`moebench.training.batches.weight`). The losses of sparse layers are those of each part's tokens, as a mean
    over parts: a part is what a layer routes at once, and has its capacity for, and existing frameworks take the balance loss over a
    micro-batch and average it over parallel groups (arXiv 2501.11873, abstract). One over the whole batch, which that paper proposes, is
    another, weaker demand, and needs the loads of all ranks within a forward pass.

    ``loss``, ``tokens``, ``gradient_norm`` and ``watched`` are those of the last step, of all its parts; ``watched`` is, unless it is
    none, what its sparse layers reported.

    Args:
        optimisation: optimiser and schedule.
        losses: loss of the sparse layers → coefficient.
        consistency: α.
        seed: of the run.
    """

    usage: Tensor
    """Tokens, expert rows and dropped assignments of all training steps and ranks; in the checkpoints, so that resuming is exact."""

    def __init__(self, optimisation: Optimisation, losses: Mapping[str, float], consistency: float, seed: int):
        super().__init__()
        self.optimisation = optimisation
        self.coefficients = dict(losses)
        self.consistency = consistency
        self.seed = seed
        self.loss = math.nan
        self.tokens = 0
        self.gradient_norm = torch.tensor(math.nan)
        self.watched: dict[str, float] | None = None
        self.loads: list[Tensor] = []  # (E,) of each sparse layer, in a step that is watched
        self.register_buffer("usage", torch.zeros(3, dtype=torch.int64))

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor, list[Aux]]:
        """Return (N, C) logits, (N,) targets (-100: no target) and what each sparse layer reports."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy plus the losses of the sparse layers.

        Raises:
            FloatingPointError: the sum, or a score of a router, is not finite, on whatever rank; on all ranks.
        """
        wrong = None
        try:
            loss, passes = self.part_loss(batch)
        except FloatingPointError as error:  # of a router of this rank: the others would wait for it
            loss, passes, wrong = batch["weight"].new_tensor(math.nan), [], error
        if batch_idx % self.optimisation.accumulate == 0:
            self.loss, self.tokens, self.loads = 0.0, 0, []
        self.record(loss.item(), batch, passes)
        if not math.isfinite(self.loss):
            raise wrong or FloatingPointError(f"the training loss is {self.loss} at step {self.global_step}; lower the learning rate")
        if self.watched is not None and passes[-1]:
            self.watch(self.watched, passes[-1])
        return loss

    def part_loss(self, batch: Batch) -> tuple[Tensor, list[list[Aux]]]:
        """Return the loss of a part of a batch, and what each sparse layer reports, in each forward pass."""
        weight = batch["weight"][0]
        logits, targets, reports = self.outputs(batch)
        loss = self.total_loss(weight * mean_cross_entropy(logits, targets), reports)
        if not self.consistency:
            return loss, [reports]
        again, _, others = self.outputs(batch)
        loss = loss + self.total_loss(weight * mean_cross_entropy(again, targets), others)
        loss = loss + self.consistency * (weight * symmetric_divergence(logits[targets != -100], again[targets != -100]))
        return loss, [reports, others]

    def total_loss(self, task: Tensor, reports: list[Aux]) -> Tensor:
        """Add the losses of the sparse layers; dense networks between them report none."""
        for aux in reports:
            if not aux.losses:
                continue
            task = task + sum(coefficient * aux.losses[name] for name, coefficient in self.coefficients.items() if coefficient)
        return task

    def record(self, loss: float, batch: Batch, passes: list[list[Aux]]) -> None:
        """Add a part's loss, tokens and usage, of all ranks, to those of the step; without passes the loss alone says something."""
        tokens = int(batch["mask"].sum()) if "mask" in batch else len(batch["labels"])
        chosen = [aux for reports in passes for aux in reports if len(aux.load) > 1]  # where there is one expert, nothing is chosen
        uses = [(len(aux.probs) // aux.heads, int(aux.load.sum()), aux.dropped) for aux in chosen]
        total, more, *usage = self.summed([loss, tokens, *map(sum, zip((0, 0, 0), *uses, strict=True))])
        self.loss += total / (ranks() * self.optimisation.accumulate)
        self.tokens += int(more)
        self.usage += torch.tensor(usage, device=self.usage.device).long()

    def watch(self, watched: dict[str, float], reports: list[Aux]) -> None:
        """Add what the sparse layers report of a part, on all ranks, to what is watched of the step."""
        reports = [aux for aux in reports if len(aux.load) > 1] or reports  # dense networks between sparse layers have nothing to watch
        names = list(reports[0].losses)
        values = self.summed([math.fsum(aux.losses[name].item() for aux in reports) for name in names])
        for name, value in zip(names, values, strict=True):
            watched[name] = watched.get(name, 0.0) + value / (ranks() * self.optimisation.accumulate)
        loads = [summed_over_ranks(aux.load) for aux in reports]
        self.loads = [one + other for one, other in zip(self.loads, loads, strict=True)] if self.loads else loads
        watched["largest_load"] = max((load.max() / load.double().mean()).item() for load in self.loads)

    def summed(self, values: Sequence[float]) -> Sequence[float]:
        """Sum numbers over the ranks, in float64, in which whole numbers stay exact."""
        if ranks() == 1:
            return values
        return summed_over_ranks(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def rows_per_token(self) -> float:
        """Rows of routed experts per token, over all training steps and ranks so far; 1 before the first."""
        tokens, rows, _ = self.usage.tolist()
        return rows / tokens if tokens else 1.0

    def dropped_share(self) -> float:
        """Share of assignments that a capacity refused, over all training steps and ranks so far."""
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
        sparse = [module for module in self.modules() if isinstance(module, SparseLayer)]
        inside = {part for layer in sparse for part in layer.modules() if part is not layer}
        self.sparse_layers = [layer for layer in sparse if layer not in inside]  # a layer around another passes the hook on
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
        """Make all randomness of a step (dropout, noisy routers) a function of seed, step and part, so that resuming is exact.

        Part 0 has the seed that one process has; the others' are so far away that no step of any of them is drawn like another's.
        """
        part = self.global_rank + ranks() * (batch_idx % self.optimisation.accumulate)
        seed = (self.seed * 1_000_003 + self.global_step + (part << 44)) % 2**63
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


def ranks() -> int:
    """How many processes train together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets, of (N, C) logits and (N,) targets (-100: no target); 0 with a gradient of 0, instead of 0 / 0, without any."""
    return functional.cross_entropy(logits, targets, reduction="mean" if (targets != -100).any() else "sum")


def symmetric_divergence(one: Tensor, other: Tensor) -> Tensor:
    """½ Σ_c (p_c − q_c)(ln p_c − ln q_c) of two (N, C) logits, as a mean over N; 0 where they agree, and without rows."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    difference = torch.where(p.isfinite(), p - q, 0)  # impossible classes, such as the padding of a context, are -inf in both
    divergence_N = ((p.exp() - q.exp()) * difference).sum(-1)
    return 0.5 * (divergence_N.mean() if len(divergence_N) else divergence_N.sum())

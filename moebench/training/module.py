"""What the Lightning modules of pre-training and fine-tuning share: optimiser, schedule, the sparse layer's loss and hook."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from moebench.config import Optimisation
from moebench.models.encoder import Encoder
from moebench.moe.layer import Aux, MoELayer


class Training(lightning.LightningModule):
    """Base of both modules.

    The total loss is task + ``balance`` * load-balancing loss (X-MoE, arXiv 2204.09179, eq. 10 of version 3).
    """

    def __init__(self, encoder: Encoder, optimisation: Optimisation, balance: float, seed: int):
        super().__init__()
        self.encoder = encoder
        self.optimisation = optimisation
        self.balance = balance
        self.seed = seed

    def total_loss(self, task: Tensor, aux: Aux | None) -> Tensor:
        """Add the balance loss; raises FloatingPointError as soon as the loss is not finite."""
        loss = task if aux is None else task + self.balance * aux.losses["balance"]
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss.item()} at step {self.global_step}; lower the learning rate")
        return loss

    def rates(self) -> dict[str, float]:
        """Learning-rate factor per prefix of the parameters' names; the first prefix that fits counts."""
        return {"": 1.0}

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and linear decay; no weight decay on norms, biases and scalars."""
        options = self.optimisation
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                factor = next(value for prefix, value in self.rates().items() if name.startswith(prefix))
                plain = parameter.ndim < 2 or "norm" in name or "bias" in name
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
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Clip by the norm of all gradients; Lightning's own clipping refuses a fused optimiser in mixed precision."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.optimisation.clip)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, then let the routers do what they do after a step: before any callback sees the new state and saves it."""
        super().optimizer_step(*arguments, **options)
        for module in self.modules():
            if isinstance(module, MoELayer):
                module.after_optimizer_step()

"""The sparse layer: router, experts and dispatch around padding.

B sequences, S positions, T real tokens, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.dispatch import dispatch


@dataclass(frozen=True)
class Aux:
    """What a sparse layer reports beside its output."""

    losses: Mapping[str, Tensor]
    """Name → unscaled scalar, of the router."""
    load: Tensor
    """(E,) number of assignments of each expert, int64."""
    routing: Routing
    """The whole decision; its tokens are numbered along ``x[mask]``."""


class MoELayer(nn.Module):
    """Router + experts + dispatch. Returns the experts' part alone: the caller adds the residual, h' = h + y.

    Padding is removed before routing, so it reaches no score, loss or count. The router runs outside autocast, on fp32 tokens (fp64
    tokens stay fp64).

    Args:
        router: decides who sees what.
        experts: maps (A, D) rows sorted by expert and (E,) counts to (A, D) outputs.
        name: what errors call this layer.
    """

    def __init__(self, router: Router, experts: nn.Module, name: str = "moe"):
        super().__init__()
        self.router = router
        self.experts = experts
        self.name = name

    def forward(
        self, x_BSD: Tensor, mask_BS: Tensor | None = None, token_ids_BS: Tensor | None = None, *, step: int = 0
    ) -> tuple[Tensor, Aux]:
        """Run the layer.

        Args:
            x_BSD: (B, S, D) hidden states.
            mask_BS: (B, S), true at real tokens; none: all are real.
            token_ids_BS: (B, S) vocabulary ids, for routers that look at them.
            step: optimiser steps taken so far, for routers that look at it.

        Returns:
            (B, S, D) change to add to ``x_BSD``, zero at padding, in its type; and what the layer reports.

        Raises:
            FloatingPointError: a score or weight of the router is not finite; the message names the layer.
        """
        real_BS = torch.ones(x_BSD.shape[:2], dtype=torch.bool, device=x_BSD.device) if mask_BS is None else mask_BS.bool()
        tokens_TD = x_BSD[real_BS]
        with torch.autocast(x_BSD.device.type, enabled=False):
            routing = self.router(
                RouterInputs(
                    tokens=tokens_TD.to(torch.promote_types(tokens_TD.dtype, torch.float32)),
                    token_ids=None if token_ids_BS is None else token_ids_BS[real_BS],
                    sequence_ids=real_BS.nonzero()[:, 0],
                    step=step,
                )
            )
        for what, value in (("scores", routing.scores), ("weights", routing.weight)):
            if not value.isfinite().all():
                bad = int((~value.isfinite()).sum())
                raise FloatingPointError(f"{self.name}: {bad} of {value.numel()} {what} of the router are not finite")
        y_BSD = torch.zeros_like(x_BSD)
        y_BSD[real_BS] = dispatch(tokens_TD, routing, self.experts)
        return y_BSD, Aux(routing.losses, routing.load, routing)

    def after_optimizer_step(self) -> None:
        """Call the router's hook."""
        self.router.after_optimizer_step()

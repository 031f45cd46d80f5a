"""Autonomy-of-Experts' score without its autonomy: a router as large as the reductions of its experts, and sharing nothing with them.

T tokens, D model width, E experts, K chosen, L reduced width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z


class Norm(Router):
    """s_te = ‖x_t W_e‖₂; the K experts of largest norm, with weights softmax over the K kept norms, or over all.

    The control "large router" of Autonomy-of-Experts (arXiv 2501.13074, table 2) holds E·L·D parameters; what it does with them is not
    published, nor which L it has. Here it scores as the layer `aoe` does, with matrices of its own: the two differ only in
    that there the experts work on with what they are chosen by.

    There is no capacity. Matrices start as N(0, 0.02²), as the experts' do.

    Losses: ``balance``, 1 when even, so the paper's coefficient is K times as large here, as for `topk`; ``z``, not of the paper.

    Args:
        d_model: D.
        experts: E.
        k: K.
        low: L; for a fair control the experts' own.
        normalise: the weights sum to 1.

    Raises:
        ValueError: ``k`` is not in 1 to E, or ``low`` below 1.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")
    untaught: ClassVar[tuple[dict[str, Any], ...]] = ({"k": 1, "normalise": True},)

    def __init__(self, d_model: int, experts: int, *, k: int = 2, low: int, normalise: bool = True):
        super().__init__(d_model, experts)
        if not 1 <= k <= experts:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of experts, {experts}")
        if low < 1:
            raise ValueError(f"low {low}: should be at least 1, the width of which a norm is taken")
        self.k = k
        self.normalise = normalise
        self.reduce_weight = nn.Parameter(torch.empty(experts, low, d_model).normal_(std=0.02))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to K experts."""
        reduced_TEL = F.linear(inputs.tokens, self.reduce_weight.flatten(0, 1)).unflatten(1, self.reduce_weight.shape[:2])
        norm_TE = torch.linalg.vector_norm(reduced_TEL, dim=-1)
        probs_TE = norm_TE.softmax(-1)
        norm_TK, expert_TK = norm_TE.topk(self.k)
        weight_TK = norm_TK.softmax(-1) if self.normalise else probs_TE.gather(1, expert_TK)
        losses = {"balance": load_balance(probs_TE, expert_TK.flatten()), "z": router_z(norm_TE)}
        return Routing.topk(expert_TK, weight_TK, scores=norm_TE, losses=losses)

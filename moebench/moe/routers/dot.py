"""The dot-product router of the SMoE baseline: every token goes to the expert whose embedding it points at most.

T tokens, D model width, E experts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z


class Dot(Router):
    """s_i = h · e_i; the token goes to k = argmax_i s_i with weight g(s_k) (X-MoE, arXiv 2204.09179, eqs. 1-3).

    With the softmax gate this is Switch (arXiv 2101.03961) without its input jitter, which the X-MoE paper does not use; with the
    sigmoid gate it is the gate of BASE layers (arXiv 2103.16716). Embeddings start as N(0, 0.02²); the paper does not state their start.

    Losses: ``balance``, on softmax(s) for both gates; ``z``.

    Args:
        d_model: D.
        experts: E.
        gate: g, softmax over all E scores or sigmoid of the best one.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")

    def __init__(self, d_model: int, experts: int, *, gate: Literal["softmax", "sigmoid"] = "softmax"):
        super().__init__(d_model, experts)
        self.gate = gate
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=0.02))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to one expert."""
        scores_TE = inputs.tokens @ self.embedding.T
        expert_T = scores_TE.argmax(-1)
        probs_TE = scores_TE.softmax(-1)
        gates_TE = probs_TE if self.gate == "softmax" else scores_TE.sigmoid()
        weight_T = gates_TE.gather(1, expert_T[:, None])[:, 0]
        losses = {"balance": load_balance(probs_TE, expert_T), "z": router_z(scores_TE)}
        return Routing.top1(expert_T, weight_T, scores=scores_TE, losses=losses)

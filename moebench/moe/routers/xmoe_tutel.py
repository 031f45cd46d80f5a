"""The cosine gate of Tutel: X-MoE's angles with a bias in the projection and the logarithm of the inverse temperature learned.

T tokens, D model width, E experts, K chosen, R routing width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from moebench.moe.capacity import check_factors, queue_position
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z

MOST = math.log(100)
"""The logarithm of the largest scale."""


class XMoETutel(Router):
    """s_i = exp(min(λ, ln 100)) · cos(W x + b, e_i); the token goes to the K best experts, p = softmax(s) over all E.

    X-MoE (arXiv 2204.09179) as ``CosineTopKGate`` of Tutel has it; `XMoE` is the paper's. λ is one learned scalar, the logarithm of
    the paper's 1 / τ; above ln 100 it gets no gradient, so that a τ below 0.01 acts as 0.01 and is not learned. With K = 1 the weight is
    p_k; with more the weights are divided by their sum. W and b start as ``nn.Linear`` does, e as N(0, 0.01²), not held at a norm.

    In training an expert takes the first C = K ⌊capacity_factor · ⌈T / E⌉⌋ of its queue, at least 1: all first choices before all
    second ones, and so on, each in the order of the batch. Others are dropped; the weights that remain are not divided again.

    Losses: ``balance``, of the first choices, before any is dropped; ``z``, which Tutel does not have.

    Tutel limits capacity in evaluation too, takes fewer than K experts without a word where there are fewer, and has options that are
    left out: noise on s, priority of confident tokens, weights that are not divided, a loss of importance and load.

    Args:
        d_model: D.
        experts: E.
        k: K.
        dim: R.
        temperature: τ that λ starts from.
        capacity_factor: limit in training, as a multiple of an equal share; none: every choice is taken.
        eval_capacity_factor: the same in evaluation. With a limit a token's experts depend on the whole batch.

    Raises:
        ValueError: ``k`` outside of 1 to E, ``dim`` below 1, ``temperature`` or a factor that is not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        k: int = 1,
        dim: int = 256,
        temperature: float = 0.5,
        capacity_factor: float | None = 1.0,
        eval_capacity_factor: float | None = None,
    ):
        super().__init__(d_model, experts)
        if not 1 <= k <= experts:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of experts, {experts}")
        if dim < 1:
            raise ValueError(f"dim {dim}: should be at least 1")
        if not temperature > 0:
            raise ValueError(f"temperature {temperature}: should be above 0")
        check_factors(capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor)
        self.k = k
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.projection = nn.Linear(d_model, dim)
        self.embedding = nn.Parameter(torch.empty(experts, dim).normal_(std=0.01))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to K experts, less those that are full."""
        cosine_TE = F.normalize(self.projection(inputs.tokens), dim=1) @ F.normalize(self.embedding, dim=1).T
        scores_TE = cosine_TE * self.log_scale.clamp(max=MOST).exp()
        probs_TE = scores_TE.softmax(-1)
        expert_TK = scores_TE.topk(self.k).indices  # not of the probabilities: they underflow to ties
        weight_TK = probs_TE.gather(1, expert_TK)
        if self.k > 1:
            weight_TK = weight_TK / weight_TK.sum(1, keepdim=True)
        losses = {"balance": load_balance(probs_TE, expert_TK[:, 0]), "z": router_z(scores_TE)}
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        kept_TK = None
        if factor is not None:
            limit = max(self.k * int(factor * math.ceil(len(expert_TK) / self.experts)), 1)
            kept_TK = (queue_position(expert_TK.T.flatten()) < limit).view(self.k, -1).T
        return Routing.topk(expert_TK, weight_TK, scores=scores_TE, losses=losses, kept=kept_TK)

"""The router of V-MoE (Riquelme et al., arXiv 2106.05974): noise on the logits, softmax before top-k, losses on importance and load.

T tokens, D model width, E experts, K chosen experts a token.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from moebench.moe.capacity import check_factors, queue_position
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z, squared_variation


def wins(logits_TE: Tensor, noisy_TE: Tensor, k: int, sigma: float) -> Tensor:
    """P(logit_e + fresh noise of deviation σ reaches the k-th largest noisy logit of its token): 1 − Φ((threshold − logit_e) / σ).

    The threshold carries a gradient too, as in the public code. Without noise (σ = 0) it is the limit, 1 for the chosen, and has none.
    """
    margin_TE = logits_TE - noisy_TE.topk(k).values[:, -1:]
    return torch.special.ndtr(margin_TE / sigma) if sigma else (margin_TE >= 0).to(logits_TE.dtype)


def slots(tokens: int, k: int, experts: int, factor: float) -> int:
    """C = ⌈T · k · factor / E⌉, rounded up to a multiple of 4."""
    return 4 * math.ceil(math.ceil(tokens * k * factor / experts) / 4)


def ranked_positions(expert_TK: Tensor, priority_T: Tensor | None) -> Tensor:
    """(T, K) places in the experts' queues: first choices, then second ones ...; within a rank by falling priority, or in token order."""
    tokens, k = expert_TK.shape
    order_T = torch.arange(tokens, device=expert_TK.device) if priority_T is None else priority_T.argsort(descending=True, stable=True)
    position_KT = queue_position(expert_TK[order_T].T.flatten()).view(k, tokens)
    return torch.empty_like(expert_TK).index_copy_(0, order_T, position_KT.T)


class NoisyTopK(Router):
    """p = softmax(W h + ε), ε ~ N(0, 1/E²) in training; the K largest p_e choose the experts and are their weights, not renormalised.

    An expert takes C = ⌈T·K·c / E⌉ assignments, rounded up to a multiple of 4 as in the public code: all first choices come before any
    second one, within a rank earlier tokens come first, or, with ``batch_priority``, those of the largest p. T counts the real tokens of
    the batch, which is one group (public code: groups of 8 images, losses averaged over groups).

    Losses, unscaled; the public configurations weigh the first two by 0.005 each:

    - ``importance``: (σ / μ)² over experts of Σ_t p_e(t), without the noise.
    - ``load``: (σ / μ)² over experts of Σ_t P(e is chosen if its noise alone is drawn again), see `wins`. It is defined by the noise, and
      the public code leaves it out in evaluation. Here evaluation measures it by the same σ around the thresholds without noise. With
      ``noise_std`` 0, where the public code leaves it out too, it is that of the hard counts before any drop, a constant.
    - ``balance``: `load_balance` of p and the first choices, with the noise; GShard's loss, which the public code computes at weight 0.
    - ``z``: without the noise.

    The weights start as N(0, 1/D): Lecun's, the public code's default, though not truncated at 2 σ.

    Args:
        d_model: D.
        experts: E.
        k: K, 2 in the released models.
        noise_std: ε's deviation in units of 1/E.
        capacity_factor: c in training: 1.05 in pre-training, 1.5 in fine-tuning of the public configurations; none: nothing is dropped.
        eval_capacity_factor: c in evaluation, for ablations: routing then depends on batch mates, and K > 1 is not causal. None: nothing
            is dropped.
        batch_priority: Batch Prioritized Routing, off in the public training configurations.

    Raises:
        ValueError: ``k`` outside 1 to E, a negative ``noise_std`` or a capacity factor that is not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("importance", "load", "balance", "z")

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        k: int = 2,
        noise_std: float = 1.0,
        capacity_factor: float | None = 1.05,
        eval_capacity_factor: float | None = None,
        batch_priority: bool = False,
    ):
        super().__init__(d_model, experts)
        if not 1 <= k <= experts:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of experts, {experts}")
        if noise_std < 0:
            raise ValueError(f"noise_std {noise_std}: should be at least 0, it is a deviation")
        check_factors(capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor)
        self.k = k
        self.sigma = noise_std / experts
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.batch_priority = batch_priority
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=d_model**-0.5))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to K experts, less what a capacity refuses."""
        logits_TE = inputs.tokens @ self.embedding.T
        noisy_TE = logits_TE + self.sigma * torch.randn_like(logits_TE) if self.training else logits_TE
        probs_TE = noisy_TE.softmax(-1)
        expert_TK = noisy_TE.topk(self.k).indices  # not of the probabilities: a saturated softmax has ties
        weight_TK = probs_TE.gather(1, expert_TK)
        factor, kept_TK = self.capacity_factor if self.training else self.eval_capacity_factor, None
        if factor is not None:
            capacity = slots(len(logits_TE), self.k, self.experts, factor)
            kept_TK = ranked_positions(expert_TK, weight_TK[:, 0] if self.batch_priority else None) < capacity
        losses = {
            "importance": squared_variation(logits_TE.softmax(-1).sum(0)),
            "load": squared_variation(wins(logits_TE, noisy_TE, self.k, self.sigma).sum(0)),
            "balance": load_balance(probs_TE, expert_TK[:, 0]),
            "z": router_z(logits_TE),
        }
        return Routing.topk(expert_TK, weight_TK, scores=noisy_TE, losses=losses, kept=kept_TK)

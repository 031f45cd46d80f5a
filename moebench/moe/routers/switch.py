"""Switch (Fedus et al., arXiv 2101.03961): every token goes to its most probable expert, which takes a limited number of tokens.

T tokens, D model width, E experts.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from moebench.moe.capacity import capacity, check_factors, queue_position
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z


class Switch(Router):
    """p = softmax(W x̃), x̃ = x · u with u ~ U(1 - jitter, 1 + jitter); the token goes to k = argmax_i p_i with weight p_k (eqs. 1-2).

    u is drawn anew for every entry of x, in training only, and touches the router alone: the experts see x. An expert takes its first
    C = ⌊capacity_factor · ⌈T / E⌉⌋ tokens, at least 1, in the order of the batch; tokens beyond that get no expert (eq. 3). W starts as
    a normal distribution of variance 0.1 / D, truncated at two standard deviations (section 2.4).

    Losses: ``balance`` (eqs. 4-6), of the choices before any is dropped; ``z``, which the paper does not have. With jitter both are
    those of x̃.

    The paper states no rounding of C; ours is TorchScale's, which leaves no expert without a place however few the tokens are.
    Public code: Mesh TensorFlow takes C = ⌊factor · T / E⌋, T the tokens of a group, and jitters in evaluation too. T5X (flaxformer)
    rounds factor · T / E to the nearest, with a least C and in groups of 8192 tokens, starts W from N(0, 0.02²) and leaves the jitter
    out of its published configurations. Both have factor 2 in evaluation. TorchScale has no jitter, factor 1 and in evaluation
    C = ⌈T / 4⌉, and counts padding among the T tokens of C and of the loss. Transformers counts C in every sequence by itself and
    multiplies the jitter in place into fp32 hidden states.

    Args:
        d_model: D.
        experts: E.
        jitter: half the width of the noise, as a share of the input.
        capacity_factor: limit in training, as a multiple of an equal share; none: every token is taken.
        eval_capacity_factor: the same in evaluation. With a limit a token's expert depends on the whole batch.

    Raises:
        ValueError: ``jitter`` outside of [0, 1) or a factor that is not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        jitter: float = 0.01,
        capacity_factor: float | None = 1.25,
        eval_capacity_factor: float | None = None,
    ):
        super().__init__(d_model, experts)
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter {jitter}: should be at least 0 and below 1, or inputs change their sign")
        check_factors(capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor)
        self.jitter = jitter
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        std = math.sqrt(0.1 / d_model)
        self.embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(experts, d_model), std=std, a=-2 * std, b=2 * std))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to one expert or, where that is full, to none."""
        x_TD = inputs.tokens
        if self.training and self.jitter:
            x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
        logits_TE = x_TD @ self.embedding.T
        probs_TE = logits_TE.softmax(-1)
        expert_T1 = logits_TE.argmax(-1, keepdim=True)
        losses = {"balance": load_balance(probs_TE, expert_T1[:, 0]), "z": router_z(logits_TE)}
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        kept_T1 = None
        if factor is not None:
            kept_T1 = queue_position(expert_T1[:, 0])[:, None] < capacity(factor, len(x_TD), self.experts)
        return Routing.topk(expert_T1, probs_TE.gather(1, expert_T1), scores=logits_TE, losses=losses, kept=kept_T1)

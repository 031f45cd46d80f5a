"""ReLU routing: an expert is on where its score is positive, and a penalty holds how many are.

T tokens, D model width, E experts.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing, summed_over_ranks
from moebench.moe.losses import router_z

STRENGTHS = (1e-30, 1e3)
"""Range of λ. Where training cannot reach the sparsity, λ grows by its factor at every step until it overflows (or falls until it is
0, which no factor lifts again). Public code sets no limits."""


class ReMoE(Router):
    """r = relu(W h); a token takes the experts with r > 0, with weight r (Wang et al., arXiv 2412.14711).

    The penalty (with the paper's load balancing) is λ · 1/T Σ_t Σ_e f_e r_te, f_e = E / (k T) · Σ_t [r_te > 0], where f is a constant
    to the gradient. After every optimiser step λ ← λ · α^sign((1 − k/E) − S), where S is the share of (token, expert) pairs that were
    off in the training forwards since the step before, on all ranks: so the mean number of experts goes to k. A token may have none.

    W has no bias and starts as N(0, 0.02²): about half of the experts are on at first, so early steps cost E/2 experts a token.

    Losses: ``sparsity``, the penalty with its λ: its coefficient is 1; ``z``, which the paper does not have.

    Deviations: the paper has one λ for all layers, set by their mean sparsity, and divides by their number; here each layer holds its
    own. Where S is exactly 1 − k/E the paper leaves λ, as here; public code divides it.

    The distribution over experts is r / Σ r, uniform for a token without experts.

    Args:
        d_model: D.
        experts: E.
        k: experts a token that the sparsity aims at.
        start: λ before the first step.
        factor: α.

    Raises:
        ValueError: ``k`` is not within 1 and E, ``start`` not within the range of λ, or ``factor`` not above 1.
    """

    losses: ClassVar[tuple[str, ...]] = ("sparsity", "z")
    strength: Tensor
    pairs: Tensor

    def __init__(self, d_model: int, experts: int, *, k: int = 1, start: float = 1e-8, factor: float = 1.2):
        super().__init__(d_model, experts)
        if not 1 <= k <= experts:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of experts, {experts}")
        if not STRENGTHS[0] <= start <= STRENGTHS[1]:
            raise ValueError(f"start {start}: should be within {STRENGTHS[0]} and {STRENGTHS[1]}, the range that λ is held in")
        if not factor > 1:
            raise ValueError(f"factor {factor}: should be above 1, as it raises λ when too many experts are on")
        self.k = k
        self.factor = factor
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=0.02))
        self.register_buffer("strength", torch.tensor(start, dtype=torch.float32))  # λ
        self.register_buffer("pairs", torch.zeros(2, dtype=torch.int64))  # (token, expert) pairs since the last step: on, all

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to the experts that want it."""
        logits_TE = inputs.tokens @ self.embedding.T
        weight_TE = logits_TE.relu()
        active_TE = weight_TE > 0
        if self.training and self.embedding.requires_grad:
            self.pairs[0] += active_TE.sum()
            self.pairs[1] += active_TE.numel()
        tokens = max(len(active_TE), 1)
        share_E = active_TE.to(weight_TE.dtype).sum(0) * (self.experts / (self.k * tokens))
        losses = {"sparsity": self.strength.to(weight_TE.dtype) * (share_E * weight_TE.sum(0)).sum() / tokens, "z": router_z(logits_TE)}
        total_T1 = weight_TE.sum(1, keepdim=True)
        probs_TE = torch.where(total_T1 > 0, weight_TE / total_T1, 1 / self.experts)
        return Routing.from_mask(active_TE, weight_TE, scores=logits_TE, losses=losses, probs=probs_TE)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Move λ by one factor towards the sparsity; without a training forward since the last call, leave it."""
        on, pairs = summed_over_ranks(self.pairs).tolist()
        direction = (on * self.experts > pairs * self.k) - (on * self.experts < pairs * self.k)  # in integers: equal is equal
        self.strength.mul_(self.factor**direction).clamp_(*STRENGTHS)
        self.pairs.zero_()

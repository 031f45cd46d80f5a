"""StableMoE (Dai et al., arXiv 2204.08396): learn to route, distil the router into one that sees token ids only, freeze it.

T tokens, D model width, E experts, V vocabulary pieces, R width of the distilled router.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.capacity import check_factors, queue_position
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import router_z


class StableMoE(Router):
    """Stage 1, the first ``stage1_steps`` steps: s_te = h_t · e_e, the token goes to a = argmax_e s_te with weight σ(s_ta).

    Meanwhile the distilled router ŝ_te = d(id_t) · ê_e learns to predict a; d is an embedding of its own. From then on (stage 2), and in
    every evaluation, also during stage 1, the token goes to argmax_e ŝ_te; its weight is still σ(h_t · e_a) and still learns. d and ê are
    frozen in stage 2: no gradient reaches them, and their leftover gradients are deleted after each step, so an optimiser skips them,
    weight decay and momentum included. Routing in stage 2 and in evaluation is a function of the token id.

    Steps are counted in a buffer, so fine-tuning continues the count of the checkpoint. The paper gives stage 1 a tenth of its training:
    6,000 steps of 60,000 for language models. A run of another length has to set ``stage1_steps``.

    In training an expert takes C = ⌊capacity_factor · T / E⌋ tokens, at least 1, in the order of the tokens; the others are dropped.
    Evaluation drops none.

    Losses, means over tokens where the originals are sums, 0 in stage 2, and in evaluation what stage 1 would report: ``balance``,
    1/T Σ_e (n_e − n) / n · Σ_{t on e} σ(s_te), with n_e tokens on e before any is dropped and n = T / E; 0 when loads are equal, and
    negative at best. ``distil``: the cross-entropy of softmax(ŝ_t) against a; only d and ê get its gradient. The public code multiplies
    both by 0.3; the paper shows no factor for the second. ``z``, of the scores, in both stages, which the paper does not have.

    Start, as in the public code: e and ê orthogonal with gain 0.1, d from N(0, 1).

    Public code: limits the capacity in evaluation too; fills it in the order of an unstable sort; goes over to stage 2 without freezing d
    and ê explicitly; has other distilled routers (bigrams, a convolution, a small transformer).

    Args:
        d_model: D.
        experts: E.
        vocabulary: V.
        stage1_steps: optimiser steps of stage 1.
        capacity_factor: of the capacity in training; none: nothing is dropped.
        dim: R.

    Raises:
        ValueError: an option is out of its range.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "distil", "z")

    steps: Tensor

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        vocabulary: int,
        stage1_steps: int = 6000,
        capacity_factor: float | None = 2.0,
        dim: int = 50,
    ):
        super().__init__(d_model, experts)
        if vocabulary < 1:
            raise ValueError(f"vocabulary {vocabulary}: should be at least 1, the distilled router has a row per piece")
        if stage1_steps < 1:
            raise ValueError(f"stage1_steps {stage1_steps}: should be at least 1, the distilled router learns in stage 1 only")
        check_factors(capacity_factor=capacity_factor)
        if dim < 1:
            raise ValueError(f"dim {dim}: should be at least 1, it is the width of the distilled router")
        self.stage1_steps = stage1_steps
        self.capacity_factor = capacity_factor
        self.embedding = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, d_model), gain=0.1))
        self.distilled_words = nn.Parameter(torch.randn(vocabulary, dim))
        self.distilled_embedding = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, dim), gain=0.1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def flops_per_token(self) -> int:
        """Both products with the experts' embeddings; a word's vector is only looked up."""
        return 2 * (self.embedding.numel() + self.distilled_embedding.numel())

    @property
    def stage2(self) -> bool:
        """Whether stage 1 is over."""
        return bool(self.steps >= self.stage1_steps)

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to one expert."""
        stage2 = self.stage2
        scores_TE = inputs.tokens @ self.embedding.T
        distilled_TE = F.embedding(inputs.require("token_ids"), self.distilled_words) @ self.distilled_embedding.T
        chosen_by_TE = scores_TE if self.training and not stage2 else distilled_TE
        expert_T = chosen_by_TE.argmax(-1)
        weight_T = scores_TE.gather(1, expert_T[:, None])[:, 0].sigmoid()
        kept_T1 = None
        if self.training and self.capacity_factor is not None:
            capacity = max(int(self.capacity_factor * len(expert_T) / self.experts), 1)
            kept_T1 = (queue_position(expert_T) < capacity)[:, None]
        losses = {"balance": scores_TE.new_zeros(()), "distil": scores_TE.new_zeros(())} if stage2 else stage1(scores_TE, distilled_TE)
        losses["z"] = router_z(scores_TE)
        return Routing.topk(expert_T[:, None], weight_T[:, None], scores=chosen_by_TE, losses=losses, kept=kept_T1)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Count the step; from the end of stage 1 on, keep every optimiser off the distilled router."""
        self.steps += 1
        if self.stage2:
            self.distilled_words.grad = self.distilled_embedding.grad = None


def stage1(scores_TE: Tensor, distilled_TE: Tensor) -> dict[str, Tensor]:
    """The losses of stage 1."""
    tokens, experts = scores_TE.shape
    tokens = max(tokens, 1)
    best_T = scores_TE.argmax(-1)
    excess_E = torch.bincount(best_T, minlength=experts).to(scores_TE.dtype) * experts / tokens - 1
    gates_T = scores_TE.gather(1, best_T[:, None])[:, 0].sigmoid()
    return {
        "balance": (excess_E[best_T] * gates_T).sum() / tokens,
        "distil": F.cross_entropy(distilled_TE, best_T, reduction="sum") / tokens,
    }

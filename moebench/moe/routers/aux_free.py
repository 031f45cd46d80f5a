"""Balance without a loss (Wang et al., arXiv 2408.15664): a bias that only the choice sees is raised where the load is low.

T tokens, D model width, E experts, K chosen.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing, summed_over_ranks
from moebench.moe.losses import router_z


class AuxFree(Router):
    """s_i = g(h · e_i); the K experts of highest s_i + b_i, with weights s_i (eq. 3). No capacity.

    After every optimiser step b_i ← b_i + u · sign(mean load − load_i), with the loads of all training forward passes since the step
    before, on all ranks (algorithm 1). The bias starts at 0 and gets no gradient; evaluation does not count, nor does a frozen router.

    The weights are raw, as in the paper. DeepSeek-V3 (arXiv 2412.19437) divides them by their sum (eq. 13: ``normalise``) and its code
    multiplies by 2.5 (``scale``). With K = 1 and ``normalise`` the weight is 1 whatever the scores: the router would learn nothing from the
    task, so methods may not have both. Embeddings start as N(0, 0.02²). The paper's models choose 6 of 64 narrow experts beside 2 shared
    ones.

    Losses: ``z``, which the paper does not have. DeepSeek-V3 keeps a small balance loss within each sequence, which is left out here.

    Public code: LibMoE moves the bias inside the forward pass, so under gradient accumulation several times a step.

    Args:
        d_model: D.
        experts: E.
        k: K.
        gate: g; the paper's main results are with sigmoid, softmax over all E is its ablation.
        rate: u.
        normalise: divide the kept weights by their sum.
        scale: factor of the weights.

    Raises:
        ValueError: ``k`` is not in 1 to E, or ``rate`` or ``scale`` is not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("z",)
    untaught: ClassVar[tuple[dict[str, Any], ...]] = ({"k": 1, "normalise": True},)

    bias: Tensor
    counts: Tensor

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        k: int = 2,
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        rate: float = 1e-3,
        normalise: bool = False,
        scale: float = 1.0,
    ):
        super().__init__(d_model, experts)
        if not 1 <= k <= experts:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of experts, {experts}")
        if rate <= 0:
            raise ValueError(f"rate {rate}: should be above 0, or the bias never moves")
        if scale <= 0:
            raise ValueError(f"scale {scale}: should be above 0, it multiplies every weight")
        self.k = k
        self.gate = gate
        self.rate = rate
        self.normalise = normalise
        self.scale = scale
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=0.02))
        self.register_buffer("bias", torch.zeros(experts))
        self.register_buffer("counts", torch.zeros(experts, dtype=torch.long))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to K experts."""
        logits_TE = inputs.tokens @ self.embedding.T
        log_s_TE = F.logsigmoid(logits_TE) if self.gate == "sigmoid" else logits_TE.log_softmax(-1)
        biased_TE = log_s_TE.detach().exp() + self.bias
        expert_TK = biased_TE.topk(self.k).indices
        log_s_TK = log_s_TE.gather(1, expert_TK)
        weight_TK = log_s_TK.softmax(-1) if self.normalise else log_s_TK.exp()  # the softmax of log s is s / Σ s, without 0 / 0
        losses = {"z": router_z(logits_TE)}
        routing = Routing.topk(expert_TK, weight_TK * self.scale, scores=biased_TE, losses=losses, probs=log_s_TE.softmax(-1))
        if self.training and self.embedding.requires_grad:
            self.counts += routing.load
        return routing

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Raise the bias of experts below the mean load, lower it above, and count anew."""
        load_E = summed_over_ranks(self.counts)
        below_E = (load_E.sum() - self.experts * load_E).sign()  # in whole numbers: what has exactly the mean load stays put
        self.bias += self.rate * below_E.to(self.bias.dtype)
        self.counts.zero_()

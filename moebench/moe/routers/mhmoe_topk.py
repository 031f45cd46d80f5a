"""The gate in the public code of MH-MoE: top-k of a softmax whose probabilities are the weights as they are, with a capacity.

T tokens, D model width, E experts, K chosen, R routing width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from moebench.moe.capacity import capacity, check_factors
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import Losses, load_balance, router_z
from moebench.moe.routers.noisy_topk import ranked_positions
from moebench.moe.routers.xmoe_torchscale import EPSILON, NORM


class MHMoETopK(Router):
    """p = softmax(s); the K most probable experts, with weights p, also where K > 1 (``TopkGate`` of yushuiwx/MH-MoE, commit c96915e).

    A gate like any other: it is the layer, `moebench.moe.multi_head.MultiHead`, that gives it sub-tokens. s_i = x · e_i, or, where ``dim``
    is given, W x · e_i / |e_i| as in `XMoETorchscale`, which this is at K = 1 and R = 16: the token is not normalised, and there is no
    temperature. The papers (arXiv 2404.15045, 2411.16205) have a softmax of x · e_i; the first says that its settings are X-MoE's, with
    R = 16 / h for h heads and a temperature, which is `XMoE`.

    An expert takes the first C = ⌊capacity_factor · K · ⌈T / E⌉⌋ of its queue, at least 1; what it does not take is dropped. All first
    choices queue before all second ones and so on, each in the order of the batch, so that with K > 1 a later token can take the place of
    an earlier one's second choice.

    W starts as ``nn.Linear`` does; so do the embeddings, or, with ``dim``, as orthogonal rows that are held at norm 1.5 after every step.
    The code rescales them in every forward pass; see `XMoETorchscale` for what that changes.

    Losses: ``balance``, of the first choices alone, before any is dropped, as in the code; ``z``, which the code does not have.

    Public code: capacity factor 1 in evaluation too, which makes a prediction depend on the rest of its batch and, with K > 1, on later
    tokens; padding takes places and enters the loss; R is 16.

    Args:
        d_model: D.
        experts: E.
        k: K.
        dim: R; none: s_i = x · e_i.
        capacity_factor: limit in training, as a multiple of an equal share; none: every choice is taken.
        eval_capacity_factor: the same in evaluation, 1 in the public code. The router is then not `causal`: C grows with the tokens after.

    Raises:
        ValueError: ``k`` is not in 1 to E, ``dim`` below 1, or a factor not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        k: int = 1,
        dim: int | None = None,
        capacity_factor: float | None = 1.0,
        eval_capacity_factor: float | None = None,
    ):
        super().__init__(d_model, experts)
        if not 1 <= k <= experts:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of experts, {experts}")
        if dim is not None and dim < 1:
            raise ValueError(f"dim {dim}: should be at least 1, or left out for no projection")
        check_factors(capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor)
        self.k = k
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.causal = eval_capacity_factor is None  # type: ignore[misc]  # of an instance here
        self.projection = None if dim is None else nn.Linear(d_model, dim, bias=False)
        if dim is None:
            self.embedding = nn.Parameter(torch.empty(experts, d_model).uniform_(-(d_model**-0.5), d_model**-0.5))
        else:
            self.embedding = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, dim)))
        self.after_optimizer_step()

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to K experts, less what a capacity refuses."""
        if self.projection is None:
            scores_TE = inputs.tokens @ self.embedding.T
        else:
            scores_TE = self.projection(inputs.tokens) @ F.normalize(self.embedding, dim=1, eps=EPSILON).T
        probs_TE = scores_TE.softmax(-1)
        expert_TK = scores_TE.topk(self.k).indices  # not of the probabilities: a saturated softmax has ties
        factor, kept_TK = self.capacity_factor if self.training else self.eval_capacity_factor, None
        if factor is not None:
            kept_TK = ranked_positions(expert_TK, None) < capacity(factor * self.k, len(scores_TE), self.experts)
        losses = Losses(balance=lambda: load_balance(probs_TE, expert_TK[:, 0]), z=lambda: router_z(scores_TE))
        return Routing.topk(expert_TK, probs_TE.gather(1, expert_TK), scores=scores_TE, losses=losses, kept=kept_TK)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Put the embeddings behind a projection back to their norm; frozen ones stay bit for bit."""
        if self.projection is not None and self.embedding.requires_grad:
            self.embedding.mul_(NORM / self.embedding.norm(dim=1, keepdim=True))

"""The X-MoE router (Chi et al., arXiv 2204.09179): experts are chosen by angle, on a low-dimensional hypersphere.

T tokens, D model width, E experts, R routing width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z

EPSILON = 1e-4
"""Least norm that is divided by and least temperature, as in the public code of MoEc; the paper has no such floor."""


class XMoE(Router):
    """s_i = cos(W h, e_i); the token goes to k = argmax_i s_i with weight g(s_k / τ) (section 3.1).

    τ is one learned scalar. W has no bias; it starts as N(0, 0.02²), which the paper does not state. The embeddings e_i start in random
    directions and are held at one norm by `after_optimizer_step`; the norm leaves every score as it is and sets how fast angles move.

    Losses: ``balance``, on softmax(s / τ0) for both gates, where τ0 is the constant that τ starts from; ``z``, on s / τ.

    Public code differs. TorchScale: the token is not normalised, no temperature, R = 16, embeddings reset to norm 1.5 in every
    forward pass. MoEc: sigmoid gate only, embeddings of orthogonal start that are not held. Tutel: softmax gate only, W has a bias,
    log(1/τ) is learned and 1/τ at most 100, embeddings not held.

    Args:
        d_model: D.
        experts: E.
        gate: g, softmax over all E scores or sigmoid of the best one.
        temperature: τ0; none: the paper's 0.3 for softmax, 0.07 for sigmoid.
        dim: R; none: the paper's E / 2, at least 1.
        reduce: project tokens to R dimensions. Off (ablation): the router works in all D dimensions.
        normalise: score by angle. Off (ablation): s_i = (W h) · e_i and nothing that only serves angles, so no temperature (τ = τ0 = 1)
            and free embeddings from N(0, 0.02²). Without ``reduce`` too this is exactly `Dot`, as in the paper's table 3, where the
            row without reduction, normalisation and freezing repeats the sigmoid SMoE row of table 1.
        norm: the held norm of the embeddings.

    Raises:
        ValueError: ``temperature`` without ``normalise``, ``dim`` without ``reduce``, or a value that is not above 0 (1e-4).
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        gate: Literal["softmax", "sigmoid"] = "softmax",
        temperature: float | None = None,
        dim: int | None = None,
        reduce: bool = True,
        normalise: bool = True,
        norm: float = 0.1,
    ):
        super().__init__(d_model, experts)
        if temperature is not None and not (normalise and temperature > EPSILON):
            raise ValueError(f"temperature {temperature}: should be above {EPSILON}, or left out without normalise")
        if dim is not None and not (reduce and dim > 0):
            raise ValueError(f"dim {dim}: should be at least 1, or left out without reduce")
        if norm <= EPSILON:
            raise ValueError(f"norm {norm}: should be above {EPSILON}")
        self.gate = gate
        self.reduce = reduce
        self.normalise = normalise
        self.norm = norm
        width = (dim or max(experts // 2, 1)) if reduce else d_model
        if reduce:
            self.projection = nn.Parameter(torch.empty(width, d_model).normal_(std=0.02))
        self.embedding = nn.Parameter(torch.empty(experts, width).normal_(std=0.02))
        self.tau0 = (temperature or {"softmax": 0.3, "sigmoid": 0.07}[gate]) if normalise else 1.0
        if normalise:
            self.temperature = nn.Parameter(torch.tensor(self.tau0))
        self.after_optimizer_step()

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to one expert."""
        z_TR = inputs.tokens @ self.projection.T if self.reduce else inputs.tokens
        e_ER: Tensor = self.embedding
        if self.normalise:
            z_TR, e_ER = F.normalize(z_TR, dim=1, eps=EPSILON), F.normalize(e_ER, dim=1, eps=EPSILON)
        scores_TE = z_TR @ e_ER.T
        expert_T = scores_TE.argmax(-1)  # not of the gates: a saturated sigmoid has ties
        scaled_TE = scores_TE / self.temperature.clamp(min=EPSILON) if self.normalise else scores_TE
        gates_TE = scaled_TE.softmax(-1) if self.gate == "softmax" else scaled_TE.sigmoid()
        weight_T = gates_TE.gather(1, expert_T[:, None])[:, 0]
        losses = {"balance": load_balance((scores_TE / self.tau0).softmax(-1), expert_T), "z": router_z(scaled_TE)}
        return Routing.top1(expert_T, weight_T, scores=scores_TE, losses=losses, probs=scaled_TE.softmax(-1))

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Put the embeddings back to their norm; frozen ones already have it and stay bit for bit."""
        if self.normalise and self.embedding.requires_grad:
            self.embedding.mul_(self.norm / self.embedding.norm(dim=1, keepdim=True))

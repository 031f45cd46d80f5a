"""The X-MoE gate of TorchScale: experts are chosen by angle as in X-MoE, but the score grows with the length of the projected token.

T tokens, D model width, E experts, R routing width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from moebench.moe.capacity import capacity, check_factors, queue_position
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z

EPSILON = 1e-4
"""Least norm that is divided by."""
NORM = 1.5
"""The norm at which embeddings are held."""


class XMoETorchscale(Router):
    """s_i = W x · e_i / |e_i|; the token goes to k = argmax_i s_i with weight softmax(s)_k (``Top1Gate`` of TorchScale with X-MoE on).

    X-MoE (arXiv 2204.09179) as its authors published it in TorchScale, not as they wrote it: `XMoE` is the paper's. The expert is the
    same for given W and e, as |W x| changes no argmax; the weight and the losses differ, for there is neither |W x| nor a temperature
    below the score. In training an expert takes its first C = ⌊capacity_factor · ⌈T / E⌉⌋ tokens, at least 1, in the order of the
    batch; the others get none.

    Embeddings start as orthogonal rows and are held at norm 1.5; W has no bias and starts as ``nn.Linear`` does. TorchScale rescales
    the embeddings at the start of every forward pass, here it is done at the start and after every optimiser step. Steps are the
    same, as between two forward passes only the optimiser changes a norm, and s does not depend on it. What differs: evaluation
    and frozen layers change no parameter here; embeddings loaded with other norms (a TorchScale checkpoint has them as the optimiser
    left them) get gradients 1.5 / |e_i| times TorchScale's until the first step.

    Losses: ``balance``, on softmax(s), of the choices before any is dropped; ``z``, which TorchScale does not have. TorchScale counts
    padding among the T tokens of C and of the loss, in evaluation has C = ⌈T / 4⌉ (about ``eval_capacity_factor`` E / 4), and makes
    scores finite that are not, where here the layer raises an error.

    Args:
        d_model: D.
        experts: E.
        dim: R, which TorchScale does not let one choose.
        capacity_factor: limit in training, as a multiple of an equal share; none: every token is taken.
        eval_capacity_factor: the same in evaluation. With a limit a token's expert depends on the whole batch.

    Raises:
        ValueError: ``dim`` below 1 or a factor that is not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        dim: int = 16,
        capacity_factor: float | None = 1.0,
        eval_capacity_factor: float | None = None,
    ):
        super().__init__(d_model, experts)
        if dim < 1:
            raise ValueError(f"dim {dim}: should be at least 1")
        check_factors(capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor)
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.projection = nn.Linear(d_model, dim, bias=False)
        self.embedding = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, dim)))
        self.after_optimizer_step()

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to one expert or, where that is full, to none."""
        scores_TE = self.projection(inputs.tokens) @ F.normalize(self.embedding, dim=1, eps=EPSILON).T
        probs_TE = scores_TE.softmax(-1)
        expert_T1 = scores_TE.argmax(-1, keepdim=True)
        losses = {"balance": load_balance(probs_TE, expert_T1[:, 0]), "z": router_z(scores_TE)}
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        kept_T1 = None
        if factor is not None:
            kept_T1 = queue_position(expert_T1[:, 0])[:, None] < capacity(factor, len(scores_TE), self.experts)
        return Routing.topk(expert_T1, probs_TE.gather(1, expert_T1), scores=scores_TE, losses=losses, kept=kept_T1)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Put the embeddings back to their norm; frozen ones stay bit for bit."""
        if self.embedding.requires_grad:
            self.embedding.mul_(NORM / self.embedding.norm(dim=1, keepdim=True))

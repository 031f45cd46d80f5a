"""GShard (Lepikhin et al., arXiv 2006.16668): every token goes to two experts, of limited capacity, the second one by chance.

T tokens, D model width, E experts, K = 2 choices (1 where there is one expert).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import nn

from moebench.moe.capacity import capacity, check_factors, queue_position
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z


class GShard(Router):
    """p = softmax(W x); first and second choice are the two most probable experts, with gates g1, g2 of p (algorithm 1).

    The second choice (``second``): ``random`` gives it up unless 2 g2 > u ~ U(0, 1), so that it is kept with probability
    min(1, 2 g2); ``all`` always keeps it; ``sampling`` draws it from the softmax over the other experts instead of taking the best
    (Gumbel maximum), and always keeps it. Chance plays in training only: in evaluation all three are ``all``.

    An expert takes the first C = ⌊capacity_factor · ⌈T / E⌉⌋ of its queue, at least 1. All first choices queue before all second ones,
    each in the order of the batch; second choices that chance gave up do not queue. Whatever an expert does not take is dropped.

    Weights (``normalise``): ``before`` dropping, g_k / (g1 + g2), so that a token that lost a choice has weights that sum below 1;
    ``after``, the same over the choices that were kept, so that a lone one has weight 1. Then the chance above looks at the g2 before
    the division. Without drops both are the same.

    Losses: ``balance``, of the first choices, before any is dropped (the paper's auxiliary loss is 1 / E² of it); ``z``, which the
    paper does not have. W starts as N(0, 0.02²), which the paper does not state.

    Public code: Mesh TensorFlow, where this comes from, keeps a second choice with probability min(1, 5 g2). Lingvo has both kinds of
    ``normalise``, and found ``before`` the better one for ``random``. TorchScale defaults to ``sampling`` and ``after``, has
    C = ⌈T / 4⌉ in evaluation, and counts padding among the T tokens of C and of the loss. All of them draw in evaluation too.

    Args:
        d_model: D.
        experts: E.
        second: which second choices are made.
        normalise: when the gates are divided by their sum.
        batch_priority: tokens queue by falling p of their first choice (V-MoE, arXiv 2106.05974), not in the order of the batch.
        capacity_factor: limit in training, as a multiple of T / E; 2 is an equal share of two choices a token. None: no limit.
        eval_capacity_factor: the same in evaluation. With a limit a token's experts depend on the whole batch.

    Raises:
        ValueError: an unknown choice, or a factor that is not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        second: Literal["random", "sampling", "all"] = "random",
        normalise: Literal["before", "after"] = "before",
        batch_priority: bool = False,
        capacity_factor: float | None = 2.0,
        eval_capacity_factor: float | None = None,
    ):
        super().__init__(d_model, experts)
        if second not in ("random", "sampling", "all"):
            raise ValueError(f"second {second!r}: should be random, sampling or all")
        if normalise not in ("before", "after"):
            raise ValueError(f"normalise {normalise!r}: should be before or after")
        check_factors(capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor)
        self.second = second
        self.normalise = normalise
        self.batch_priority = batch_priority
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=0.02))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to two experts at most."""
        logits_TE = inputs.tokens @ self.embedding.T
        probs_TE = logits_TE.softmax(-1)
        first_T1 = logits_TE.argmax(-1, keepdim=True)
        others_TE = logits_TE.detach()
        if self.training and self.second == "sampling":
            others_TE = others_TE - torch.empty_like(others_TE).exponential_().log()  # -log of an exponential is Gumbel
        second_T1 = others_TE.scatter(1, first_T1, -torch.inf).argmax(-1, keepdim=True)
        expert_TK = torch.cat([first_T1, second_T1], 1)[:, : self.experts]
        gate_TK = probs_TE.gather(1, expert_TK)
        if self.normalise == "before":
            gate_TK = gate_TK / gate_TK.sum(1, keepdim=True)
        wanted_TK = torch.ones_like(expert_TK, dtype=torch.bool)
        if self.training and self.second == "random":
            wanted_TK[:, 1:] = 2 * gate_TK[:, 1:] > torch.rand_like(gate_TK[:, 1:])
        kept_TK = wanted_TK
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is not None:
            order_T = (
                (-probs_TE.amax(-1)).argsort(stable=True) if self.batch_priority else torch.arange(len(probs_TE), device=probs_TE.device)
            )
            queue_KT = expert_TK.masked_fill(~wanted_TK, self.experts)[order_T].T  # what is not wanted queues nowhere
            taken_KT = (queue_position(queue_KT.flatten()) < capacity(factor, len(expert_TK), self.experts)).view_as(queue_KT)
            kept_TK = wanted_TK & taken_KT.T[order_T.argsort()]
        if self.normalise == "after":
            gate_TK = gate_TK * kept_TK
            gate_TK = gate_TK / gate_TK.sum(1, keepdim=True).clamp(min=torch.finfo(gate_TK.dtype).eps)
        losses = {"balance": load_balance(probs_TE, first_T1[:, 0]), "z": router_z(logits_TE)}
        routing = Routing.topk(expert_TK, gate_TK, scores=logits_TE, losses=losses, kept=kept_TK)
        return replace(routing, dropped=int((wanted_TK & ~kept_TK).sum()))  # what chance gave up was not dropped

"""Dynamic expert allocation (DA-MoE, arXiv 2409.06669): attention says how important a token is, importance how many experts it gets.

T tokens, D model width, E experts, B sequences, H heads, S positions.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z

EPSILON = 1e-6
"""Taken off an importance, so that rounding in the attention (1/E that came out as 1/E + 1e-8) does not buy an expert."""


class DAMoE(Router):
    """I_t = mean over heads of the largest attention weight of token t, K_t = ⌈I_t · E⌉; the K_t experts of highest p = softmax(h · e_i).

    K is at least 1, has no gradient and no budget: uniform attention over S ≥ E positions gives top-1, attention to one position gives
    all E. It falls with the length of the sequence, and under causal attention the first token always gets all E.

    Only the abstract of the paper and second-hand accounts of its formulas could be had. From these: I as a mean over heads of a
    maximum, K, the linear router, top-K_t. Inferred: that the maximum is over the keys of the token's own row (the formula's index order
    says so; the prose, which speaks of influence on other tokens, suggests the column: ``importance="key"``); that the attention is that of
    the block before the layer; weights p_i as they are and a balance loss, as in the paper's baseline Switch; no capacity; no bias.
    There is no public code and no published number to compare with.

    Embeddings start as N(0, 0.02²).

    Losses: ``balance``, the shares taken over all assignments; ``z``.

    Args:
        d_model: D.
        experts: E.
        importance: ``query``, the most that the token attends to one position; ``key``, the most that one token attends to it;
            ``entropy`` (ablation, not in the paper), the entropy of its row over that of a uniform one: many experts where attention is
            undecided, not where it is sharp.
        k_max: most experts a token gets; none: E.

    Raises:
        ValueError: ``k_max`` is not in 1 to E.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")
    causal: ClassVar[bool] = False  # key: later tokens attend to this one; entropy: the length counts; and attention is mostly not causal
    needs_attention: ClassVar[bool] = True

    def __init__(self, d_model: int, experts: int, *, importance: Literal["query", "key", "entropy"] = "query", k_max: int | None = None):
        super().__init__(d_model, experts)
        if k_max is not None and not 1 <= k_max <= experts:
            raise ValueError(f"k_max {k_max}: should be at least 1 and at most the number of experts, {experts}")
        self.importance = importance
        self.k_max = k_max or experts
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=0.02))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to as many experts as it is important."""
        logits_TE = inputs.tokens @ self.embedding.T
        probs_TE = logits_TE.softmax(-1)
        count_T = ((self._importance(inputs) - EPSILON) * self.experts).ceil().clamp(1, self.k_max)
        rank_TE = logits_TE.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        active_TE = rank_TE < count_T[:, None]
        losses = {"balance": load_balance(probs_TE, active_TE.nonzero()[:, 1]), "z": router_z(logits_TE)}
        return Routing.from_mask(active_TE, probs_TE, scores=logits_TE, losses=losses)

    @torch.no_grad()
    def _importance(self, inputs: RouterInputs) -> Tensor:
        attention_THS = inputs.require("attention")
        attention_THS = attention_THS.to(torch.promote_types(attention_THS.dtype, torch.float32))
        if self.importance == "query":
            return attention_THS.amax(-1).mean(-1)
        sequence_T = inputs.require("sequence_ids")
        length_B = sequence_T.bincount() // inputs.heads
        if self.importance == "entropy":
            return torch.special.entr(attention_THS).sum(-1).mean(-1) / length_B[sequence_T].clamp(min=2).log()
        received_BHS = attention_THS.new_zeros(len(length_B), *attention_THS.shape[1:])
        received_BHS.scatter_reduce_(0, sequence_T[:, None, None].expand_as(attention_THS), attention_THS, "amax")
        return received_BHS[sequence_T, :, inputs.require("positions")].mean(-1)

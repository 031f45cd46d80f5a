"""Random routing, THOR's stochastic experts (Zuo et al., arXiv 2110.04260): no router at all, the control of learned ones.

T tokens, E experts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from moebench.moe.contract import Router, RouterInputs, Routing

MASK = 2**32 - 1


def mix(x: Tensor) -> Tensor:
    """Hash integers to 32 bits that look random; products stay below 2⁶³, so every device agrees."""
    x = x & MASK
    for _ in range(2):
        x = ((x >> 16 ^ x) * 0x45D9F3B) & MASK
    return x >> 16 ^ x


class Random(Router):
    """An expert drawn uniformly, with weight 1. There are no parameters; scores and probabilities are 1 / E.

    Training draws from torch's global generator, per forward pass and layer. The paper's text draws an expert for every input; its code
    draws one for the whole batch, ``granularity="batch"``, the default here.

    Evaluation, ``draw``: a fixed hash takes the place of the draw, so that a prediction repeats exactly and depends on no batch mate. It
    hashes token id and position (``token``), or all token ids of the sequence in their order (``sequence``; ``batch`` too, as a batch is
    not the model's to see: the paper's script draws per sentence). The hash is salted with a buffer that is drawn when the router is
    built, so layers draw independently of each other. ``mean``: every token goes to all experts with weight 1 / E, at E times the cost.

    Public code: evaluation draws anew in every pass and runs every expert on every token. The loss of THOR, which compares two passes of
    one batch, belongs to whoever trains.

    Losses: none.

    Args:
        d_model: width of the tokens, which are not looked at.
        experts: E.
        granularity: what shares a draw.
        evaluation: what takes the draw's place in evaluation.
    """

    causal: ClassVar[bool] = False  # a draw per sequence hashes all of it; per token, and as the mean, routing would be causal

    salt: Tensor

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        granularity: Literal["batch", "sequence", "token"] = "batch",
        evaluation: Literal["draw", "mean"] = "draw",
    ):
        super().__init__(d_model, experts)
        self.granularity = granularity
        self.evaluation = evaluation
        self.register_buffer("salt", torch.randint(2**31, ()))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Give every token an expert, or all of them."""
        tokens = inputs.tokens.shape[0]
        uniform_TE = inputs.tokens.new_full((tokens, self.experts), 1 / self.experts)
        if not self.training and self.evaluation == "mean":
            all_TE = torch.arange(self.experts, device=uniform_TE.device).expand(tokens, -1)
            return Routing.topk(all_TE, uniform_TE, scores=uniform_TE, losses={}, probs=uniform_TE)
        expert_T = self._drawn(inputs) if self.training else self._hashed(inputs)
        return Routing.top1(expert_T, inputs.tokens.new_ones(tokens), scores=uniform_TE, losses={}, probs=uniform_TE)

    def _drawn(self, inputs: RouterInputs) -> Tensor:
        draw_T = torch.randint(self.experts, inputs.tokens.shape[:1], device=inputs.tokens.device)  # more than needed: one shape for all
        if self.granularity == "batch":
            return draw_T[:1].expand_as(draw_T)
        return draw_T if self.granularity == "token" else draw_T[self._sequence(inputs)]

    def _hashed(self, inputs: RouterInputs) -> Tensor:
        hash_T = mix(mix(inputs.require("token_ids").long() + mix(self.salt)) + inputs.require("positions"))
        if inputs.heads > 1:  # sub-tokens of a token draw apart, as in training
            hash_T = mix(hash_T + torch.arange(len(hash_T), device=hash_T.device) % inputs.heads)
        if self.granularity != "token":
            sequence_T = self._sequence(inputs)
            hash_T = mix(torch.zeros_like(hash_T).index_add(0, sequence_T, hash_T))[sequence_T]
        return hash_T % self.experts

    @staticmethod
    def _sequence(inputs: RouterInputs) -> Tensor:
        """(T,) which of the sequences that have tokens a token is from."""
        sequence_T: Tensor = inputs.require("sequence_ids").unique_consecutive(return_inverse=True)[1]
        return sequence_T

"""Soft MoE (Puigcerver et al., arXiv 2308.00951): experts see mixtures of a sequence's tokens, and nothing is chosen.

B sequences with real tokens, S positions, T real tokens, D model width, E experts, P slots an expert, N = E·P slots.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from moebench.moe.contract import RouterInputs
from moebench.moe.layer import Aux, SparseLayer

EPSILON = 1e-6
"""Added to squared lengths before the root, as in the public code."""


def unit(x: Tensor) -> Tensor:
    """Divide by the length of the last axis; 0 stays 0."""
    return x * (x.square().sum(-1, keepdim=True) + EPSILON).rsqrt()


class SoftMoE(SparseLayer):
    """s_tn = a · unit(x_t) · unit(μ_n), for each sequence on its own, padding left out.

    - Slot n holds x̃_n = Σ_t softmax over the sequence's tokens (s_tn) · x_t, of the tokens as they are, not of unit length.
    - The expert of slot n makes ỹ_n = f(x̃_n).
    - y_t = Σ_n softmax over all slots (s_tn) · ỹ_n.

    a is learned and starts at 1, μ as N(0, 1/(E·D)): the public code's start, though not truncated at 2 σ. Scores and mixtures are fp32
    at least, outside autocast; the public code mixes in bf16. Every expert runs on P rows a sequence, however short it is: the cost is
    set by P. The public code may also set P by the length of its sequences, which are all alike: c·S / E, rounded.

    A token's output depends on the whole sequence, later tokens included, and on no other sequence. There are no losses. ``Aux.load``
    is B·P for every expert; ``Aux.probs`` is what an expert's slots weigh in a token's output.

    Args:
        d_model: D.
        experts: a module of E experts.
        name: what errors call this layer.
        slots: P.

    Raises:
        ValueError: ``slots`` is below 1.
    """

    causal = False

    def __init__(self, d_model: int, experts: nn.Module, name: str = "soft_moe", *, slots: int = 1):
        super().__init__(name)
        if slots < 1:
            raise ValueError(f"slots {slots}: should be at least 1, or no expert sees anything")
        self.experts = experts
        count = cast(int, experts.count)
        self.embedding = nn.Parameter(torch.empty(count, slots, d_model).normal_(std=(count * d_model) ** -0.5))
        self.scale = nn.Parameter(torch.ones(()))

    def overhead(self, tokens: int, sequences: int) -> int:
        """Scores, tokens mixed into slots, slots mixed into tokens: one product of a token with every slot each."""
        return 6 * tokens * self.embedding.numel()

    def change(self, tokens_TD: Tensor, inputs: RouterInputs) -> tuple[Tensor, Aux]:
        """Mix tokens into slots, run the experts on all slots, mix slots into tokens."""
        length_B = torch.unique_consecutive(inputs.require("sequence_ids"), return_counts=True)[1]
        real_BS = torch.arange(max(length_B.tolist(), default=0), device=length_B.device) < length_B[:, None]

        def padded(rows_T: Tensor, fill: float) -> Tensor:
            return rows_T.new_full((*real_BS.shape, rows_T.shape[1]), fill).index_put((real_BS,), rows_T)

        sequences, (experts, slots, _) = len(length_B), self.embedding.shape
        with torch.autocast(tokens_TD.device.type, enabled=False):
            scores_TN = self.scale * unit(inputs.tokens) @ unit(self.embedding).flatten(0, 1).T
            self.check_finite(scores=scores_TN)
            dispatch_BSN, combine_TN = padded(scores_TN, -torch.inf).softmax(1), scores_TN.softmax(1)
            slots_BND = dispatch_BSN.mT @ padded(inputs.tokens, 0)
        rows_AD = slots_BND.unflatten(1, (experts, slots)).transpose(0, 1).flatten(0, 2)  # sorted by expert
        load_E = torch.full((experts,), sequences * slots, device=tokens_TD.device)
        out_AD = self.experts(rows_AD.to(tokens_TD.dtype), load_E).to(combine_TN.dtype)
        with torch.autocast(tokens_TD.device.type, enabled=False):
            out_BND = out_AD.unflatten(0, (experts, sequences, slots)).transpose(0, 1).flatten(1, 2)
            change_TD = (padded(combine_TN, 0) @ out_BND)[real_BS]
        probs_TE = combine_TN.detach().unflatten(1, (experts, slots)).sum(-1)
        return change_TD, Aux({}, load_E, probs_TE)

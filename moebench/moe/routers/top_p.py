"""Dynamic routing: a token takes as many experts as it needs to be sure.

T tokens, D model width, E experts.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z
from moebench.moe.selection import smallest_mass


class TopP(Router):
    """p = softmax(W h); a token takes its likeliest experts until their mass exceeds the threshold (Huang et al., arXiv 2403.07652).

    In falling order of p, an expert is taken if the mass before it is at most the threshold: the one that crosses is taken too, so
    there is always one. The weight is p itself, not divided by the mass taken. Ties go to the lowest index. There is no capacity.

    W has no bias and starts as N(0, 0.02²); the paper does not state its start.

    Losses: ``balance``, where f is an expert's share of the assignments, so that it is 1 when even however many experts a token takes (a
    share of the tokens would make it, and its gradient, larger by the mean number of experts); ``entropy``, the paper's dynamic loss:
    mean over tokens of −Σ p ln p, without which an even p that takes everything costs nothing; ``z``, not of the paper.

    Public code: inference only, with the same selection and weights; losses and their coefficients are not in it.

    Args:
        d_model: D.
        experts: E.
        threshold: the mass to exceed; 1 takes all experts.

    Raises:
        ValueError: ``threshold`` is not above 0 and at most 1.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "entropy", "z")

    def __init__(self, d_model: int, experts: int, *, threshold: float = 0.4):
        super().__init__(d_model, experts)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold}: should be above 0 and at most 1, as a mass of probability")
        self.threshold = threshold
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=0.02))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to at least one expert."""
        logits_TE = inputs.tokens @ self.embedding.T
        probs_TE = logits_TE.softmax(-1)
        active_TE = smallest_mass(probs_TE, self.threshold)
        losses = {
            "balance": load_balance(probs_TE, active_TE.nonzero()[:, 1]),
            "entropy": -(probs_TE * logits_TE.log_softmax(-1)).sum() / max(len(probs_TE), 1),
            "z": router_z(logits_TE),
        }
        return Routing.from_mask(active_TE, probs_TE, scores=logits_TE, losses=losses)

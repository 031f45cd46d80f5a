"""Expert-choice routing (Zhou et al., arXiv 2202.09368): experts pick tokens, so that their loads are equal by construction.

T tokens, D model width, E experts, S tokens of a sequence.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import router_z
from moebench.moe.selection import expert_choice


class ExpertChoice(Router):
    """p = softmax over experts of W h; each expert takes the C tokens of a group whose p for it is largest, with weight p.

    C = ⌈c·S / E⌉ for a group of S tokens, rounded up to a multiple of m, at most S; of equal p the earlier token is taken. A token may get
    no expert, or all of them. Nothing is dropped and there is nothing to balance. Whether a token is taken depends on later tokens of its
    group: not for decoders.

    The group is a sequence, so that a prediction never depends on batch mates, and training is like evaluation. The paper's S counts all
    tokens of the batch; that is ``group`` batch, in training only.

    Losses: ``z``; the paper has none.

    Public code differs. Flaxformer: c·S / E is rounded to the nearest and at least 4, groups span sequences in evaluation too, the
    router has a bias. V-MoE: m is 4 by default, groups span images, logits get noise N(0, 1/E²) in training.
    The weights start as N(0, 0.02²), as Flaxformer's.

    Args:
        d_model: D.
        experts: E.
        capacity_factor: c, the mean number of experts a token.
        group: what the experts choose from in training; in evaluation it is always a sequence.
        capacity_multiple_of: m; the paper does not round.

    Raises:
        ValueError: ``capacity_factor`` is not above 0, or ``capacity_multiple_of`` below 1.
    """

    losses: ClassVar[tuple[str, ...]] = ("z",)
    causal: ClassVar[bool] = False

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        capacity_factor: float = 2.0,
        group: Literal["sequence", "batch"] = "sequence",
        capacity_multiple_of: int = 1,
    ):
        super().__init__(d_model, experts)
        if capacity_factor <= 0:
            raise ValueError(f"capacity_factor {capacity_factor}: should be above 0, or no expert takes a token")
        if capacity_multiple_of < 1:
            raise ValueError(f"capacity_multiple_of {capacity_multiple_of}: should be at least 1, which rounds nothing")
        self.capacity_factor = capacity_factor
        self.capacity_multiple_of = capacity_multiple_of
        self.group = group
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=0.02))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Let every expert take its share of every group."""
        logits_TE = inputs.tokens @ self.embedding.T
        probs_TE = logits_TE.softmax(-1)
        group_T = inputs.require("sequence_ids")
        if self.training and self.group == "batch":
            group_T = torch.zeros_like(group_T)
        active_TE = expert_choice(probs_TE, group_T, self.capacity_factor, self.capacity_multiple_of)
        return Routing.from_mask(active_TE, probs_TE, scores=logits_TE, losses={"z": router_z(logits_TE)})

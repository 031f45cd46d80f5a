"""DynMoE: experts that accept or refuse a token each for itself, and come and go during training.

T tokens, D model width, E expert slots.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing, summed_over_ranks


class DynMoE(Router):
    """Top-any gating, s_e = σ(cos(h, w_e)): a token takes all experts with s_e > σ(b_e) (Guo et al., arXiv 2405.14297).

    Each of a token's k experts has weight 1/k. Backward, the decision a = sign(relu(s − σ(b))) counts as relu(s − σ(b)) and k as a
    constant: only pairs that are on pass a gradient. A token that no expert accepts gets nothing in training; in evaluation it goes to
    argmax s alone, with weight 1. There is no capacity. w starts as orthogonal rows, b as 0.

    The adaptive process. Of the E slots those of ``on`` take part, at first the first ``initial``. Steps run in thirds of
    ``interval`` optimiser steps: nothing, record, nothing. At the end of a recording the slots that no token took are switched off;
    then, if some token had no expert, the first free slot is switched on, with w the direction of those tokens' sum and b = 0; its
    expert is as the slot's last use left it, and so is what the optimiser knows of it. The records of a step are those of its
    training forwards, summed over ranks after it. They stand still where the router is frozen.

    Losses, whose sum times 0.01 is what public code adds: ``diverse``, ‖cos(w_i, w_j)‖_F over pairs i ≠ j of slots that are on;
    ``simple``, mean ‖w_e‖ over all slots; ``balance``, E Σ_e mean(a_e / k) · mean(a_e), means over the tokens with experts: the mean
    number of experts when even, not 1; ``efficiency``, mean of a over tokens and slots. In ``balance`` a / k has a gradient, through k too,
    and the second mean has none.

    Public code: this is the form for DeepSpeed, which its readme recommends; the one for Tutel learns a temperature and has the first
    two losses only. It counts forwards where this counts optimiser steps, records one forward more, and keeps the diagonal in
    ``diverse``, which is 0 but for rounding. At the orthogonal start the other cosines are too, and so is the norm's gradient, in both.

    The distribution over experts is s / Σ s over the slots that are on.

    Args:
        d_model: D.
        experts: E, the most experts that there can be.
        initial: slots that are on at first; none: all.
        interval: optimiser steps of a third; 300 forwards in public code. A shorter training than two of them never adapts.

    Raises:
        ValueError: ``initial`` is not within 1 and E, or ``interval`` is below 1.
    """

    losses: ClassVar[tuple[str, ...]] = ("diverse", "simple", "balance", "efficiency")
    on: Tensor
    steps: Tensor
    hits: Tensor
    missed: Tensor
    window_hits: Tensor
    window_missed: Tensor

    def __init__(self, d_model: int, experts: int, *, initial: int | None = None, interval: int = 300):
        super().__init__(d_model, experts)
        if initial is not None and not 1 <= initial <= experts:
            raise ValueError(f"initial {initial}: should be at least 1 and at most the number of slots, {experts}")
        if interval < 1:
            raise ValueError(f"interval {interval}: should be at least 1 step")
        self.interval = interval
        self.embedding = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, d_model)))
        self.threshold = nn.Parameter(torch.zeros(experts))
        self.register_buffer("on", torch.arange(experts) < (experts if initial is None else initial))
        self.register_buffer("steps", torch.tensor(0))
        # a step's records are each rank's own, the window's are the same on all: a checkpoint of one rank between steps is complete
        self.register_buffer("hits", torch.zeros(experts, dtype=torch.int64))
        self.register_buffer("missed", torch.zeros(d_model))
        self.register_buffer("window_hits", torch.zeros(experts, dtype=torch.int64))
        self.register_buffer("window_missed", torch.zeros(d_model))

    @property
    def recording(self) -> bool:
        """Whether the coming step is recorded."""
        return int(self.steps) // self.interval % 3 == 1

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to the experts that accept it."""
        direction_ED = F.normalize(self.embedding, dim=1)
        scores_TE = (F.normalize(inputs.tokens, dim=1) @ direction_ED.T).sigmoid() * self.on
        excess_TE = (scores_TE - self.threshold.sigmoid()).relu()
        a_TE = excess_TE - excess_TE.detach() + excess_TE.detach().sign()
        if not self.training:
            best_TE = F.one_hot(scores_TE.argmax(1), self.experts).to(a_TE.dtype)
            a_TE = torch.where((excess_TE > 0).any(1, keepdim=True), a_TE, best_TE)
        active_TE = a_TE > 0
        k_T = active_TE.sum(1)
        if self.training and self.embedding.requires_grad and self.recording:
            self.hits += active_TE.sum(0)
            self.missed += inputs.tokens[k_T == 0].detach().sum(0)

        routed_RE = a_TE[k_T > 0]
        routed = max(len(routed_RE), 1)
        share_E = (routed_RE / routed_RE.sum(1, keepdim=True)).sum(0) / routed
        pairs_EE = self.on[:, None] & self.on & ~torch.eye(self.experts, dtype=torch.bool, device=self.on.device)
        losses = {
            "diverse": (direction_ED @ direction_ED.T * pairs_EE).norm(),
            "simple": self.embedding.norm(dim=1).mean(),
            "balance": self.experts * (share_E * active_TE.sum(0) / routed).sum(),
            "efficiency": a_TE.sum() / max(a_TE.numel(), 1),
        }
        probs_TE = scores_TE / scores_TE.sum(1, keepdim=True)
        return Routing.from_mask(active_TE, a_TE / k_T.clamp(min=1)[:, None], scores=scores_TE, losses=losses, probs=probs_TE)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Count the step, put its records to the window's and, at the window's end, let experts come and go."""
        if not self.embedding.requires_grad:
            return
        recorded = self.recording
        if recorded:
            self.window_hits += summed_over_ranks(self.hits)
            self.window_missed += summed_over_ranks(self.missed)
            self.hits.zero_()
            self.missed.zero_()
        self.steps += 1
        if recorded and not self.recording:
            self.adapt()

    @torch.no_grad()
    def adapt(self) -> None:
        """Switch unused slots off and one for the tokens without experts on; a window without tokens changes nothing."""
        missed = bool(self.window_missed.any())
        if missed or self.window_hits.any():
            self.on &= self.window_hits > 0
        free_N = (~self.on).nonzero()[:, 0]
        if missed and len(free_N) > 0:
            self.on[free_N[0]] = True
            self.embedding[free_N[0]] = F.normalize(self.window_missed, dim=0)
            self.threshold[free_N[0]] = 0
        self.window_hits.zero_()
        self.window_missed.zero_()

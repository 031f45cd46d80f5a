"""The router of E³ (Allingham et al., arXiv 2110.03360): each member of an ensemble routes like V-MoE, over its own experts.

T tokens, D model width, E experts, M members, n experts of a member, K chosen experts a token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.capacity import check_factors
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z, squared_variation
from moebench.moe.routers.noisy_topk import ranked_positions, slots, wins


class Partitioned(Router):
    """p = softmax over the experts of the token's member of (W h + ε), ε ~ N(0, 1/n²) in training; else as `NoisyTopK`.

    Member m owns the n = E/M experts from m·E/M on. The batch holds every input once per member, copies side by side: sequence s belongs
    to member s mod M, so that in evaluation too a sequence's member, though not its routing given that, follows from its place in the
    batch. With M = 1 this is V-MoE.

    The weights are one (E, D) matrix, whose blocks are the members' own: a V-MoE router's weights load as they are. All members share
    the formula of the capacity, C = ⌈T·K·c / E⌉ rounded up to a multiple of 4 with the copies counted in T, the same slack as one member
    alone has. The noise deviates by 1/n = M/E, not by 1/E.

    Ablations; the paper's own definitions of both could not be checked, these are ours:

    - ``overlap`` = o: n = E/M + o, member m's experts go on into the next member's (the last one's into the first's). An expert has one
      row of W whoever uses it, so that o = E − E/M is tiling without a partition.
    - ``tiled`` false, a partition without tiling: the batch holds every input once; a token takes K experts of every member, and their
      outputs are averaged over the members inside the layer.

    Losses, unscaled: those of `NoisyTopK`; ``importance`` and ``load`` are means over the members of (σ / μ)² over their n experts, and so
    is ``balance`` where the members have equally many tokens and no expert in common.

    Args:
        d_model: D.
        experts: E.
        members: M; 2 in the released model.
        k: K, 1 in the released model.
        overlap: o.
        tiled: the batch holds a copy for each member.
        noise_std: ε's deviation in units of 1/n.
        capacity_factor: c in training: 1.5 in the public fine-tuning configuration; none: nothing is dropped.
        eval_capacity_factor: c in evaluation; see `NoisyTopK`.
        batch_priority: Batch Prioritized Routing, off in the public configuration.

    Raises:
        ValueError: ``members`` does not divide E, ``overlap`` outside 0 to E − E/M, ``k`` outside 1 to n, a negative ``noise_std`` or a
            capacity factor that is not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("importance", "load", "balance", "z")
    own_ME: Tensor

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        members: int = 1,
        k: int = 1,
        overlap: int = 0,
        tiled: bool = True,
        noise_std: float = 1.0,
        capacity_factor: float | None = 1.5,
        eval_capacity_factor: float | None = None,
        batch_priority: bool = False,
    ):
        super().__init__(d_model, experts)
        if members < 1 or experts % members:
            raise ValueError(f"members {members}: should divide the number of experts, {experts}")
        share = experts // members
        if not 0 <= overlap <= experts - share:
            raise ValueError(f"overlap {overlap}: should be at least 0 and at most {experts - share}, the experts of the other members")
        if not 1 <= k <= share + overlap:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of a member's experts, {share + overlap}")
        if noise_std < 0:
            raise ValueError(f"noise_std {noise_std}: should be at least 0, it is a deviation")
        check_factors(capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor)
        self.members = members
        self.k = k
        self.tiled = tiled
        self.sigma = noise_std / (share + overlap)
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.batch_priority = batch_priority
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=d_model**-0.5))
        own_ME = (torch.arange(experts) - share * torch.arange(members)[:, None]) % experts < share + overlap
        self.register_buffer("own_ME", own_ME, persistent=False)  # follows from the options

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to K experts of its member, or of every member, less what a capacity refuses."""
        logits_TE = inputs.tokens @ self.embedding.T
        if self.tiled:
            member_T = inputs.require("sequence_ids") % self.members
        else:  # from here on T counts a token once per member
            member_T = torch.arange(self.members, device=logits_TE.device).repeat(len(logits_TE))
            logits_TE = logits_TE.repeat_interleave(self.members, 0)
        # the least number, not −∞: scores have to be finite, and the softmax of either is exactly 0
        logits_TE = logits_TE.masked_fill(~self.own_ME[member_T], torch.finfo(logits_TE.dtype).min)
        noisy_TE = logits_TE + self.sigma * torch.randn_like(logits_TE) if self.training else logits_TE
        probs_TE = noisy_TE.softmax(-1)
        expert_TK = noisy_TE.topk(self.k).indices
        weight_TK = probs_TE.gather(1, expert_TK)
        factor, kept_TK = self.capacity_factor if self.training else self.eval_capacity_factor, None
        if factor is not None:
            capacity = slots(len(logits_TE), self.k, self.experts, factor)
            kept_TK = ranked_positions(expert_TK, weight_TK[:, 0] if self.batch_priority else None) < capacity
        losses = {
            "importance": self._unevenness(logits_TE.softmax(-1), member_T),
            "load": self._unevenness(wins(logits_TE, noisy_TE, self.k, self.sigma), member_T),
            "balance": load_balance(probs_TE, expert_TK[:, 0]),
            "z": router_z(logits_TE),
        }
        routing = Routing.topk(expert_TK, weight_TK, scores=noisy_TE, losses=losses, probs=probs_TE, kept=kept_TK)
        return routing if self.tiled else self._averaged(routing)

    def _unevenness(self, values_TE: Tensor, member_T: Tensor) -> Tensor:
        """The mean over members of (σ / μ)² over its experts of the sums over its tokens."""
        sums_ME = F.one_hot(member_T, self.members).T.to(values_TE.dtype) @ values_TE
        return squared_variation(sums_ME[self.own_ME].view(self.members, -1)).mean()

    def _averaged(self, routing: Routing) -> Routing:
        """From a routing of T·M copies to one of the T tokens themselves."""
        M = self.members
        scores_TE = routing.scores.unflatten(0, (-1, M)).amax(1)
        probs_TE = routing.scores.softmax(-1).unflatten(0, (-1, M)).mean(1)
        return replace(routing, token=routing.token // M, weight=routing.weight / M, scores=scores_TE, probs=probs_TE)

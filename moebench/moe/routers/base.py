"""BASE layers (Lewis et al., arXiv 2103.16716): in training a linear assignment gives every expert the same number of tokens.

T tokens, D model width, E experts, Q = ⌊T / E⌋ tokens an expert gets at least.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import router_z


class Base(Router):
    """s_te = h_t · e_e. Training: the assignment a that maximises Σ_t s_{t a_t} under equal loads; evaluation: a_t = argmax_e s_te.

    The weight is σ(s_ta) in both. A token's expert depends on the whole batch in training, on the token alone in evaluation. Where E does
    not divide T, T mod E experts, whichever is best, get one token more than the others; the paper needs T to be divisible.

    Each process balances its own tokens. The paper first shuffles the tokens over the workers, which matters only where a worker's batch
    is of one kind. Embeddings start orthogonal with gain 0.1, as in the public code.

    Public code (fairseq): an auction alone. Ours alone loses under 1 % of the best gain over a random assignment (256 tokens or more; up
    to 8 % where scores tie), so it is improved to the best. 4096 tokens on 32 experts take about 0.1 s on one core.

    Losses: ``z``, which the paper does not have; the assignment balances.
    """

    losses: ClassVar[tuple[str, ...]] = ("z",)

    def __init__(self, d_model: int, experts: int):
        super().__init__(d_model, experts)
        self.embedding = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, d_model), gain=0.1))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to one expert."""
        scores_TE = inputs.tokens @ self.embedding.T
        expert_T = balanced_assignment(scores_TE.detach()) if self.training else scores_TE.argmax(-1)
        weight_T = scores_TE.gather(1, expert_T[:, None])[:, 0].sigmoid()
        return Routing.top1(expert_T, weight_T, scores=scores_TE, losses={"z": router_z(scores_TE)})


def balanced_assignment(scores_TE: Tensor) -> Tensor:
    """The experts of T tokens that maximise the sum of scores where each expert gets Q or Q + 1 tokens; (T,) on the scores' device.

    An auction comes near it, then cycles of experts that pass one token on to the next are found and carried out until none raises the
    sum; that is the optimum of a transport problem. Deterministic: in fp64 on the CPU. Scores that are not finite count as 0.
    """
    s_TE = scores_TE.detach().to("cpu", torch.float64).nan_to_num(0.0, 0.0, 0.0)
    tokens, experts = s_TE.shape
    least = tokens // experts
    if tokens == 0 or experts == 1:
        return torch.zeros(tokens, dtype=torch.long, device=scores_TE.device)
    expert_T = _auction(s_TE, least) if least else torch.full((tokens,), -1)
    won_T = expert_T >= 0
    free_E = least - torch.bincount(expert_T[won_T], minlength=experts)
    slots = torch.cat([torch.arange(experts).repeat_interleave(free_E), torch.arange(tokens % experts)])
    expert_T[~won_T] = slots
    _improve(s_TE, expert_T)
    return expert_T.to(scores_TE.device)


def _auction(s_TE: Tensor, least: int, rounds: int = 100) -> Tensor:
    """The paper's auction: all experts bid at once for the Q tokens that are worth most to them at their prices.

    A bid is the gap to the first token left out plus a least increment, a fiftieth of the range of the scores. The highest bidder holds the
    token, at a higher price, until another bids more. Ends when all experts hold Q tokens; -1: nobody holds the token.
    """
    s_ET = s_TE.T.contiguous()
    experts, tokens = s_ET.shape
    low, high = s_ET.aminmax()
    increment, above_all = max(float(high - low) / 50, 1e-4), high + (high - low) + 1
    price_T, value_ET = s_ET.new_zeros(tokens), s_ET
    held = torch.empty(0, dtype=torch.long)  # positions in the flat (E, T)
    for _ in range(rounds):
        top, token_EQ = value_ET.topk(least + 1, dim=1)
        bid_ET = torch.zeros_like(s_ET).scatter_(1, token_EQ[:, :least], top[:, :least] - top[:, least:] + increment)
        bid_ET.view(-1)[held] = increment
        best_T, bidder_T = bid_ET.max(0)
        sold_T = best_T > 0
        if sold_T.sum() == least * experts:
            break
        price_T = price_T + best_T
        held = (bidder_T * tokens + torch.arange(tokens))[sold_T]
        value_ET = s_ET - price_T
        value_ET.view(-1)[held] = above_all
    return torch.where(sold_T, bidder_T, -1)


def _improve(s_TE: Tensor, expert_T: Tensor) -> None:
    """Carry out cycles that raise the sum, in place, until there is none.

    gain_EE[i, j]: by how much the sum changes when i hands over to j the token that is best for that. An expert of Q tokens may also hand
    over, for nothing, its want of a token to one of Q + 1.
    """
    tokens, experts = s_TE.shape
    tolerance = 1e-9 * float(s_TE.max() - s_TE.min())
    best_EE = s_TE.new_full((experts, experts), -torch.inf)
    token_EE = torch.full((experts, experts), -1)
    stale = list(range(experts))
    for _ in range(tokens * experts):  # far more than are needed
        for i in stale:
            (mine,) = (expert_T == i).nonzero(as_tuple=True)
            if len(mine):
                best_EE[i], at_E = (s_TE[mine] - s_TE[mine, i, None]).max(0)
                token_EE[i] = mine[at_E]
            else:
                best_EE[i] = -torch.inf
        load_E = torch.bincount(expert_T, minlength=experts)
        want_EE = (load_E[:, None] < load_E) & (best_EE < 0)
        cycle = _cycle(best_EE.masked_fill(want_EE, 0.0).fill_diagonal_(-torch.inf), tolerance)
        for i, j in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            if not want_EE[i, j]:
                expert_T[token_EE[i, j]] = j
        stale = cycle
        if not cycle:
            return


def _cycle(gain_EE: Tensor, tolerance: float) -> list[int]:
    """Experts in the order of a cycle along which the gains sum to more than 0, empty if there is none (Bellman and Ford)."""
    experts = len(gain_EE)
    reach_E, before_E = gain_EE.new_zeros(experts), torch.arange(experts)
    for _ in range(experts + 1):
        best_E, from_E = (reach_E[:, None] + gain_EE).max(0)
        rise_E = best_E > reach_E + tolerance
        if not rise_E.any():
            break
        reach_E, before_E = torch.where(rise_E, best_E, reach_E), torch.where(rise_E, from_E, before_E)
        back_E = before_E
        for _ in range(experts.bit_length()):
            back_E = back_E[back_E]  # E steps back or more: at a start, which is before itself, or on a cycle
        looping = back_E[before_E[back_E] != back_E]
        if len(looping):
            cycle = [int(looping[0])]
            while (node := int(before_E[cycle[-1]])) != cycle[0]:
                cycle.append(node)
            return cycle[::-1]
    return []

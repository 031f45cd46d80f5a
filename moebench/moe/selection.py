"""Which experts and tokens are brought together, chosen from probabilities: the choices that routers and layers share.

T tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def highest(scores_TE: Tensor, k: int) -> Tensor:
    """Choose the k experts of highest score for every token.

    Args:
        scores_TE: (T, E).
        k: 1 to E.

    Returns:
        (T, E), true where chosen.
    """
    return torch.zeros_like(scores_TE, dtype=torch.bool).scatter(1, scores_TE.topk(k).indices, True)


def smallest_mass(probs_TE: Tensor, threshold: float) -> Tensor:
    """Choose every token's most probable experts until their mass exceeds the threshold (Huang et al., arXiv 2403.07652).

    In falling order, an expert is taken if the mass before it is at most the threshold: the one that crosses is taken too, so there is
    always one. Ties go to the lowest index.

    Args:
        probs_TE: (T, E), rows summing to 1.
        threshold: the mass to exceed; 1 takes all experts.

    Returns:
        (T, E), true where chosen.
    """
    sorted_TE, order_TE = probs_TE.detach().sort(dim=-1, descending=True, stable=True)
    before_TE = torch.cat([torch.zeros_like(sorted_TE[:, :1]), sorted_TE[:, :-1].cumsum(-1)], dim=-1)
    return torch.zeros_like(order_TE, dtype=torch.bool).scatter(1, order_TE, before_TE <= threshold)


def expert_choice(probs_TE: Tensor, group_T: Tensor, capacity_factor: float, multiple_of: int = 1) -> Tensor:
    """Let every expert take the C tokens of a group whose probability for it is highest (Zhou et al., arXiv 2202.09368).

    C = ⌈c·S / E⌉ for a group of S tokens, rounded up to a multiple of m, at most S; of equals the earlier token is taken. A token may get
    no expert, or all of them.

    Args:
        probs_TE: (T, E).
        group_T: (T,) which group a token is of, rising.
        capacity_factor: c, the mean number of experts a token.
        multiple_of: m.

    Returns:
        (T, E), true where chosen.
    """
    begin_T = torch.searchsorted(group_T, group_T)  # the group's first token
    size_T = torch.searchsorted(group_T, group_T, right=True) - begin_T
    # each column: the tokens, group after group as they came, but within a group by falling probability
    falling_TE = probs_TE.detach().argsort(dim=0, descending=True, stable=True)
    order_TE = falling_TE.gather(0, group_T[falling_TE].argsort(dim=0, stable=True))
    place_T = torch.arange(len(group_T), device=group_T.device) - begin_T
    capacity_T = (size_T.double() * capacity_factor / probs_TE.shape[1]).ceil()
    taken_T = place_T < (capacity_T / multiple_of).ceil() * multiple_of
    return torch.zeros_like(order_TE, dtype=torch.bool).scatter(0, order_TE, taken_T[:, None].expand_as(order_TE))

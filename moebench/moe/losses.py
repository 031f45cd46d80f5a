"""Auxiliary losses of routers, unscaled.

T tokens, E experts, A assignments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def load_balance(probs_TE: Tensor, expert_A: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e, where f_e is the share of assignments sent to expert e and P_e the mean over tokens of its probability.

    1 when the probabilities are uniform, E when all tokens go to one expert with certainty, 0 without tokens. Only P carries a gradient.

    Source: Switch (arXiv 2101.03961, eqs. 4-6), X-MoE (arXiv 2204.09179, section 3.1). MoEc's code sums over tokens where this
    averages, and adds 1e-6 to each f_e.

    Args:
        probs_TE: (T, E) probabilities of the experts, rows summing to 1.
        expert_A: (A,) chosen experts.

    Returns:
        A scalar.
    """
    tokens, experts = probs_TE.shape
    share_E = torch.bincount(expert_A, minlength=experts).to(probs_TE.dtype) / max(len(expert_A), 1)
    return experts * (share_E * probs_TE.sum(0)).sum() / max(tokens, 1)

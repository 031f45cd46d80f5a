"""Sends tokens to their experts and adds the weighted results back.

T tokens, D model width, E experts, A assignments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moebench.moe.contract import Routing


def dispatch(tokens_TD: Tensor, routing: Routing, experts: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """y_t = Σ over the assignments a of token t: weight_a · expert_a(x_t). Dropless; a token without assignments gets a zero row.

    Differentiable in the tokens, the weights and the experts' parameters. The sum is taken in fp32 (fp64 for fp64 tokens).
    Deterministic on a CPU; on a GPU with more than two assignments a token under `torch.use_deterministic_algorithms` only.

    Args:
        tokens_TD: (T, D).
        routing: what a router decided about these tokens.
        experts: maps (A, D) rows sorted by expert and (E,) rows per expert to (A, D) outputs, as `ResidualExperts` does.

    Returns:
        (T, D), in the tokens' type.
    """
    order_A = routing.expert.argsort(stable=True)
    token_A = routing.token[order_A]
    out_AD = experts(tokens_TD[token_A], routing.load)
    exact = torch.promote_types(tokens_TD.dtype, torch.float32)
    weighted_AD = routing.weight[order_A].to(exact)[:, None] * out_AD.to(exact)
    y_TD = torch.zeros_like(tokens_TD, dtype=exact).index_add(0, token_A, weighted_AD)
    return y_TD.to(tokens_TD.dtype)

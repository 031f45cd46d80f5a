"""Sends tokens to their experts and adds the weighted results back.

T tokens, D model width, E experts, A assignments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moebench.moe.contract import Routing


def dispatch(tokens_TD: Tensor, routing: Routing, experts: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """y_t = Σ over the assignments a of token t: weight_a · expert_a(x_t). Dropless; a token without assignments gets a zero row.

    Differentiable in the tokens, the weights and the experts' parameters. Several results of a token are weighted and
    summed in fp32 (fp64 for fp64 tokens); a lone one is weighted in the tokens' type, which it is rounded to anyway.
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
    if torch.equal(routing.token, torch.arange(len(tokens_TD), device=token_A.device)):  # one expert a token: nothing to add up
        back_T = torch.empty_like(order_A).scatter_(0, order_A, routing.token)
        out_TD = _Permute.apply(experts(_Permute.apply(tokens_TD, token_A, back_T), routing.load), back_T, token_A)
        return (routing.weight.to(tokens_TD.dtype)[:, None] * out_TD).to(tokens_TD.dtype)
    # index_select, not [...]: the backward pass of indexing is ten times slower
    exact = torch.promote_types(tokens_TD.dtype, torch.float32)
    weight_A1 = routing.weight.index_select(0, order_A).to(exact)[:, None]
    weighted_AD = weight_A1 * experts(tokens_TD.index_select(0, token_A), routing.load)
    return weighted_AD.new_zeros(tokens_TD.shape).index_add_(0, token_A, weighted_AD).to(tokens_TD.dtype)


class _Permute(torch.autograd.Function):
    """Gives row i of the result from row index[i]; the gradient goes back by the inverse, a gather instead of a sum."""

    @staticmethod
    def forward(ctx: Any, rows_TD: Tensor, index_T: Tensor, inverse_T: Tensor) -> Tensor:
        ctx.save_for_backward(index_T, inverse_T)
        return rows_TD.index_select(0, index_T)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:
        index_T, inverse_T = ctx.saved_tensors
        return _Permute.apply(grad_TD, inverse_T, index_T), None, None

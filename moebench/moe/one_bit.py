"""One-bit weights and eight-bit activations (BitNet, Wang et al., arXiv 2310.11453), for any model of linear maps and experts.

E experts, A rows, D input width, F output width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.contract import Router
from moebench.moe.experts import Experts
from moebench.moe.grouped import grouped_linear
from moebench.moe.layer import SparseLayer

LEVELS = 127
"""Q: an activation is one of −Q … Q times its token's scale."""


def one_bit(module: nn.Module) -> None:
    """Make every linear map of a model y = W̃ · Quant(LN(x)) + b, in place: `torch.nn.Linear` and the matrices of `Experts`.

    Routers, embeddings (a decoder's head is one), norms and biases stay as they are. So do all parameters and their names in the state
    dict, and weights may be loaded before or after. `torch.nn.utils.parametrize` would rename them, and rounds no activations; those enter
    products inside of experts too.

    The models of arXiv 2411.16205, table 3, are quantised with BitNet; more is not published. Choices here: the LN of the formula is one
    without parameters before each map, also where the model has a norm of its own there; Q = 127, rounded to the nearest, so that nothing
    is clipped; the scale of a weight is that of its whole matrix, each expert's its own; β and γ are constants to the gradient. Products
    are computed with the rounded numbers in the usual type, so this saves neither time nor memory.

    Args:
        module: the model.

    Raises:
        ValueError: a layer's experts choose by products of their own (`moebench.moe.layers.aoe.AoE`), which would not be rounded.
    """
    routers = {part for router in module.modules() if isinstance(router, Router) for part in router.modules()}
    for part in module.modules():
        if isinstance(part, SparseLayer) and hasattr(part, "node"):
            raise ValueError(f"{part.name}: its experts choose by products of their own, which one_bit does not reach")
        if isinstance(part, nn.Linear) and part not in routers:
            part.__class__ = OneBitLinear
        if isinstance(part, Experts):
            part.linear, part.swiglu = _linear, _swiglu  # type: ignore[method-assign]


class OneBitLinear(nn.Linear):
    """A linear map of one-bit weights on eight-bit activations; its parameters are in full precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, D) to (…, F)."""
        return F.linear(eight_bit(x), binary(self.weight), self.bias)


def _linear(rows_AD: Tensor, weight_EFD: Tensor, counts_E: Tensor, bias_EF: Tensor | None = None) -> Tensor:
    return grouped_linear(eight_bit(rows_AD), binary(weight_EFD), counts_E, bias_EF)


def _swiglu(gated_AL: Tensor, rows_AD: Tensor, gate_EFL: Tensor, up_EFD: Tensor, down_EDF: Tensor, counts_E: Tensor) -> Tensor:
    activated_AF = F.silu(_linear(gated_AL, gate_EFL, counts_E)) * _linear(rows_AD, up_EFD, counts_E)
    return _linear(activated_AF, down_EDF, counts_E)


def binary(weight: Tensor) -> Tensor:
    """W̃ = β where W is above the mean of its matrix, else −β, with β = mean |W|; the gradient passes to W as if W̃ were W.

    Args:
        weight: (F, D), or (E, F, D), a matrix each.
    """
    beta = weight.abs().mean((-2, -1), keepdim=True)
    return _straight_through(weight, torch.where(weight > weight.mean((-2, -1), keepdim=True), beta, -beta))


def eight_bit(x: Tensor) -> Tensor:
    """Quant(LN(x)): each token's numbers, of mean 0 and variance 1, to the nearest multiple of γ / Q, γ the largest of them.

    Computed in fp32 at least, outside autocast; the gradient passes to LN(x) as if nothing were rounded.

    Args:
        x: (…, D).

    Returns:
        (…, D), in the type of ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        normed = F.layer_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-1:])
        step = normed.abs().amax(-1, keepdim=True).clamp(min=1e-5) / LEVELS
        return _straight_through(normed, (normed / step).round() * step).to(x.dtype)


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """The rounded value exactly, with the gradient of the value."""
    return rounded.detach() + (value - value.detach())

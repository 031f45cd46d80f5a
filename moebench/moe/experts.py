"""Experts: residual stacks, feed-forward networks, gated feed-forward networks; E of a kind are one module.

A rows (one per assignment), D model width, E experts, F inner width; L sub-layers of `ResidualExperts`, L reduced width of
`FactorisedExperts`.

All parameters have a leading E axis. A module is called with rows sorted by expert and the number of rows of each expert; it takes the
number of experts from its parameters, so that `torch.func.functional_call` may give it parameters of another number of experts than
``count``. An expert without rows gets zero gradients, never none: an optimiser with momentum or weight decay still moves it. There is no
dropout. ``backend`` is that of `grouped_linear`; only benchmarks and tests set it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.grouped import grouped_layer_norm, grouped_linear, grouped_rms_norm, grouped_swiglu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),  # that of flax
    "relu": F.relu,
}


def _weights(*shape: int, std: float = 0.02) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(std=std))


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r}: should be one of {', '.join(ACTIVATIONS)}")
    return name


class Experts(nn.Module):
    """What all kinds share: E, and the products of rows with their experts' matrices, which `moebench.moe.one_bit` replaces."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count
        self.backend: str | None = None

    def linear(self, rows_AD: Tensor, weight_EFD: Tensor, counts_E: Tensor, bias_EF: Tensor | None = None) -> Tensor:
        """(A, F), as `grouped_linear`."""
        return grouped_linear(rows_AD, weight_EFD, counts_E, bias_EF, self.backend)

    def swiglu(self, gated_AL: Tensor, rows_AD: Tensor, gate_EFL: Tensor, up_EFD: Tensor, down_EDF: Tensor, counts_E: Tensor) -> Tensor:
        """(A, D), as `grouped_swiglu`: what three of `linear` make, in less time."""
        return grouped_swiglu(gated_AL, rows_AD, gate_EFL, up_EFD, down_EDF, counts_E, self.backend)


class ResidualExperts(Experts):
    """E stacks of L sub-layers x + fc2(act(fc1(LayerNorm(x)))); an expert's output is the change that its stack makes, stack(x) − x.

    With the router's weight g the layer's result is x + g · change(x), equation 2 of X-MoE (arXiv 2204.09179). The code of MoEc
    writes the same as g · stack(x) + (1 − g) · x.

    The norm stands before each sub-layer, whatever the trunk does. The paper does not say where it stands and MoEc puts it after the
    residual sum; only before it can an expert start as the identity.

    Weights start as N(0, 0.02²), biases at 0, norms at 1 and 0.

    Args:
        experts: E.
        d_model: D.
        inner: F.
        sublayers: L; 3 in the paper.
        identity: start with fc2 at 0, so that every change is exactly 0.
        activation: act.

    Raises:
        ValueError: there is no such activation.
    """

    def __init__(
        self,
        experts: int,
        d_model: int,
        inner: int,
        sublayers: int,
        identity: bool = False,
        activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu",
    ):
        super().__init__(experts)
        self.activation = _activation(activation)
        self.norm_weight = nn.Parameter(torch.ones(experts, sublayers, d_model))
        self.norm_bias = nn.Parameter(torch.zeros(experts, sublayers, d_model))
        self.fc1_weight = _weights(experts, sublayers, inner, d_model)
        self.fc1_bias = nn.Parameter(torch.zeros(experts, sublayers, inner))
        self.fc2_weight = _weights(experts, sublayers, d_model, inner, std=0.0 if identity else 0.02)
        self.fc2_bias = nn.Parameter(torch.zeros(experts, sublayers, d_model))

    def forward(self, rows_AD: Tensor, counts_E: Tensor) -> Tensor:
        """Run each expert on its rows.

        Args:
            rows_AD: (A, D), sorted by expert.
            counts_E: (E,) number of rows of each expert.

        Returns:
            (A, D) changes.

        Raises:
            ValueError: ``counts_E`` is for another number of experts or of rows.
        """
        stacked = (self.norm_weight, self.norm_bias, self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias)
        y = rows_AD
        for scale, shift, w1, b1, w2, b2 in zip(*(parameter.unbind(1) for parameter in stacked), strict=True):
            inner_AF = self.linear(grouped_layer_norm(y, scale, shift, counts_E), w1, counts_E, b1)
            y = y + self.linear(ACTIVATIONS[self.activation](inner_AF), w2, counts_E, b2)
        return y - rows_AD


class FeedForwardExperts(Experts):
    """E networks fc2(act(fc1(x))), with LN before fc2 where ``subln`` (Magneto, arXiv 2210.06423).

    Weights start as N(0, 0.02²), biases at 0, norms at 1 and 0.

    Args:
        experts: E.
        d_model: D.
        inner: F.
        activation: act.
        bias: fc1 and fc2 have biases.
        subln: fc2(LN(act(fc1(x)))).

    Raises:
        ValueError: there is no such activation.
    """

    def __init__(
        self,
        experts: int,
        d_model: int,
        inner: int,
        activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu",
        bias: bool = True,
        subln: bool = False,
    ):
        super().__init__(experts)
        self.activation = _activation(activation)
        self.fc1_weight = _weights(experts, inner, d_model)
        self.fc1_bias = nn.Parameter(torch.zeros(experts, inner)) if bias else None
        self.norm_weight = nn.Parameter(torch.ones(experts, inner)) if subln else None
        self.norm_bias = nn.Parameter(torch.zeros(experts, inner)) if subln else None
        self.fc2_weight = _weights(experts, d_model, inner)
        self.fc2_bias = nn.Parameter(torch.zeros(experts, d_model)) if bias else None

    def forward(self, rows_AD: Tensor, counts_E: Tensor) -> Tensor:
        """Run each expert on its rows: (A, D). See `ResidualExperts.forward`."""
        inner_AF = ACTIVATIONS[self.activation](self.linear(rows_AD, self.fc1_weight, counts_E, self.fc1_bias))
        if self.norm_weight is not None and self.norm_bias is not None:
            inner_AF = grouped_layer_norm(inner_AF, self.norm_weight, self.norm_bias, counts_E)
        return self.linear(inner_AF, self.fc2_weight, counts_E, self.fc2_bias)


class SwiGLUExperts(Experts):
    """E networks down(silu(gate(x)) · up(x)) without biases (arXiv 2002.05202), with an RMSNorm before down where ``subln``.

    Weights start as N(0, 0.02²), norms at 1. The norm is that of the public code of MH-MoE, Magneto's (arXiv 2210.06423) without its mean.

    Args:
        experts: E.
        d_model: D.
        inner: F.
        subln: down(RMSNorm(silu(gate(x)) · up(x))).
    """

    def __init__(self, experts: int, d_model: int, inner: int, subln: bool = False):
        super().__init__(experts)
        self.gate_weight = _weights(experts, inner, d_model)
        self.up_weight = _weights(experts, inner, d_model)
        self.norm_weight = nn.Parameter(torch.ones(experts, inner)) if subln else None
        self.down_weight = _weights(experts, d_model, inner)

    def forward(self, rows_AD: Tensor, counts_E: Tensor) -> Tensor:
        """Run each expert on its rows: (A, D). See `ResidualExperts.forward`."""
        if self.norm_weight is None:
            return self.swiglu(rows_AD, rows_AD, self.gate_weight, self.up_weight, self.down_weight, counts_E)
        inner_AF = F.silu(self.linear(rows_AD, self.gate_weight, counts_E)) * self.linear(rows_AD, self.up_weight, counts_E)
        return self.linear(grouped_rms_norm(inner_AF, self.norm_weight, counts_E), self.down_weight, counts_E)

    @property
    def gate_EFD(self) -> Tensor:
        """(E, F, D) gate matrices."""
        return self.gate_weight


class FactorisedExperts(Experts):
    """E networks down(silu(gate(reduce(x))) · up(x)) without biases: SwiGLU whose gate matrix is a product of two of rank L.

    The experts of Autonomy-of-Experts (arXiv 2501.13074, eq. 3), where the reduction, of which they are chosen, is called W_down, the gate
    W_up, the up-projection W_p and the down-projection W_o. Weights start as N(0, 0.02²), as in its public code; the gate then starts
    smaller than that of `SwiGLUExperts`, by 0.02 · √L.

    Args:
        experts: E.
        d_model: D.
        low: L.
        inner: F; `moebench.models.matching.widened` makes an expert as large as one of SwiGLU.
    """

    def __init__(self, experts: int, d_model: int, low: int, inner: int):
        super().__init__(experts)
        self.reduce_weight = _weights(experts, low, d_model)
        self.gate_weight = _weights(experts, inner, low)
        self.up_weight = _weights(experts, inner, d_model)
        self.down_weight = _weights(experts, d_model, inner)

    def forward(self, rows_AD: Tensor, counts_E: Tensor) -> Tensor:
        """Run each expert on its rows: (A, D). See `ResidualExperts.forward`."""
        return self.after_reduction(rows_AD, self.linear(rows_AD, self.reduce_weight, counts_E), counts_E)

    def after_reduction(self, rows_AD: Tensor, reduced_AL: Tensor, counts_E: Tensor) -> Tensor:
        """Run each expert on rows whose reduction is known.

        Args:
            rows_AD: (A, D), sorted by expert.
            reduced_AL: (A, L) each row through its expert's reduction.
            counts_E: (E,) number of rows of each expert.

        Returns:
            (A, D).
        """
        return self.swiglu(reduced_AL, rows_AD, self.gate_weight, self.up_weight, self.down_weight, counts_E)

    @property
    def gate_EFD(self) -> Tensor:
        """(E, F, D) gate matrices, multiplied out: gate · reduce."""
        return self.gate_weight @ self.reduce_weight

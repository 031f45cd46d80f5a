"""Experts that are stacks of residual feed-forward sub-layers.

A rows (one per assignment), D model width, E experts, L sub-layers, F inner width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualExperts(nn.Module):
    """E stacks of L sub-layers x + fc2(GELU(fc1(LayerNorm(x)))); an expert's output is the change that its stack makes, stack(x) − x.

    With the router's weight g the layer's result is x + g · change(x), equation 2 of X-MoE (arXiv 2204.09179). The code of MoEc
    writes the same as g · stack(x) + (1 − g) · x.

    The norm stands before each sub-layer, whatever the trunk does. The paper does not say where it stands and MoEc puts it after the
    residual sum; only before it can an expert start as the identity.

    Weights start as N(0, 0.02²), biases at 0, norms at 1 and 0. There is no dropout. All parameters have a leading E axis. An expert
    without rows gets zero gradients, never none: an optimiser with momentum or weight decay still moves it.

    Args:
        experts: E.
        d_model: D.
        inner: F.
        sublayers: L; 3 in the paper.
        identity: start with fc2 at 0, so that every change is exactly 0.
    """

    def __init__(self, experts: int, d_model: int, inner: int, sublayers: int, identity: bool = False):
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(experts, sublayers, d_model))
        self.norm_bias = nn.Parameter(torch.zeros(experts, sublayers, d_model))
        self.fc1_weight = nn.Parameter(torch.empty(experts, sublayers, inner, d_model).normal_(std=0.02))
        self.fc1_bias = nn.Parameter(torch.zeros(experts, sublayers, inner))
        self.fc2_weight = nn.Parameter(torch.empty(experts, sublayers, d_model, inner).normal_(std=0.0 if identity else 0.02))
        self.fc2_bias = nn.Parameter(torch.zeros(experts, sublayers, d_model))

    def forward(self, rows_AD: Tensor, counts_E: Tensor) -> Tensor:
        """Run each expert on its rows.

        Args:
            rows_AD: (A, D), sorted by expert.
            counts_E: (E,) number of rows of each expert.

        Returns:
            (A, D) changes.

        Raises:
            ValueError: ``counts_E`` is for another number of experts.
        """
        stacked = (self.norm_weight, self.norm_bias, self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias)
        # unbind, not [e]: the backward pass of indexing fills a gradient of all experts for each expert
        experts = zip(*(parameter.unbind() for parameter in stacked), strict=True)
        changes = []
        for x, expert in zip(rows_AD.split(counts_E.tolist()), experts, strict=True):
            y = x
            for scale, shift, w1, b1, w2, b2 in zip(*(parameter.unbind() for parameter in expert), strict=True):
                y = y + F.linear(F.gelu(F.linear(F.layer_norm(y, y.shape[1:], scale, shift), w1, b1)), w2, b2)
            changes.append(y - x)
        return torch.cat(changes)

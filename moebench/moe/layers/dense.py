"""The inserted layer without routing: one expert that sees every token, the dense arm of equal FLOPs.

T tokens, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moebench.moe.contract import RouterInputs
from moebench.moe.layer import Aux, SparseLayer


class Dense(SparseLayer):
    """y_t = expert(x_t): what a top-1 layer computes a token, without a choice and without a gate.

    Args:
        d_model: D.
        experts: a module of one expert.
        name: what errors call this layer.

    Raises:
        ValueError: there is more than one expert.
    """

    def __init__(self, d_model: int, experts: nn.Module, name: str = "dense"):
        super().__init__(name)
        if experts.count != 1:
            raise ValueError(f"experts {experts.count}: the dense layer has 1")
        self.experts = experts

    def change(self, tokens_TD: Tensor, inputs: RouterInputs) -> tuple[Tensor, Aux]:
        """Run the expert on all tokens."""
        load_E = torch.tensor([len(tokens_TD)], device=tokens_TD.device)
        return self.experts(tokens_TD, load_E), Aux({}, load_E, tokens_TD.new_ones(len(tokens_TD), 1))

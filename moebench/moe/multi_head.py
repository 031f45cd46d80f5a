"""Multi-Head Mixture-of-Experts (MH-MoE): tokens are split into sub-tokens, any sparse layer takes these, and they are merged again.

T tokens, D model width, H heads (unrelated to those of attention), d = D / H, U = T·H sub-tokens, E experts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs
from moebench.moe.layer import Aux, SparseLayer, sum_of_all

LAYERS = 3
"""Most linear maps before splitting, and most after merging, in the paper's table 7."""


class MultiHead(SparseLayer):
    """x̂ = x W_head; each of its H contiguous parts is a token to ``inner``; what comes back is put side by side and times W_merge.

    Wu et al., arXiv 2404.15045, equations 3 to 9; at equal operations, arXiv 2411.16205. All heads share the inner layer: one router, one
    pool of experts, both of width d. The inner layer takes sub-tokens token by token, head by head: number u is head u mod H of token
    ⌊u / H⌋. Each has its token's id, sequence, position and attention, so a router that looks at token ids alone sends all sub-tokens of a
    token to the same experts.

    Where paper and public code (yushuiwx/MH-MoE, commit c96915e, which is that of the second paper) differ:

    - ``residual``: equation 6 adds the sub-token to what its experts say; the code, and equation 3 of the second paper, do not.
    - Biases: the papers write none, the code's two maps have them whatever its option against biases says; here as in the code.
    - Padding: the code lets it compete for capacity and enter the balance loss; here it is gone before.

    With several maps a side (section 4.4) a ReLU stands between them; all are D to D. Paper (algorithm 1) and code start alike: head maps
    Xavier-uniform with gain 1/√2, their biases as `torch.nn.Linear` starts them, merge maps Xavier-uniform with gain 1, their biases at 0.
    How further maps start is not published; here as the first of their side.

    Losses, ``Aux.load``, ``Aux.probs`` and ``Aux.routing`` are the inner layer's, over sub-tokens; ``Aux.heads`` is H. So are the rows of
    `flops_per_row`: with K experts a sub-token, a token has H·K rows, each d wide.

    Args:
        d_model: D.
        inner: the layer that takes sub-tokens, built at width d.
        name: what errors call this layer; the inner one has a name of its own.
        heads: H.
        head_layers: linear maps before splitting, 0 to 3.
        merge_layers: linear maps after merging, 0 to 3.
        residual: add x̂ to the inner layer's result.
        shared: experts of width D that see every whole token with weight 1, beside the sub-tokens (table 2 of the second paper); none:
            there are no such experts.

    Raises:
        ValueError: D is not a multiple of ``heads``, a number of maps is not within 0 and 3, or the inner layer is of another width or has
            shared experts of its own.
    """

    def __init__(
        self,
        d_model: int,
        inner: SparseLayer,
        name: str = "multi_head",
        *,
        heads: int,
        head_layers: int = 1,
        merge_layers: int = 1,
        residual: bool = False,
        shared: nn.Module | None = None,
    ):
        super().__init__(name)
        if heads < 1 or d_model % heads:
            raise ValueError(f"heads {heads}: should be at least 1 and divide the width, {d_model}")
        for key, layers in {"head_layers": head_layers, "merge_layers": merge_layers}.items():
            if not 0 <= layers <= LAYERS:
                raise ValueError(f"{key} {layers}: should be at least 0 and at most {LAYERS}")
        width = getattr(getattr(inner, "router", None), "d_model", d_model // heads)
        if width != d_model // heads:
            raise ValueError(f"heads {heads}: the inner layer is of width {width}, and should be of width {d_model} / {heads}")
        if getattr(inner, "shared", None) is not None:
            raise ValueError(
                "the inner layer has shared experts, which would see sub-tokens; they belong here, as 'shared', and see whole tokens"
            )
        self.heads = heads
        self.residual = residual
        self.head = _maps(d_model, head_layers, 2**-0.5, zero_biases=False)
        self.inner = inner
        self.merge = _maps(d_model, merge_layers, 1.0, zero_biases=True)
        self.shared = shared
        self.causal = inner.causal
        self.needs_attention = inner.needs_attention
        self.losses = inner.losses  # type: ignore[misc]  # of an instance here, as its inner layer's class says

    def change(self, tokens_TD: Tensor, inputs: RouterInputs) -> tuple[Tensor, Aux]:
        """Split, let the inner layer work, merge; add what the shared experts say."""
        x_TD = self.head(tokens_TD)  # equation 3
        x_Ud = x_TD.unflatten(1, (self.heads, -1)).flatten(0, 1)  # 4
        change_Ud, aux = self.inner.change(x_Ud, self._of_sub_tokens(x_Ud, inputs))  # 5 and the sum of 6
        if self.residual:
            change_Ud = x_Ud + change_Ud
        merged_TD = change_Ud.unflatten(0, (-1, self.heads)).flatten(1)  # 7 and 8
        change_TD = self.merge(merged_TD)  # 9
        if self.shared is not None:
            change_TD = change_TD + sum_of_all(self.shared, tokens_TD)
        return change_TD, replace(aux, heads=self.heads * aux.heads)

    def _of_sub_tokens(self, x_Ud: Tensor, inputs: RouterInputs) -> RouterInputs:
        """All that is known of a token is known of each of its sub-tokens."""

        def repeated(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.repeat_interleave(self.heads, 0)

        return RouterInputs(
            tokens=x_Ud.to(torch.promote_types(x_Ud.dtype, torch.float32)),
            token_ids=repeated(inputs.token_ids),
            sequence_ids=repeated(inputs.sequence_ids),
            positions=repeated(inputs.positions),
            attention=repeated(inputs.attention),
            heads=self.heads * inputs.heads,
        )

    @property
    def experts(self) -> nn.Module:  # type: ignore[override]
        """The inner layer's experts."""
        return self.inner.experts

    @property
    def router(self) -> Router:
        """The inner layer's router.

        Raises:
            AttributeError: it has none.
        """
        return cast(Router, self.inner.router)

    @property
    def flops_per_row(self) -> int:
        """Operations of a sub-token through a routed expert."""
        return self.inner.flops_per_row

    def overhead(self, tokens: int, sequences: int) -> int:
        """Those of the inner layer on H times as many tokens, and 2·D² a token for every map; biases are left out."""
        maps = sum(parameter.numel() for side in (self.head, self.merge) for parameter in side.parameters() if parameter.ndim == 2)
        return 2 * tokens * maps + self.inner.overhead(self.heads * tokens, sequences)

    def after_optimizer_step(self) -> None:
        """Call the inner layer's hook."""
        self.inner.after_optimizer_step()


def _maps(width: int, layers: int, gain: float, zero_biases: bool) -> nn.Sequential:
    maps = [nn.Linear(width, width) for _ in range(layers)]
    for one in maps:
        nn.init.xavier_uniform_(one.weight, gain)
        if zero_biases:
            nn.init.zeros_(one.bias)
    return nn.Sequential(*[part for one in maps for part in (nn.ReLU(), one)][1:])

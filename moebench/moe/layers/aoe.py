"""Autonomy-of-Experts (Lv et al., arXiv 2501.13074): no router; the experts whose own activations are largest take a token.

T tokens, D model width, E experts, K chosen, L reduced width, F inner width, A assignments, N width of a node.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.moe.capacity import check_factors
from moebench.moe.contract import RouterInputs, Routing
from moebench.moe.dispatch import dispatch
from moebench.moe.experts import FactorisedExperts, SwiGLUExperts
from moebench.moe.layer import Aux, SparseLayer
from moebench.moe.losses import Losses, load_balance
from moebench.moe.selection import expert_choice, highest, smallest_mass

MATRICES = {
    "reduced": ("reduce",),
    "gate": ("reduce", "gate"),
    "up": ("up",),
    "activated": ("reduce", "gate"),
    "product": ("reduce", "gate", "up"),
    "output": ("reduce", "gate", "up", "down"),
}
"""Which matrices of an expert a node is behind."""
ORDERS = {"l2": 2.0, "l1": 1.0, "linf": torch.inf}


class AoE(SparseLayer):
    """s_te = ‖a_e(x_t)‖ of a node a inside expert e; the chosen experts' outputs are added with weights p̂, a softmax of the norms.

    - ``node`` reduced, the paper's (algorithm 2): a_e(x) = x W_e, the reduction of `FactorisedExperts`. One product makes all of them;
      the chosen experts work on with theirs, which are not computed again, and the others stop there.
    - ``node`` gate (x W_g), up (x W_p), activated (SiLU(x W_g)), product (SiLU(x W_g) · x W_p), output: the nodes of table 1, there in
      trained models whose router is taken away. With SwiGLU or factorised experts. All experts compute the node, T·E·N numbers, and the
      chosen ones begin anew: it costs more, for output as much as all experts.

    Selection, of p = softmax over all E norms:

    - ``top_k``: K experts a token. ``top_p``: a token's most probable experts until their mass exceeds the threshold; the paper has 0.6.
      ``expert_choice``: every expert takes its share of the tokens, ⌈c·S / E⌉ of the S of a group; the group is the batch or a sequence
      in training, a sequence in evaluation. It depends on later tokens, so such a layer is not `causal`, and evaluating a decoder
      with it looks ahead; the paper does not say what it does there.
    - ``weights`` kept: softmax over the chosen norms, so they sum to 1. All: p as it is, so that the experts that were not chosen are
      taught too, and the outputs are smaller (about 0.3 times, at the start, for K = 2 of 8).

    Norms are taken of the activations in fp32 at least, outside autocast, without division by √N. Under autocast the activations are those
    that the experts go on with, in its type, so bf16 may choose otherwise than fp32 where norms are close.

    Losses: ``balance``, whose shares are over all assignments, 1 when even. The paper's shares are over tokens, K times as large: its
    coefficient 0.01 is 0.02 here for K = 2. ``entropy``, mean over tokens of −Σ p ln p; the paper has it at 1e-4 with top_p.

    Public code: plain torch equals algorithm 2 (``weights`` kept) and fixes L = 128, F = 4096; that with megablocks, and the author's later
    work (arXiv 2512.23447), have ``weights`` all.

    ``Aux.routing.scores`` are the norms.

    Args:
        d_model: D.
        experts: E networks.
        name: what errors call this layer.
        k: K.
        node: of which activations the norm is taken.
        norm: which norm.
        weights: over which experts the weights are normalised.
        selection: how experts and tokens are brought together.
        threshold: for top_p, the mass to exceed.
        capacity_factor: for expert_choice, c, the mean number of experts a token.
        group: for expert_choice, what the experts choose from in training.

    Raises:
        ValueError: ``k`` is not in 1 to E, ``threshold`` not above 0 and at most 1, ``capacity_factor`` not above 0, or the experts do not
            have the node, or have a norm inside.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "entropy")
    works_with: ClassVar[tuple[str, ...]] = ("FactorisedExperts", "SwiGLUExperts")

    experts: FactorisedExperts | SwiGLUExperts
    causal: bool

    def __init__(
        self,
        d_model: int,
        experts: FactorisedExperts | SwiGLUExperts,
        name: str = "aoe",
        *,
        k: int = 2,
        node: Literal["reduced", "gate", "up", "activated", "product", "output"] = "reduced",
        norm: Literal["l2", "l1", "linf"] = "l2",
        weights: Literal["kept", "all"] = "kept",
        selection: Literal["top_k", "top_p", "expert_choice"] = "top_k",
        threshold: float = 0.6,
        capacity_factor: float = 2.0,
        group: Literal["sequence", "batch"] = "batch",
    ):
        super().__init__(name)
        if not 1 <= k <= experts.count:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of experts, {experts.count}")
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold}: should be above 0 and at most 1, as a mass of probability")
        check_factors(capacity_factor=capacity_factor)
        if not isinstance(experts, FactorisedExperts if node == "reduced" else (FactorisedExperts, SwiGLUExperts)):
            need = "FactorisedExperts" if node == "reduced" else "FactorisedExperts or SwiGLUExperts"
            raise ValueError(f"node {node!r}: {type(experts).__name__} has no such node; the experts should be {need}")
        if getattr(experts, "norm_weight", None) is not None:
            raise ValueError(f"node {node!r}: nodes are those of experts without a norm inside; the experts should be without subln")
        self.experts = experts
        self.k = k
        self.node = node
        self.norm = norm
        self.weights = weights
        self.selection = selection
        self.threshold = threshold
        self.capacity_factor = capacity_factor
        self.group = group
        self.causal = selection != "expert_choice"

    def change(self, tokens_TD: Tensor, inputs: RouterInputs) -> tuple[Tensor, Aux]:
        """Compute the node of all experts, choose, let the chosen ones work."""
        node_TEN = self._node(tokens_TD)
        with torch.autocast(tokens_TD.device.type, enabled=False):
            norm_TE = torch.linalg.vector_norm(node_TEN.to(inputs.tokens.dtype), ORDERS[self.norm], dim=-1)
            self.check_finite(norms=norm_TE)
            probs_TE = norm_TE.softmax(-1)
            active_TE = self._chosen(norm_TE, probs_TE, inputs)
            weight_TE = probs_TE
            if self.weights == "kept":
                left_out_TE = ~active_TE & active_TE.any(-1, keepdim=True)
                weight_TE = norm_TE.masked_fill(left_out_TE, -torch.inf).softmax(-1)
            losses = Losses(
                balance=lambda: load_balance(probs_TE, active_TE.nonzero()[:, 1]),
                entropy=lambda: -(probs_TE * norm_TE.log_softmax(-1)).sum() / max(len(probs_TE), 1),
            )
        routing = Routing.from_mask(active_TE, weight_TE, scores=norm_TE, losses=losses)
        if self.node == "reduced":
            change_TD = self._from_reduced(tokens_TD, node_TEN, routing)
        else:
            change_TD = dispatch(tokens_TD, routing, self.experts)
        return change_TD, Aux(losses, routing.load, probs_TE.detach(), 0, routing)

    def _chosen(self, norm_TE: Tensor, probs_TE: Tensor, inputs: RouterInputs) -> Tensor:
        if self.selection == "top_k":
            return highest(norm_TE, self.k)
        if self.selection == "top_p":
            return smallest_mass(probs_TE, self.threshold)
        group_T = inputs.require("sequence_ids")
        whole = self.training and self.group == "batch"
        return expert_choice(probs_TE, torch.zeros_like(group_T) if whole else group_T, self.capacity_factor)

    def _from_reduced(self, tokens_TD: Tensor, reduced_TEL: Tensor, routing: Routing) -> Tensor:
        order_A = routing.expert.argsort(stable=True)  # that of dispatch
        row_A = (routing.token * self.experts.count + routing.expert)[order_A]
        reduced_AL = reduced_TEL.flatten(0, 1).index_select(0, row_A)
        experts = cast(FactorisedExperts, self.experts)
        return dispatch(tokens_TD, routing, lambda rows_AD, counts_E: experts.after_reduction(rows_AD, reduced_AL, counts_E))

    def _node(self, tokens_TD: Tensor) -> Tensor:
        """(T, E, N) activations of all experts."""
        experts = self.experts
        reduced = _all(tokens_TD, experts.reduce_weight) if isinstance(experts, FactorisedExperts) and self.node != "up" else tokens_TD
        if self.node == "reduced":
            return reduced
        if self.node == "up":
            return _all(tokens_TD, experts.up_weight)
        gate_TEF = _all(reduced, experts.gate_weight)
        if self.node == "gate":
            return gate_TEF
        activated_TEF = F.silu(gate_TEF)
        if self.node == "activated":
            return activated_TEF
        product_TEF = activated_TEF * _all(tokens_TD, experts.up_weight)
        return product_TEF if self.node == "product" else _all(product_TEF, experts.down_weight)

    def overhead(self, tokens: int, sequences: int) -> int:
        """Operations of the node for all experts."""
        matrices = [self.experts.get_parameter(f"{name}_weight") for name in MATRICES[self.node] if hasattr(self.experts, f"{name}_weight")]
        return 2 * tokens * sum(weight.numel() for weight in matrices)

    @property
    def flops_per_row(self) -> int:
        """Operations of a row through a chosen expert: all of it, but for a reduction that is there already."""
        known = self.overhead(1, 1) if self.node == "reduced" else 0
        return super().flops_per_row - known // self.experts.count


def _all(x: Tensor, weight_EFD: Tensor) -> Tensor:
    """Map (T, D) through all experts, or (T, E, D) each through its own: (T, E, F)."""
    if x.ndim == 3:
        return torch.einsum("ted,efd->tef", x, weight_EFD)
    return F.linear(x, weight_EFD.flatten(0, 1)).unflatten(1, weight_EFD.shape[:2])

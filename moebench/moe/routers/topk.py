"""The conventional router: every token goes to the K experts of highest softmax probability (Mixtral, OLMoE, DeepSeekMoE).

T tokens, D model width, E experts, K chosen.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import Losses, load_balance, router_z


class TopK(Router):
    """p = softmax(h · e_i) over all E; the K most probable experts, with weights p_i / Σ_kept p, or p_i as they are. No capacity.

    - Mixtral (arXiv 2401.04088, section 2.1): the softmax is over the K kept logits, which is the same as dividing by the kept sum.
      K = 2 of 8, ``normalise`` on.
    - OLMoE (arXiv 2409.02060): K = 8 of 64, ``normalise`` off; losses with 0.01 (balance) and 0.001 (z).
    - DeepSeekMoE (arXiv 2401.06066, eqs. 9-14): ``normalise`` off, and exactly this router: ``balance`` is its Σ_i f_i · P_i with
      f_i = E / (K·T) · count_i. Its shared experts are `MoELayer`'s ``shared``, its fine-grained splitting is the width and number of the
      experts; neither concerns the router. The losses over devices (eqs. 15-17) have no meaning on one.

    With K = 1 and ``normalise`` the weight is 1 whatever the logits, so only the losses would teach the router: methods may not have both.
    Embeddings start as N(0, 0.02²).

    Losses: ``balance``, the shares taken over all T·K assignments, so 1 when uniform whatever K; ``z``.

    Public code: the balance loss of Mixtral in transformers and of the baseline of Autonomy-of-Experts takes shares over tokens, so it is K
    times as large; OLMoE's divides by K, as here.

    Args:
        d_model: D.
        experts: E.
        k: K.
        normalise: divide the kept weights by their sum.

    Raises:
        ValueError: ``k`` is not in 1 to E.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "z")
    untaught: ClassVar[tuple[dict[str, Any], ...]] = ({"k": 1, "normalise": True},)

    def __init__(self, d_model: int, experts: int, *, k: int = 2, normalise: bool = True):
        super().__init__(d_model, experts)
        if not 1 <= k <= experts:
            raise ValueError(f"k {k}: should be at least 1 and at most the number of experts, {experts}")
        self.k = k
        self.normalise = normalise
        self.embedding = nn.Parameter(torch.empty(experts, d_model).normal_(std=0.02))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to K experts."""
        logits_TE = inputs.tokens @ self.embedding.T
        probs_TE = logits_TE.softmax(-1)
        weight_TK, expert_TK = probs_TE.topk(self.k)
        if self.normalise:
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        losses = Losses(balance=lambda: load_balance(probs_TE, expert_TK.flatten()), z=lambda: router_z(logits_TE))
        return Routing.topk(expert_TK, weight_TK, scores=logits_TE, losses=losses)

"""DSelect-k: a smooth gate of k selectors that each spell an expert's number in bits.

T tokens, D model width, E experts, K selectors, M bits.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing

EPSILON = 1e-6
"""Added to a selector's outputs in the losses, as in public code."""


class DSelectK(Router):
    """w_e = Σ_i softmax(G h)_i · r_ie, r_ie = Π over the bits of e of S(z) where the bit is 1, 1 − S(z) where it is 0, z = Z_i h.

    Hazimeh et al. (arXiv 2106.03760). The smooth step S is 0 below −γ/2, 1 above γ/2 and −2 z³/γ³ + 3 z/(2γ) + 1/2 between. e is
    written in M = ⌈log2 E⌉ bits, the most significant first. A token takes the experts with w > 0; one with w = 0 exactly has no
    gradient either, so nothing is lost. Once every bit of a token has left the step's slope, it has at most k experts. At first all
    are on, and cost E experts a token.

    If E is not a power of two, a selector can spell a number that no expert has: the weights of a token then sum to less than 1, and
    all can be 0. Prefer powers of two.

    Gates of the paper read a training example or the task; reading a token in a transformer is an extension. No normalisation of h in
    the paper, none here by default. G and Z have no bias and start as U(−0.05, 0.05) and U(−γ/100, γ/100), as in the authors' code.

    Losses: ``entropy``, mean over tokens and selectors of −Σ_e r_e ln(r_e + 1e-6), 0 when each has decided; ``reachable``, mean of
    1 / Σ_e (r_e + 1e-6), 1 when no selector spells a missing number, always so when E is a power of two.

    Public code: the authors' has biases, sums both losses over tokens and selectors, gives ``entropy`` 1e-6 and ``reachable`` 1
    (without epsilon), the latter only if E is not a power of two. The port in SMEAR means them as here and adds them, has no bias,
    normal starts, and reads LayerNorm(h) without scale and shift.

    The distribution over experts is w / Σ w, uniform for a token whose weights are all 0.

    Args:
        d_model: D.
        experts: E.
        k: number of selectors, so the most experts that a decided token has. More than E do no harm. The paper tunes it. With 1, G has
            nothing to weigh and gets no gradient; Z does.
        gamma: γ, the width of the step's slope.
        normalise: read LayerNorm(h) without scale and shift, as the port does: then the length of h cannot push bits off the slope,
            where they get no gradient.

    Raises:
        ValueError: ``k`` is below 1, or ``gamma`` is not above 0.
    """

    losses: ClassVar[tuple[str, ...]] = ("entropy", "reachable")
    code: Tensor

    def __init__(self, d_model: int, experts: int, *, k: int = 2, gamma: float = 1.0, normalise: bool = False):
        super().__init__(d_model, experts)
        if k < 1:
            raise ValueError(f"k {k}: should be at least 1, a selector")
        if not gamma > 0:
            raise ValueError(f"gamma {gamma}: should be above 0, as it is the width of a slope")
        self.gamma = gamma
        self.normalise = normalise
        bits = (experts - 1).bit_length()
        self.mixture = nn.Parameter(torch.empty(k, d_model).uniform_(-0.05, 0.05))  # G
        self.selectors = nn.Parameter(torch.empty(k, bits, d_model).uniform_(-gamma / 100, gamma / 100))  # Z
        code_EM = (torch.arange(experts)[:, None] >> torch.arange(bits - 1, -1, -1)) % 2 == 1
        self.register_buffer("code", code_EM, persistent=False)

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to the experts that its selectors can still mean."""
        h_TD = F.layer_norm(inputs.tokens, (self.d_model,)) if self.normalise else inputs.tokens
        z_TKM = torch.einsum("td,kmd->tkm", h_TD, self.selectors)
        # the polynomial in u = z / γ + 1/2: rounding cannot carry it past 0 or 1, as it does the form in z
        u_TKM = (z_TKM / self.gamma + 0.5).clamp(0, 1)
        step_TK1M = (u_TKM.square() * (3 - 2 * u_TKM))[:, :, None]
        r_TKE = torch.where(self.code, step_TK1M, 1 - step_TK1M).prod(-1)
        weight_TE = ((h_TD @ self.mixture.T).softmax(-1)[..., None] * r_TKE).sum(1)
        selected = max(r_TKE.shape[0] * r_TKE.shape[1], 1)
        losses = {
            "entropy": -(r_TKE * (r_TKE + EPSILON).log()).sum() / selected,
            "reachable": (1 / (r_TKE + EPSILON).sum(-1)).sum() / selected,
        }
        total_T1 = weight_TE.sum(1, keepdim=True)
        probs_TE = torch.where(total_T1 > 0, weight_TE / total_T1, 1 / self.experts)
        return Routing.from_mask(weight_TE > 0, weight_TE, scores=weight_TE, losses=losses, probs=probs_TE)

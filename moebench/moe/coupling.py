"""The loss that couples a router with its experts: each expert should answer its own embedding most, and embeddings their own expert.

D model width, E experts, F inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coupling(embedding_ED: Tensor, gate_EFD: Tensor, alpha: float = 1.0, noise: bool = False) -> Tensor:
    """Σ_{i≠j} max(M_ij − α M_ii, 0) + max(M_ji − α M_ii, 0), over E²; M_ij is the length of embedding i in the gate of expert j.

    Source: the ERC loss of "Coupling Experts and Routers in MoE via an Auxiliary Loss" (Lv et al., arXiv 2512.23447), whose coefficient
    is 1. With ``noise``, for training, the embeddings are first multiplied, entry by entry, with draws from 1 − ε_i to 1 + ε_i,
    ε_i = min_{j≠i} ‖R_i − R_j‖ / (2 ‖R_i‖), a constant to the gradient: they stay nearer to their own embedding than to the next, so each
    stands for the tokens of its expert. Without, the value is deterministic: how far a finished router and its experts are apart, 0 when
    every expert answers its own tokens by 1 / α of what it answers others.

    Args:
        embedding_ED: (E, D) rows of the router.
        gate_EFD: (E, F, D) gate matrices of the experts.
        alpha: α, the largest answer of another expert as a share of the expert's own, above 0; the paper takes 1, and 0.5 for E = 256.
        noise: draw from torch's global generator.

    Returns:
        A scalar, in fp32 at least. 0 for one expert.
    """
    count = len(embedding_ED)
    exact = torch.promote_types(embedding_ED.dtype, torch.float32)
    with torch.autocast(embedding_ED.device.type, enabled=False):
        embedding_ED, gate_EFD = embedding_ED.to(exact), gate_EFD.to(exact)
        if noise and count > 1:
            embedding_ED = embedding_ED * _noise(embedding_ED.detach())
        answers_EEF = (embedding_ED @ gate_EFD.flatten(0, 1).T).unflatten(1, gate_EFD.shape[:2])
        answer_EE = torch.linalg.vector_norm(answers_EEF, dim=-1)
        own_E1 = alpha * answer_EE.diagonal()[:, None]
        excess_EE = (answer_EE - own_E1).relu() + (answer_EE.T - own_E1).relu()
        return (excess_EE.triu(1) + excess_EE.tril(-1)).sum() / count**2


def _noise(embedding_ED: Tensor) -> Tensor:
    """(E, D) factors."""
    distance_EE = torch.cdist(embedding_ED, embedding_ED, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    width_E = distance_EE.amin(1) / (2 * embedding_ED.norm(dim=-1).clamp(min=1e-12))
    return 1 + width_E[:, None] * (2 * torch.rand_like(embedding_ED) - 1)

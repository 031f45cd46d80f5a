"""Parameters and floating-point operations of an encoder, counted analytically.

torch's counter sees neither grouped products nor the fused CPU attention, so the formula stands here; a test checks it against the
counter on the dense path. D width, S positions, E experts.
"""

from __future__ import annotations

from moebench import config
from moebench.models.encoder import Encoder


def flops_per_token(shape: config.Encoder, sparse: config.Sparse | None, router_parameters: int, positions: int) -> int:
    """Forward multiply-add operations per token, an addition and a multiplication counted as two.

    Args:
        shape: the trunk: per block 8 D^2 for the four projections, 4 D S for attention, 4 D F for the feed-forward layer.
        sparse: the inserted layer with one expert a token, or none.
        router_parameters: 2 operations per parameter of the router's matrices.
        positions: S, the sequence length that attention is counted at.
    """
    block = 8 * shape.width**2 + 4 * shape.width * positions + 4 * shape.width * shape.inner
    total = shape.layers * block
    if sparse is not None:
        total += sparse.sublayers * 4 * shape.width * sparse.inner + 2 * router_parameters
    return total


def parameter_counts(encoder: Encoder) -> tuple[int, int]:
    """Return all parameters, and those that one token's forward pass uses when it goes to one expert.

    The embedding counts wholly in both.
    """
    total = sum(parameter.numel() for parameter in encoder.parameters())
    if encoder.sparse is None:
        return total, total
    experts = sum(parameter.numel() for parameter in encoder.sparse.experts.parameters())
    count = next(encoder.sparse.experts.parameters()).shape[0]
    return total, total - experts + experts // count


def costs_of(encoder: Encoder, sparse: config.Sparse | None, positions: int) -> dict[str, int]:
    """Return ``parameters``, ``active_parameters`` and ``flops_per_token`` (forward, at ``positions``) of an encoder without its head."""
    total, active = parameter_counts(encoder)
    router = 0 if encoder.sparse is None else sum(value.numel() for value in encoder.sparse.router.parameters() if value.ndim == 2)
    return {"parameters": total, "active_parameters": active, "flops_per_token": flops_per_token(encoder.shape, sparse, router, positions)}

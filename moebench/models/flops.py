"""Parameters and floating-point operations of an encoder, counted analytically.

torch's counter sees neither grouped products nor the fused CPU attention, so the formula stands here; a test checks it against the
counter on the dense path. D width, S positions, F inner width, E experts.
"""

from __future__ import annotations

from moebench.models import shapes
from moebench.models.decoder import Decoder
from moebench.models.encoder import Encoder


def trunk_flops(shape: shapes.Encoder, positions: int) -> int:
    """Forward operations per token of the dense blocks, an addition and a multiplication counted as two.

    Args:
        shape: per block 8 D² for the four projections, 4 D S for attention, 4 D F for the feed-forward layer.
        positions: S, the sequence length that attention is counted at.
    """
    return shape.layers * (8 * shape.width**2 + 4 * shape.width * positions + 4 * shape.width * shape.inner)


def row_flops(shape: shapes.Encoder, sparse: shapes.Sparse) -> int:
    """Forward operations of one expert on one row: 4 D F a sub-layer."""
    return sparse.sublayers * 4 * shape.width * sparse.inner


def flops_per_token(encoder: Encoder, sparse: shapes.Sparse | None, positions: int, rows: float = 1.0) -> float:
    """Forward operations per token of the whole encoder.

    Args:
        encoder: the encoder.
        sparse: shape of its inserted layer, or none.
        positions: S, tokens of a sequence.
        rows: rows of routed experts a token, as measured; 1 for a top-1 router that drops nothing.
    """
    total: float = trunk_flops(encoder.shape, positions)
    if sparse is not None and encoder.sparse is not None:
        total += (rows + sparse.shared) * row_flops(encoder.shape, sparse) + encoder.sparse.overhead(positions, 1) / positions
    return total


def parameter_counts(encoder: Encoder) -> tuple[int, int]:
    """Return all parameters, and those that one token's forward pass uses when it goes to one routed expert.

    The embedding counts wholly in both.
    """
    total = sum(parameter.numel() for parameter in encoder.parameters())
    if encoder.sparse is None:
        return total, total
    experts = sum(parameter.numel() for parameter in encoder.sparse.experts.parameters())
    return total, total - experts + experts // next(encoder.sparse.experts.parameters()).shape[0]


def costs_of(encoder: Encoder, sparse: shapes.Sparse | None, positions: int, rows: float = 1.0) -> dict[str, int]:
    """Return ``parameters``, ``active_parameters`` and ``flops_per_token`` of an encoder without its head; arguments as above."""
    total, active = parameter_counts(encoder)
    return {"parameters": total, "active_parameters": active, "flops_per_token": round(flops_per_token(encoder, sparse, positions, rows))}


def macs_per_token(decoder: Decoder, rows: float, context: int) -> float:
    """Multiplications of a token's forward pass through a decoder, with its head.

    Args:
        decoder: the decoder.
        rows: rows of routed experts a token takes in a block, as measured.
        context: S; attention is over (S + 1) / 2 keys on average, 2 D of them each. 0 leaves attention's scores out.
    """
    D = decoder.shape.width
    keys = (context + 1) / 2 if context else 0
    total: float = decoder.embedding.weight.numel()
    for layer in decoder.layers:
        total += 4 * D * D + 2 * D * keys + (rows if layer.experts.count > 1 else 1) * layer.flops_per_row / 2 + layer.overhead(1, 1) / 2
    return total


def decoder_costs(decoder: Decoder, rows: float, context: int) -> dict[str, int]:
    """Return ``parameters``, ``active_parameters`` and ``flops_per_token`` of a decoder; arguments as above.

    Active are those that a token's forward pass uses at so many rows a block; the embedding, which is also the head, counts once.
    """
    total = active = sum(parameter.numel() for parameter in decoder.parameters())
    for layer in decoder.layers:
        experts = sum(parameter.numel() for parameter in layer.experts.parameters())
        active -= round(experts * (1 - min(rows, layer.experts.count) / layer.experts.count)) if layer.experts.count > 1 else 0
    return {"parameters": total, "active_parameters": active, "flops_per_token": round(2 * macs_per_token(decoder, rows, context))}

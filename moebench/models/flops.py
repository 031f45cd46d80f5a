"""Parameters and floating-point operations of an encoder or a decoder, counted analytically.

torch's counter sees neither grouped products nor the fused CPU attention, so the formulas stand here; tests check them against the
counter on the dense path. D width, S positions, F inner width, E experts, V vocabulary.

The decoder is not imported: runs depend on what they can import, and those of an encoder, which count its operations here, should not
depend on it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from moebench.models import shapes
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


def macs_per_token(decoder: Any, rows: float, context: int) -> float:
    """Multiplications, each with its addition, of a forward pass per token, head included.

    A block takes 4 D² for the projections and D (S + 1) for attention, 2 D for each of the (S + 1) / 2 keys that a token sees on average;
    its feed-forward layer half of rows · `SparseLayer.flops_per_row` and of `SparseLayer.overhead`, and one for each weight of shared
    experts; the head D V. Norms, rotary positions and softmax are left out.

    Args:
        decoder: a `moebench.models.decoder.Decoder`.
        rows: rows of routed experts a token and sparse block, as measured; 1 in a dense decoder, K where a router sends a token to K
            experts, h·K where it does so with each of h sub-tokens (`moebench.moe.multi_head.MultiHead`), whose rows are D / h wide.
        context: S, the length of a document; 0 leaves out the products of queries and keys, and of probabilities and values.
    """
    D, S = decoder.shape.width, max(context, 1)
    total = float(decoder.embedding.weight.numel())
    for block in decoder.blocks:
        total += 4 * D**2 + (D * (S + 1) if context else 0)
        total += _rows(block, rows) * block.layer.flops_per_row / 2 + block.layer.overhead(S, 1) / S / 2
        total += _size(getattr(block.layer, "shared", None))
    return total


def decoder_costs(decoder: Any, rows: float, context: int) -> dict[str, int]:
    """Return ``parameters``, ``active_parameters`` and ``flops_per_token`` of a decoder; arguments as in `macs_per_token`.

    The tied embedding counts once in both. Active are the parameters that a token's forward pass multiplies with: of a layer whose experts
    choose for themselves also what the experts that were not chosen computed. A token's rows count as those of different experts: where
    its sub-tokens meet in one, fewer are active than this.
    """
    parameters = active = _size(decoder)
    for block in decoder.blocks:
        everything = _size(block.layer.experts)
        routes = getattr(block.layer, "inner", block.layer)  # head and merge maps are no expert's
        chooses = 0 if hasattr(routes, "router") else routes.overhead(1, 1) / 2  # nor are a router's weights
        active -= everything - round(min(everything, _rows(block, rows) * routes.flops_per_row / 2 + chooses))
    flops = round(2 * macs_per_token(decoder, rows, context))
    return {"parameters": parameters, "active_parameters": active, "flops_per_token": flops}


def published_active_parameters(decoder: Any, rows: float) -> int:
    """Active parameters as Autonomy-of-Experts (arXiv 2501.13074) counts them, inferred from its 247M of 732M and 1.18B of 4B.

    The tied embedding counts twice, as embedding and as head; of experts ``rows`` whole ones a block, whatever the others computed.
    """
    experts = sum(_size(block.layer.experts) * (1 - _rows(block, rows) / block.layer.experts.count) for block in decoder.blocks)
    return round(_size(decoder) + decoder.embedding.weight.numel() - experts)


def _rows(block: Any, rows: float) -> float:
    """Those of a block's layer: 1 where it is one network for all tokens, as between layers of experts."""
    return rows if block.layer.experts.count > 1 else 1


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())

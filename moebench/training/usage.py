"""How experts are used on held-out data: sums of batches, and the measures that they make.

T tokens, or sub-tokens, E experts, K chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moebench.metrics.routing import load_entropy, max_violation
from moebench.moe.coupling import coupling
from moebench.moe.layer import Aux, SparseLayer


def used(aux: Aux) -> dict[str, Any]:
    """Return sums over a batch's tokens, or sub-tokens: how many, load (E,), entropy in nats, and the margin of rank (`margins`)."""
    sums: dict[str, Any] = {
        "units": len(aux.probs),
        "load": aux.load.double().cpu().numpy(),
        "entropy": torch.special.entr(aux.probs.double()).sum().item(),
    }
    if aux.routing is not None:
        sums["margin"] = margins(aux.routing.scores, int(aux.load.sum()) // max(len(aux.probs), 1)).sum().item()
    return sums


def margins(scores_TE: Tensor, chosen: int) -> Tensor:
    """(T,) gap between the K-th and the next score, over the deviation of a token's scores; 0 where all are equal or all are chosen.

    An entropy of softmax falls with the size of the scores alone (norms grow with their width and in training); this does not.
    """
    scores_TE = scores_TE.double()
    if not 0 < chosen < scores_TE.shape[1]:
        return scores_TE.new_zeros(len(scores_TE))
    top = scores_TE.topk(chosen + 1).values
    spread_T = scores_TE.std(dim=1, correction=0)
    return torch.where(spread_T > 0, (top[:, -2] - top[:, -1]) / torch.where(spread_T > 0, spread_T, 1), 0)


def measured(
    layers: Mapping[int, SparseLayer],
    batches: Sequence[Mapping[int, dict[str, Any]]],
    tokens: int,
    measure: Callable[[str, str, str, float, int], None],
) -> float:
    """Measure how experts were used: of each block, ``layer<i>`` from 1, and over all of them.

    Args:
        layers: number of a block, from 0 → its layer; those of one expert are left out.
        batches: number of a block → what `used` says of its layer, of each batch.
        tokens: how many there were.
        measure: takes task (``routing``), language, metric, value and n.

    Returns:
        Rows of experts a token and layer; 1 without such layers.
    """
    sparse = {place: layer for place, layer in layers.items() if layer.experts.count != 1}
    if not sparse:
        return 1.0
    loads = {place: sum(batch[place]["load"] for batch in batches) for place in sparse}
    found: dict[str, list[float]] = {}
    for place, load in loads.items():
        share, layer = load / load.sum(), sparse[place]
        units = sum(batch[place]["units"] for batch in batches)
        mine = {"load_entropy": load_entropy(load), "idle": share.max() - share.min(), "max_violation": max_violation(load)}
        mine["experts_per_token"] = load.sum() / tokens
        mine["router_entropy"] = sum(batch[place]["entropy"] for batch in batches) / units
        if "margin" in batches[0][place]:
            mine["rank_margin"] = sum(batch[place]["margin"] for batch in batches) / units
        embedding, gate_EFD = getattr(getattr(layer, "router", None), "embedding", None), getattr(layer.experts, "gate_EFD", None)
        if isinstance(embedding, Tensor) and gate_EFD is not None and embedding.shape == (gate_EFD.shape[0], gate_EFD.shape[2]):
            with torch.no_grad():
                mine["coupling"] = coupling(embedding, gate_EFD).item()
        for metric, value in mine.items():
            measure("routing", f"layer{place + 1:02d}", metric, value, tokens)
            found.setdefault(metric, []).append(value)
        for expert, value in enumerate(share):
            measure("routing", f"layer{place + 1:02d}.expert{expert + 1:03d}", "load", value, tokens)
    for metric, values in found.items():
        measure("routing", "all", metric, math.fsum(values) if metric == "idle" else math.fsum(values) / len(values), tokens)
    return float(np.mean(found["experts_per_token"]))

"""From a plan to the feed-forward layers of a transformer's blocks. D width, E experts, F inner width of an expert, L rank of its gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from moebench.moe.experts import FactorisedExperts, SwiGLUExperts
from moebench.moe.layer import MoELayer, SparseLayer
from moebench.moe.layers.dense import Dense
from moebench.moe.multi_head import MultiHead
from moebench.moe.registry import build_layer, build_router


def feed_forward(
    method: dict[str, Any], sizes: dict[str, int], width: int, inner: int, vocabulary: int, sparse_every: int = 1
) -> Callable[[int], SparseLayer]:
    """Return what makes the layer of block 0, 1, …, its weights drawn from torch's global generator.

    Args:
        method: ``layer``, ``router`` and ``options``; where it has them ``multi_head``, ``shared``, ``coupling`` and ``coupling_alpha``
            (`moebench.models.feed_forward.FeedForwardMethod`).
        sizes: ``experts`` and ``inner`` of its layer, and ``low`` where the gate is factorised (`moebench.models.feed_forward.sizes`).
        width: D.
        inner: of the dense networks between layers of experts, and of shared experts.
        vocabulary: V, for routers that look at token ids.
        sparse_every: blocks number n, 2n, … (from 1) have the layer; the others a dense network.
    """
    alpha = method["coupling_alpha"] if method.get("coupling") else None  # the loss is of training alone
    around = method.get("multi_head")
    own = width // around["heads"] if around else width

    def networks(experts: int, width: int, inner: int, low: int = 0) -> nn.Module:
        return FactorisedExperts(experts, width, low, inner) if low else SwiGLUExperts(experts, width, inner)

    def make(block: int) -> SparseLayer:
        name = f"layer of block {block}"
        if (block + 1) % sparse_every:
            return Dense(width, networks(1, width, inner), name)
        shared = networks(method["shared"], width, inner) if method.get("shared") else None
        experts = networks(sizes["experts"], own, sizes["inner"], sizes.get("low", 0))
        if method["layer"] == "moe":
            router = build_router(method["router"], own, sizes["experts"], method["options"], vocabulary)
            layer: SparseLayer = MoELayer(router, experts, name, None if around else shared, alpha)
        else:
            layer = build_layer(method["layer"], own, experts, method["options"], name)
        if not around:
            return layer
        parts = {key: around[key] for key in ("heads", "head_layers", "merge_layers", "residual")}
        return MultiHead(width, layer, name, **parts, shared=shared)

    return make

"""From a plan to a decoder with random weights. D width, E experts, F inner width of an expert, L rank of its gate."""

from __future__ import annotations

from typing import Any

from torch import nn

from moebench.models.decoder import Decoder
from moebench.models.shapes import Decoder as Shape
from moebench.moe.experts import FactorisedExperts, SwiGLUExperts
from moebench.moe.layer import MoELayer, SparseLayer
from moebench.moe.layers.dense import Dense
from moebench.moe.multi_head import MultiHead
from moebench.moe.registry import build_layer, build_router


def build(plan: dict[str, Any], vocabulary: int) -> Decoder:
    """Build the decoder of a method, its weights drawn from torch's global generator.

    Args:
        plan: of a run (`moebench.protocols.language_model.runs.plan`).
        vocabulary: V.
    """
    shape, method, sizes = Shape.model_validate(plan["decoder"]), plan["method"], plan["sizes"]
    alpha = method["coupling_alpha"] if method.get("coupling") else None  # the loss is of training alone
    around = method.get("multi_head")
    width = shape.width // around["heads"] if around else shape.width

    def networks(experts: int, width: int, inner: int, low: int = 0) -> nn.Module:
        return FactorisedExperts(experts, width, low, inner) if low else SwiGLUExperts(experts, width, inner)

    def feed_forward(block: int) -> SparseLayer:
        name = f"layer of block {block}"
        if (block + 1) % plan.get("sparse_every", 1):
            return Dense(shape.width, networks(1, shape.width, shape.inner), name)
        shared = networks(method["shared"], shape.width, shape.inner) if method.get("shared") else None
        experts = networks(sizes["experts"], width, sizes["inner"], sizes["low"])
        if method["layer"] == "moe":
            router = build_router(method["router"], width, sizes["experts"], method["options"], vocabulary)
            layer: SparseLayer = MoELayer(router, experts, name, None if around else shared, alpha)
        else:
            layer = build_layer(method["layer"], width, experts, method["options"], name)
        if not around:
            return layer
        return MultiHead(
            shape.width,
            layer,
            name,
            heads=around["heads"],
            head_layers=around["head_layers"],
            merge_layers=around["merge_layers"],
            residual=around["residual"],
            shared=shared,
        )

    decoder = Decoder(shape, vocabulary, feed_forward)
    if method.get("one_bit"):
        from moebench.moe.one_bit import one_bit

        one_bit(decoder)
    return decoder

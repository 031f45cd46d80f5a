"""From a plan to a decoder with random weights. D width, E experts, F inner width of an expert, L rank of its gate."""

from __future__ import annotations

from typing import Any

from torch import nn

from moebench.models.decoder import Decoder
from moebench.models.shapes import Decoder as Shape
from moebench.moe.experts import FactorisedExperts, SwiGLUExperts
from moebench.moe.layer import MoELayer, SparseLayer
from moebench.moe.registry import build_layer, build_router


def build(plan: dict[str, Any], vocabulary: int) -> Decoder:
    """Build the decoder of a method, its weights drawn from torch's global generator.

    Args:
        plan: of a run (`moebench.protocols.language_model.runs.plan`).
        vocabulary: V.
    """
    shape, method, sizes = Shape.model_validate(plan["decoder"]), plan["method"], plan["sizes"]
    alpha = method["coupling_alpha"] if method.get("coupling") else None  # the loss is of training alone

    def feed_forward(block: int) -> SparseLayer:
        name, width, experts = f"layer of block {block}", shape.width, sizes["experts"]
        networks: nn.Module = (
            FactorisedExperts(experts, width, sizes["low"], sizes["inner"])
            if sizes["low"]
            else SwiGLUExperts(experts, width, sizes["inner"])
        )
        if method["layer"] != "moe":
            return build_layer(method["layer"], width, networks, method["options"], name)
        router = build_router(method["router"], width, experts, method["options"], vocabulary)
        return MoELayer(router, networks, name, coupling=alpha)

    return Decoder(shape, vocabulary, feed_forward)

"""From a plan to a decoder with random weights."""

from __future__ import annotations

from typing import Any

from moebench.models.decoder import Decoder
from moebench.models.shapes import Decoder as Shape
from moebench.models.sparse_blocks import feed_forward


def build(plan: dict[str, Any], vocabulary: int) -> Decoder:
    """Build the decoder of a method, its weights drawn from torch's global generator.

    Args:
        plan: of a run (`moebench.protocols.language_model.runs.plan`).
        vocabulary: V.
    """
    shape, method = Shape.model_validate(plan["decoder"]), plan["method"]
    layers = feed_forward(method, plan["sizes"], shape.width, shape.inner, vocabulary, plan.get("sparse_every", 1))
    decoder = Decoder(shape, vocabulary, layers)
    if method.get("one_bit"):
        from moebench.moe.one_bit import one_bit

        one_bit(decoder)
    return decoder

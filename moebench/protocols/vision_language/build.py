"""From a plan to an encoder of images and words with random weights."""

from __future__ import annotations

from typing import Any

from moebench.models.shapes import VisionLanguage as Shape
from moebench.models.sparse_blocks import feed_forward
from moebench.models.vision_language import VisionLanguage


def build(plan: dict[str, Any], vocabulary: int, codebook: int) -> VisionLanguage:
    """Build the encoder of a method, its weights drawn from torch's global generator.

    Args:
        plan: of a run (`moebench.protocols.vision_language.runs.plan`).
        vocabulary: V, words; routers that look at ids know the visual tokens behind them.
        codebook: K, visual tokens.
    """
    shape, every = Shape.model_validate(plan["model"]), plan["sparse_every"]
    layers = feed_forward(plan["method"], plan["sizes"], shape.width, shape.inner, vocabulary + codebook, every)
    return VisionLanguage(shape, vocabulary, layers, every)

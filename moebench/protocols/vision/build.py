"""From a method and a setting to a vision transformer with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from moebench.ensembles.batch_ensemble import batch_ensemble_vit
from moebench.ensembles.mimo import mimo_vit
from moebench.errors import MoebenchError
from moebench.models.shapes import Vision
from moebench.models.vit import Mixture, ViT, load_pretrained, placement
from moebench.protocols.vision.config import EXPERTS, Method


def build_vit(
    shape: Vision,
    method: Method,
    experts: int,
    last: int | None,
    classes: int,
    start: Path | None = None,
    *,
    blocks: tuple[int, ...] | None = None,
    group: int | None = None,
) -> ViT:
    """Build a method's transformer, with weights drawn from torch's global generator.

    Args:
        shape: the transformer.
        method: what stands in its blocks, and how many members it has.
        experts: E of a layer of experts.
        last: layers of experts, or BatchEnsemble's blocks, are the last n that can hold one; none: all of these.
        classes: C.
        start: pre-trained weights, those of the dense transformer or of V-MoE; the head is not taken over. None: random weights.
        blocks: these blocks, instead of the last n.
        group: images of a routing group; none: the batch.

    Raises:
        MoebenchError: the weights cannot be read, or are those of another transformer.
    """
    mixture = None
    if method.variant in EXPERTS:
        where: dict[str, Any] = {"variant": method.variant, "last": last, "blocks": blocks}
        mixture = Mixture(**where, experts=experts, group=group, members=method.members, options=method.options)
    model = ViT(shape, classes, mixture)
    if start is not None:
        try:
            weights = load_file(start)
        except (OSError, SafetensorError) as error:
            raise MoebenchError(f"{start}: not a readable checkpoint ({error}); delete its folder and run again") from error
        load_pretrained(model, weights)
    if method.variant == "batch_ensemble":
        batch_ensemble_vit(model, method.members, placement(shape.layers, last, blocks), method.fast_std)
    if method.variant == "mimo":
        mimo_vit(model, method.members)
    return model

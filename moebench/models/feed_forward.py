"""What a method says about the feed-forward layers of a transformer, and how many experts that makes and how wide. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moebench.config import MOE_FOLDER, BaseMethod, Config, Count, Few
from moebench.models.matching import fine_grained, multi_head_experts, multi_head_inner_by_operations, multi_head_inner_by_parameters

Maps = Annotated[Count, Field(le=3)]


class MultiHead(Config):
    """Sub-tokens around the layer of experts (`moebench.moe.multi_head.MultiHead`)."""

    heads: Few
    """h, parts of a token; 1: the maps alone, around whole tokens."""
    head_layers: Maps = 1
    merge_layers: Maps = 1
    residual: bool = False
    """Add a sub-token to what its experts say: equation 6 of arXiv 2404.15045, not its code."""
    parity: Literal["operations", "parameters", "none"] = "operations"
    """How many experts there are and how wide: as many multiplications and parameters as the baseline's experts (arXiv 2411.16205), maps
    included; as many experts and parameters (arXiv 2404.15045); or as if there were no maps, which then come on top."""


class FeedForwardMethod(BaseMethod):
    """A method that is a feed-forward layer of a transformer's blocks."""

    layer: str
    """``dense``: one feed-forward network; ``moe``: router and experts; or a file of ``moebench/moe/layers``."""
    router: str | None = None
    wide: Few = 1
    """The inner width of layer ``dense``, in widths of an expert."""
    split: Few = 1
    """Each expert is split into so many (DeepSeekMoE, arXiv 2401.06066): more and narrower experts; ``options.k`` are chosen."""
    multi_head: MultiHead | None = None
    """Sub-tokens; none: the layer takes whole tokens."""
    shared: Count = 0
    """Experts of the model's width and inner width that see every whole token."""

    @property
    def source(self) -> tuple[Literal["router", "layer"], str]:
        """The router, or the layer if it has none."""
        return ("router", self.router) if self.router is not None else ("layer", self.layer)

    @property
    def heads(self) -> int:
        """Sub-tokens of a token."""
        return self.multi_head.heads if self.multi_head else 1

    @model_validator(mode="after")
    def _parts_fit_the_layer(self) -> FeedForwardMethod:
        if self.layer == "none":
            raise ValueError("layer 'none': a transformer's block has a feed-forward layer, in the simplest case 'dense'")
        if (self.router is None) != (self.layer != "moe"):
            raise ValueError(f"layer {self.layer!r} {'needs a' if self.layer == 'moe' else 'takes no'} router")
        if self.wide > 1 and self.layer != "dense":
            raise ValueError(f"wide {self.wide} belongs to layer 'dense'")
        if self.layer == "dense" and (self.split > 1 or self.shared):
            raise ValueError("split and shared belong to layers of experts")
        if self.shared and self.layer != "moe" and self.multi_head is None:
            raise ValueError(f"shared {self.shared}: belongs to layer 'moe' or to multi_head")
        if self.multi_head is not None and self.split > 1:
            raise ValueError("split is for experts of whole tokens; multi_head has its own parity")
        if self.multi_head is not None and self.layer == "dense" and (self.heads > 1 or self.multi_head.parity != "none"):
            raise ValueError("multi_head around layer 'dense' is its maps alone: give heads 1 and parity none")
        return self


def sizes(method: FeedForwardMethod, width: int, inner: int, experts: int, chosen: int) -> dict[str, int]:
    """Return ``experts`` E and ``inner`` F of a method's layer; those of a multi-head one are of width D / h.

    Args:
        method: what it says.
        width: D.
        inner: F of the baseline's experts.
        experts: E of the baseline.
        chosen: K of the baseline.

    Raises:
        ValueError: widths do not divide, or nothing is left for experts.
    """
    if method.layer == "dense":
        return {"experts": 1, "inner": inner * method.wide}
    layer = method.multi_head
    if layer is None:
        own, count, _ = fine_grained(inner, experts, chosen, method.split)
        return {"experts": count, "inner": own}
    maps = 0 if layer.parity == "none" else layer.head_layers + layer.merge_layers
    if layer.parity == "parameters":
        return {"experts": experts, "inner": multi_head_inner_by_parameters(width, inner, experts, layer.heads, maps=maps)}
    own = multi_head_inner_by_operations(width, inner, chosen, int(method.options.get("k", 1)), maps=maps)
    return {"experts": multi_head_experts(width, inner, experts, layer.heads, own, maps=maps), "inner": own}


def looks_at_attention(router: str) -> bool:
    """What a router's class says, read from its source: importing it would import torch."""
    return "needs_attention: ClassVar[bool] = True" in (MOE_FOLDER / "routers" / f"{router}.py").read_text(encoding="utf-8")

"""Vision transformer, dense or with the expert layers of V-MoE and E³, which end in an ensemble's predictions.

B images, M members of an ensemble, N sequences (copies of images), S positions, D width, H heads, F inner width, E experts, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from moebench.config import Config, Count, Positive
from moebench.errors import MoebenchError
from moebench.models.attention import attend
from moebench.models.shapes import Vision
from moebench.moe.experts import FeedForwardExperts
from moebench.moe.layer import Aux, MoELayer
from moebench.moe.registry import build_router


class Mixture(Config):
    """Expert layers of a vision transformer, and the ensemble made of them.

    | variant | copies of an image | experts of a copy | router | output |
    |---|---|---|---|---|
    | ``vmoe`` | 1 | all | ``noisy_topk`` | 1 |
    | ``e3`` | M | its member's; more with the option ``overlap`` | ``partitioned`` | M |
    | ``only_tiling`` | M | all | ``noisy_topk`` | M |
    | ``only_partitioning`` | 1 | K of every member, averaged in the layer | ``partitioned`` | 1 |
    | ``multi_head`` | 1 | all | ``noisy_topk`` | M heads |

    Without noise and drops the members of ``only_tiling`` are alike. The last two rows are ours: the paper's forms could not be checked.
    """

    variant: Literal["vmoe", "e3", "only_tiling", "only_partitioning", "multi_head"]
    experts: Positive
    last: Positive | None = None
    """In the last n of the odd blocks; none: in all of them, "Every-2". See `placement`."""
    blocks: tuple[Count, ...] | None = None
    """In just these blocks, from 0, whatever ``last`` says."""
    group: Positive | None = None
    """Images of a routing group: experts' queues and losses are of a group, losses the mean over groups. None: the batch is one group.

    V-MoE's ``group_size`` counts tokens, so it is this times the positions, and times the copies; a part of an image is no group here."""
    members: Positive = 1
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the router, but those that the variant decides: ``members`` and ``tiled``."""
    alike: bool = True
    """All experts of a layer start with the same weights, as in the public configurations: members then differ by their routers alone."""

    @model_validator(mode="after")
    def _variant(self) -> Mixture:
        if self.variant == "vmoe" and self.members > 1:
            raise ValueError(f"members {self.members}: V-MoE has 1; the ensembles are e3, only_tiling, only_partitioning, multi_head")
        if decided := self.options.keys() & {"members", "tiled"}:
            raise ValueError(f"options {sorted(decided)} follow from variant and members")
        return self

    @property
    def copies(self) -> int:
        """How many copies of an image there are from the first expert layer on."""
        return self.members if self.variant in ("e3", "only_tiling") else 1

    @property
    def heads(self) -> int:
        """How many linear heads there are."""
        return self.members if self.variant == "multi_head" else 1


def placement(layers: int, last: int | None = None, blocks: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The blocks, from 0, whose feed-forward layer is a layer of experts: the last n of the odd ones, all of them, or those of a list.

    Source: the public configurations of V-MoE (arXiv 2106.05974), "Last-n" and "Every-2"; its code takes any list.

    Args:
        layers: number of blocks.
        last: n; none: all odd blocks.
        blocks: the list; none: what ``last`` says.

    Raises:
        ValueError: there are fewer than n odd blocks, or none with a number of the list.
    """
    if blocks is not None:
        if beyond := [block for block in blocks if not 0 <= block < layers]:
            raise ValueError(
                f"blocks {list(blocks)}: {beyond[0]} should be at least 0 and at most {layers - 1}, the last of {layers} blocks"
            )
        return tuple(sorted(set(blocks)))
    odd = tuple(range(1, layers, 2))
    if last is not None and not 1 <= last <= len(odd):
        raise ValueError(f"last {last}: should be at least 1 and at most {len(odd)}, the number of odd blocks among {layers}")
    return odd if last is None else odd[-last:]


class FeedForward(nn.Module):
    """outer(dropout(GELU(inner(x)))), with flax's approximation of GELU."""

    def __init__(self, width: int, inner: int, dropout: float):
        super().__init__()
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x_NSD: Tensor) -> Tensor:
        """Shapes (N, S, D) in and out."""
        return self.outer(self.dropout(functional.gelu(self.inner(x_NSD), approximate="tanh")))


class Block(nn.Module):
    """x + dropout(attention(LN(x))), then x + dropout(f(LN(x))), where f is a feed-forward layer or a layer of experts in its place.

    Args:
        shape: the transformer.
        layer: f.
        group: sequences of a routing group; none: all.
    """

    def __init__(self, shape: Vision, layer: FeedForward | MoELayer, group: int | None = None):
        super().__init__()
        self.group = group
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.layer_norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.layer = layer
        self.dropout = nn.Dropout(shape.dropout)
        for weight_DD in (*self.qkv.weight.detach().chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight_DD)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_NSD: Tensor) -> tuple[Tensor, Aux | None]:
        """One block; (N, S, D) states, and what the layer of experts reports."""
        x_NSD = x_NSD + self.dropout(self.attention(self.attention_norm(x_NSD)))
        if isinstance(self.layer, MoELayer):
            change_NSD, aux = self.routed(self.layer, self.layer_norm(x_NSD))
            return x_NSD + self.dropout(change_NSD), aux
        return x_NSD + self.dropout(self.layer(self.layer_norm(x_NSD))), None

    def routed(self, layer: MoELayer, x_NSD: Tensor) -> tuple[Tensor, Aux]:
        """A layer of experts on one group after the other; what it reports is summed over groups, the mean of losses."""
        if self.group is None or len(x_NSD) <= self.group:
            return layer(x_NSD)
        changes, auxes = zip(*(layer(part_NSD) for part_NSD in x_NSD.split(self.group)), strict=True)
        losses = {name: torch.stack([aux.losses[name] for aux in auxes]).mean() for name in auxes[0].losses}
        load_E, dropped = torch.stack([aux.load for aux in auxes]).sum(0), sum(aux.dropped for aux in auxes)
        return torch.cat(changes), Aux(losses, load_E, torch.cat([aux.probs for aux in auxes]), dropped)

    def attention(self, x_NSD: Tensor) -> Tensor:
        """Multi-head self-attention without its residual."""
        N, S, D = x_NSD.shape
        query, key, value = self.qkv(x_NSD).view(N, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(attend(query, key, value, x_NSD.new_zeros(1, 1, 1, S)).transpose(1, 2).reshape(N, S, D))


def _expert_layer(shape: Vision, mixture: Mixture, index: int) -> MoELayer:
    name, options = "noisy_topk", dict(mixture.options)
    if mixture.variant in ("e3", "only_partitioning"):
        name, options = "partitioned", options | {"members": mixture.members, "tiled": mixture.variant == "e3"}
    experts = FeedForwardExperts(mixture.experts, shape.width, shape.inner, activation="gelu_tanh")
    with torch.no_grad():
        for weights in (experts.fc1_weight, experts.fc2_weight):
            for weight in weights:
                nn.init.xavier_uniform_(weight)
            if mixture.alike:
                weights.copy_(weights[0].clone())
    return MoELayer(build_router(name, shape.width, mixture.experts, options), experts, f"experts of block {index}")


class ViT(nn.Module):
    """ViT, V-MoE (arXiv 2106.05974), E³ (arXiv 2110.03360) or one of E³'s ablations.

    Layers of experts stand in place of feed-forward layers. The M copies of an image are made before the first block that has one, before
    its attention, as in the public code (after it would be the same without dropout, and cheaper). Image by image: sequence b·M + m is
    member m of image b, as in the public code; the paper goes member by member. All weights but the experts' and
    routers' are shared, the head's too. The batch is one routing group, unless the mixture says otherwise.

    Weights start as in the public code (Xavier's, uniform; positions N(0, 0.02²), class token 0) but the head's, N(0, 0.02²) instead of 0,
    from which several heads would never differ.
    """

    def __init__(self, shape: Vision, classes: int, mixture: Mixture | None = None):
        """Draw the weights from torch's global generator.

        Args:
            shape: the transformer.
            classes: C.
            mixture: layers of experts; none: a dense ViT.

        Raises:
            ValueError: blocks or router options that do not go together.
        """
        super().__init__()
        self.shape = shape
        self.classes = classes
        self.copies, self.heads = (mixture.copies, mixture.heads) if mixture else (1, 1)
        sparse = placement(shape.layers, mixture.last, mixture.blocks) if mixture else ()
        group = mixture.group * self.copies if mixture and mixture.group else None
        self.patches = nn.Conv2d(shape.channels, shape.width, shape.patch, shape.patch)
        self.dropout = nn.Dropout(shape.dropout)
        self.token = nn.Parameter(torch.zeros(shape.width))
        self.positions = nn.Parameter(torch.empty(1 + (shape.image // shape.patch) ** 2, shape.width).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(shape, _expert_layer(shape, mixture, i), group)
            if mixture and i in sparse
            else Block(shape, FeedForward(shape.width, shape.inner, shape.dropout))
            for i in range(shape.layers)
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, self.heads * classes)
        self.tile_before = min(sparse, default=None)
        nn.init.normal_(self.patches.weight, std=(shape.channels * shape.patch**2) ** -0.5)
        nn.init.zeros_(self.patches.get_parameter("bias"))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> tuple[Tensor, list[Aux]]:
        """What the head is given: the class token's last state.

        Args:
            images: (B, channels, side, side).

        Returns:
            (B, copies, D), and what each layer of experts reports, in order.

        Raises:
            ValueError: images of another size.
        """
        expected = (self.shape.channels, self.shape.image, self.shape.image)
        if images.shape[1:] != expected:
            raise ValueError(f"images of shape {tuple(images.shape[1:])}: should be {expected}")
        patches_BSD = self.patches(images).flatten(2).transpose(1, 2)
        x_NSD = self.dropout(torch.cat([self.token.expand(len(images), 1, -1), patches_BSD], 1) + self.positions)
        reports = []
        for index, block in enumerate(self.blocks):
            if index == self.tile_before:
                x_NSD = x_NSD.repeat_interleave(self.copies, 0)
            x_NSD, aux = block(x_NSD)
            if aux is not None:
                reports.append(aux)
        return self.norm(x_NSD[:, 0]).unflatten(0, (-1, self.copies)), reports

    def forward(self, images: Tensor) -> tuple[Tensor, list[Aux]]:
        """Classify.

        Args:
            images: (B, channels, side, side).

        Returns:
            (B, M, C) logits of the members, M = 1 without an ensemble; and what each layer of experts reports, in order: a loss of theirs
            counts once a layer.

        Raises:
            ValueError: images of another size.
        """
        features_BMD, reports = self.features(images)
        return self.classified(features_BMD), reports

    def classified(self, features_BMD: Tensor) -> Tensor:
        """The heads on what `features` returned: (B, M, C) logits."""
        return self.head(features_BMD.flatten(0, 1)).view(len(features_BMD), self.copies * self.heads, self.classes)


def mean_cross_entropy(logits_BMC: Tensor, labels_B: Tensor) -> Tensor:
    """The loss in training: the mean over members and images of each member's own cross-entropy, nats.

    Evaluation takes that of `ensemble_log_probs` instead, which is never more (Jensen).
    """
    return functional.cross_entropy(logits_BMC.flatten(0, 1), labels_B.repeat_interleave(logits_BMC.shape[1]))


def ensemble_log_probs(logits_BMC: Tensor) -> Tensor:
    """The prediction: (B, C) logarithms of the mean of the members' probabilities."""
    return logits_BMC.log_softmax(-1).logsumexp(1) - math.log(logits_BMC.shape[1])


def load_pretrained(model: ViT, weights: Mapping[str, Tensor]) -> None:
    """Start from another vision transformer's weights; the head, which is for other classes, stays as it is.

    A V-MoE's weights have the names and shapes of E³'s and its ablations'. Where the images have another size the positions are
    interpolated linearly on the grid of patches, corner to corner, as in the public code.

    Args:
        model: changed in place.
        weights: the other's ``state_dict``, of a model with as many blocks, experts and the same widths.

    Raises:
        MoebenchError: names or shapes do not fit.
    """
    kept = {name: value for name, value in weights.items() if not name.startswith("head.")}
    if "positions" in kept:
        kept["positions"] = _resized(kept["positions"], len(model.positions))
    try:
        missing, unexpected = model.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise MoebenchError(f"the weights are of another vision transformer: {error}") from error
    missing = [name for name in missing if not name.startswith("head.")]
    if missing or unexpected:
        raise MoebenchError(f"the weights are of another vision transformer: missing {missing[:5]}, unexpected {unexpected[:5]}")


def _resized(positions_SD: Tensor, length: int) -> Tensor:
    """The positions of another number of patches: the class token's as it is, the others interpolated."""
    old, new = math.isqrt(len(positions_SD) - 1), math.isqrt(length - 1)
    grid = positions_SD[1:].T.unflatten(1, (old, old))[None]
    resized = functional.interpolate(grid, (new, new), mode="bilinear", align_corners=True)[0]
    return torch.cat([positions_SD[:1], resized.flatten(1).T])


def flops_per_image(model: ViT, rows: float = 1.0) -> float:
    """Forward operations an image, an addition and a multiplication counted as two; all copies and the heads included.

    A block takes 8 S D² + 4 S² D for attention and 4 S D F for the feed-forward layer, or that times the rows and the router's.

    Args:
        model: the transformer.
        rows: rows of experts a token, as measured; where nothing is dropped K, with only partitioning M·K.
    """
    shape, (S, D) = model.shape, model.positions.shape
    total = 2.0 * (S - 1) * model.patches.weight.numel() + model.copies * 2 * model.head.weight.numel()
    copies = 1
    for index, block in enumerate(model.blocks):
        if index == model.tile_before:
            copies = model.copies
        feed_forward = 4.0 * S * D * shape.inner
        if isinstance(block.layer, MoELayer):
            feed_forward = rows * feed_forward + block.layer.overhead(S, 1)
        total += copies * (8 * S * D**2 + 4 * S**2 * D + feed_forward)
    return total

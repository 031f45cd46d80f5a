"""Shapes of models, as settings give them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moebench.config import Config, Count, Few, Positive, Rate, Real, Share


class Encoder(Config):
    """Transformer encoder. Shapes: D width, H heads, F inner width of a feed-forward layer, L layers."""

    layers: Annotated[Few, Field(ge=2)]
    width: Positive
    heads: Positive
    inner: Positive
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["relative", "learned"] = "learned"
    """``relative``: a learned bias per head and distance; ``learned``: absolute embeddings, counted from 0."""
    max_positions: Positive = 512
    token_types: Count = 0
    epsilon: Rate = 1e-5
    dropout: Share = 0.0
    initial_std: Rate = 0.02
    """Standard deviation of the initial weights and embeddings; 0.02 is that of BERT at width 768."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Encoder:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def weights(self) -> int:
        """How many there are, about, without the pieces' embedding and the inserted layer."""
        return self.width * (self.layers * (4 * self.width + 2 * self.inner) + self.max_positions + self.token_types)


class Decoder(Config):
    """Decoder in the layout of Llama (arXiv 2302.13971). Shapes: D width, H heads, F inner width of one feed-forward network, L layers."""

    layers: Few
    width: Positive
    heads: Positive
    inner: Positive
    context: Positive
    """The longest sequence, in tokens."""
    base: Annotated[Real, Field(gt=1)] = 10000.0
    """Of the rotary positions' wavelengths."""
    epsilon: Rate = 1e-5
    initial_std: Rate = 0.02
    """Standard deviation of the initial weights and embeddings."""

    @model_validator(mode="after")
    def _heads_are_even_parts_of_the_width(self) -> Decoder:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is not a multiple of 2 · heads {self.heads}: rotary positions turn pairs of a head's numbers"
            )
        return self

    @property
    def weights(self) -> int:
        """How many there are, about, without the pieces' embedding and with one feed-forward network a block."""
        return self.width * self.layers * (4 * self.width + 3 * self.inner)


class Sparse(Config):
    """The sparse layer inserted after the middle block: E experts, each a stack of feed-forward sub-layers."""

    experts: Positive
    sublayers: Few = 3
    inner: Positive
    identity: bool = False
    """Start with experts whose output is zero, so that step 0 equals the model without the layer exactly."""
    shared: Count = 0
    """Experts that see every token, beside the routed ones."""


class Vision(Config):
    """Shape of a vision transformer (arXiv 2010.11929): square images, square patches, pre-norm blocks, a class token."""

    image: Positive
    """Side in pixels."""
    patch: Positive
    channels: Few = 3
    layers: Few
    width: Positive
    heads: Positive
    inner: Positive
    dropout: Share = 0.0
    """Of the embedded patches, the output of attention, and the activations and the output of a feed-forward layer, as in the public code;
    of a layer of experts only the output, where the public code drops inside each expert. All but one of its configurations have 0."""

    @model_validator(mode="after")
    def _parts_divide_the_whole(self) -> Vision:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.image % self.patch:
            raise ValueError(f"image {self.image} is not a multiple of patch {self.patch}")
        return self

    @property
    def weights(self) -> int:
        """How many there are, about, without layers of experts and the head."""
        return self.width * (self.layers * (4 * self.width + 2 * self.inner) + self.patch**2 * self.channels)


class VisionLanguage(Config):
    """Encoder of images and words in one sequence, as BEiT-3's (arXiv 2208.10442): square images, square patches, pre-norm blocks.

    Shapes: D width, H heads, F inner width of one feed-forward network, L layers, P patch, C channels, S words.
    """

    image: Positive
    """Side in pixels."""
    patch: Positive
    """Side of a patch in pixels."""
    channels: Few = 3
    layers: Few
    width: Positive
    heads: Positive
    inner: Positive
    words: Annotated[Positive, Field(ge=4)]
    """The longest text in tokens, the special ones before and after it included."""
    dropout: Share = 0.0
    epsilon: Rate = 1e-5
    initial_std: Rate = 0.02
    """Standard deviation of the initial weights and embeddings."""

    @model_validator(mode="after")
    def _parts_divide_the_whole(self) -> VisionLanguage:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.image % self.patch:
            raise ValueError(f"image {self.image} is not a multiple of patch {self.patch}")
        return self

    @property
    def patches(self) -> int:
        """T, patches of an image."""
        return (self.image // self.patch) ** 2

    @property
    def positions(self) -> int:
        """The longest sequence: a class token, the patches of an image, and a text."""
        return 1 + self.patches + self.words

    @property
    def weights(self) -> int:
        """How many there are, about, without embedding of words, layers of experts and heads; two networks a block, one a modality."""
        blocks = self.layers * (4 * self.width + 6 * self.inner)
        return self.width * (blocks + self.patch**2 * self.channels + self.positions)

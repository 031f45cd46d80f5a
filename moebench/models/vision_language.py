"""Encoder of images and words in one sequence, after BEiT-3: shared attention, dense networks of each modality, layers of experts of both.

B rows, T patches, W words, S = 1 + T + W positions, X pixels of a patch, D width, H heads, F inner width, V vocabulary, K visual tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from moebench.models import shapes
from moebench.models.attention import attend
from moebench.moe.layer import Aux, SparseLayer

PAD, CLASS, SEPARATOR, MASK, UNKNOWN = range(5)
"""Ids of the special words: padding, before a text, after it, in place of a masked word, any word that the vocabulary lacks."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + f(norm(x)).

    f is either one layer, for all tokens, or two networks, one for the tokens of images and one for words.
    """

    layers: nn.ModuleList
    """f; two are those of images and of words."""

    def __init__(self, shape: shapes.VisionLanguage):
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.layer_norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    def attention(self, x_BSD: Tensor, bias: Tensor) -> Tensor:
        """Multi-head self-attention without its residual; ``bias`` as in `attend`."""
        B, S, D = x_BSD.shape
        query, key, value = self.qkv(x_BSD).view(B, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.dropout(self.out(attend(query, key, value, bias).transpose(1, 2).reshape(B, S, D)))

    def feed_forward(
        self, x_BSD: Tensor, mask_BS: Tensor | None, ids_BS: Tensor | None, document_BS: Tensor | None, words: int
    ) -> tuple[Tensor, Aux | None]:
        """The change by f, and what a layer for all tokens reports; from position ``words`` on there are words."""
        if len(self.layers) == 1:
            change_BSD, aux = self.layers[0](x_BSD, mask_BS, ids_BS, document_BS=document_BS)
            return self.dropout(change_BSD), aux
        masks = (None, None) if mask_BS is None else (mask_BS[:, :words], mask_BS[:, words:])
        sides = zip(self.layers, (x_BSD[:, :words], x_BSD[:, words:]), masks, strict=True)
        return self.dropout(torch.cat([network(side_BND, mask_BN)[0] for network, side_BND, mask_BN in sides], 1)), None


class VisionLanguage(nn.Module):
    """BEiT-3's encoder (arXiv 2208.10442) with the networks of this suite, to be pre-trained by masking and fine-tuned.

    A sequence is an image, a text, or an image and then a text: a learned class token, the patches under a linear map, and the embedded
    words, each with the learned position that it has in its modality. A text begins with a class token of its own, a word.

    Blocks number n, 2n, … (from 1; n is ``sparse_every``) have the method's layer, for the tokens of both modalities. The other blocks have
    one dense network for each modality, BEiT-3's *multiway* feed-forward layers. The dense baseline has them there, too, and one network
    for both in blocks n, 2n, …: every method has the same trunk, and a token the same operations as in a layer that sends it to one
    expert. Multi-Head MoE (arXiv 2404.15045) says "the same encoder as BEiT-3" and not how experts and multiway networks go together;
    torchscale's code of BEiT-3 refuses both at once.

    Of BEiT-3 the paper has one self-attention module for both modalities, its code (torchscale) projections and norms of each; here they
    are shared, as in the paper. Its networks have GELU, and its code a norm in each network and in attention; here they are SwiGLU, plain,
    so that parity between methods holds.

    Weights start as N(0, initial_std²), biases at 0, norms at 1 and 0. The trunk is drawn before the first feed-forward layer, so that
    encoders with the same seed start from the same trunk. Experts draw their own weights at a standard deviation of 0.02 and are scaled
    here to ``initial_std``; routers start as they like.
    """

    def __init__(self, shape: shapes.VisionLanguage, vocabulary: int, feed_forward: Callable[[int], SparseLayer], sparse_every: int = 1):
        """Draw the weights from torch's global generator.

        Args:
            shape: the trunk.
            vocabulary: V, words.
            feed_forward: makes the feed-forward layer of block 0, 1, …; called in this order, and twice where there is a network for each
                modality.
            sparse_every: n.

        Raises:
            ValueError: a feed-forward layer needs attention probabilities, which are not computed here.
        """
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(vocabulary, shape.width)
        self.word_positions = nn.Embedding(shape.words, shape.width)
        self.patches = nn.Linear(shape.patch**2 * shape.channels, shape.width)
        self.patch_positions = nn.Embedding(1 + shape.patches, shape.width)
        self.special = nn.Embedding(2, shape.width)  # the class token of images, and what stands for a masked patch
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=shape.initial_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for index, block in enumerate(self.each_block):
            block.layers = nn.ModuleList(feed_forward(index) for _ in range(2 if (index + 1) % sparse_every else 1))
            for layer in cast("list[SparseLayer]", list(block.layers)):
                if layer.needs_attention:
                    raise ValueError(f"{layer.name}: its router looks at attention probabilities, which this encoder does not compute")
                for experts in (layer.experts, getattr(layer, "shared", None)):
                    for name, parameter in experts.named_parameters() if experts is not None else ():
                        if "norm" not in name:
                            parameter.data.mul_(shape.initial_std / 0.02)

    @property
    def each_block(self) -> list[Block]:
        """The blocks."""
        return cast("list[Block]", list(self.blocks))

    @property
    def layers(self) -> dict[int, SparseLayer]:
        """Number of a block, from 0 → its layer, of those that have one for all tokens."""
        return {index: cast(SparseLayer, block.layers[0]) for index, block in enumerate(self.each_block) if len(block.layers) == 1}

    def forward(
        self,
        patches_BTX: Tensor | None,
        words_BW: Tensor | None,
        mask_BS: Tensor | None = None,
        *,
        visual_BT: Tensor | None = None,
        hidden_BT: Tensor | None = None,
        apart_B: Tensor | None = None,
        causal: bool = False,
    ) -> tuple[Tensor, list[Aux]]:
        """Encode.

        Args:
            patches_BTX: pixels of images, row of patches by row of patches, a pixel's channels side by side; none: there are no images.
            words_BW: ids of words; none: there are no texts.
            mask_BS: true at real tokens, of the class token, patches and words; each row has one. None: all are real.
            visual_BT: the patches' visual tokens, for routers that look at ids: V + k is the id of visual token k. The class token has that
                of the text's, a masked patch that of a masked word.
            hidden_BT: true at masked patches, of which nothing is seen; none: all are seen.
            apart_B: true where the row's image and text are not of each other: neither sees the other, and to a router they are two
                sequences, so that the row is as good as two rows. None: all rows are pairs.
            causal: words see the image and the words before them, and the image does not see the words.

        Returns:
            (B, S, D) states after the last norm, arbitrary but finite at padding; and what each layer for all tokens reports.

        Raises:
            ValueError: images or texts of another size than the shape's, or neither.
        """
        parts, ids, begin = [], [], 0
        if patches_BTX is not None:
            parts.append(self._images(patches_BTX, hidden_BT))
            begin = parts[0].shape[1]
            if visual_BT is not None:
                visual_BT = visual_BT + self.words.num_embeddings
                class_B1 = visual_BT.new_full((len(visual_BT), 1), CLASS)
                ids = [class_B1, visual_BT if hidden_BT is None else visual_BT.masked_fill(hidden_BT, MASK)]
        if words_BW is not None:
            if words_BW.shape[1] > self.shape.words:
                raise ValueError(f"texts of {words_BW.shape[1]} words: should be at most {self.shape.words}")
            parts.append(self.words(words_BW) + self.word_positions.weight[: words_BW.shape[1]])
            ids.append(words_BW)
        if not parts:
            raise ValueError("neither images nor texts")
        x_BSD = self.dropout(torch.cat(parts, 1))
        ids_BS = None if patches_BTX is not None and visual_BT is None else torch.cat(ids, 1)
        if mask_BS is not None and mask_BS.all():
            mask_BS = None
        word_S = torch.arange(x_BSD.shape[1], device=x_BSD.device) >= begin
        document_BS = None if apart_B is None else (apart_B[:, None] & word_S).long()
        bias = self._bias(word_S, mask_BS, apart_B, causal)
        reports = []
        for block in self.each_block:
            x_BSD = x_BSD + block.attention(block.attention_norm(x_BSD), bias)
            change_BSD, aux = block.feed_forward(block.layer_norm(x_BSD), mask_BS, ids_BS, document_BS, begin)
            x_BSD = x_BSD + change_BSD
            if aux is not None:
                reports.append(aux)
        return self.norm(x_BSD), reports

    def _images(self, patches_BTX: Tensor, hidden_BT: Tensor | None) -> Tensor:
        """(B, 1 + T, D) class token and patches, with their positions."""
        size = (self.shape.patches, self.patches.in_features)
        if patches_BTX.shape[1:] != size:
            raise ValueError(f"images of {tuple(patches_BTX.shape[1:])} patches and pixels: should be {size}")
        x_BTD = self.patches(patches_BTX)
        if hidden_BT is not None:
            x_BTD = torch.where(hidden_BT[..., None], self.special.weight[1].to(x_BTD.dtype), x_BTD)
        class_B1D = self.special.weight[0].to(x_BTD.dtype).expand(len(x_BTD), 1, -1)
        return torch.cat([class_B1D, x_BTD], 1) + self.patch_positions.weight

    @staticmethod
    def _bias(word_S: Tensor, mask_BS: Tensor | None, apart_B: Tensor | None, causal: bool) -> Tensor:
        """0 where a query (last axis but one) sees a key (last axis) and -inf where not, broadcast to (B, H, S, S)."""
        S = len(word_S)
        visible = word_S.new_ones(1, 1, S) if mask_BS is None else mask_BS[:, None]
        if causal:
            visible = visible & (~word_S | word_S.new_ones(S, S).tril())
        if apart_B is not None:
            visible = visible & ((word_S[:, None] == word_S) | ~apart_B[:, None, None])
            visible = visible | torch.eye(S, dtype=torch.bool, device=word_S.device)  # so that no softmax is over nothing
        return torch.zeros(visible.shape, device=word_S.device).masked_fill(~visible, -math.inf)[:, None]


def macs_per_token(encoder: VisionLanguage, rows: float, words: int) -> float:
    """Multiplications, each with its addition, of a forward pass per token, of an image and ``words`` words; without a head.

    A block takes 4 D² for the projections and 2 D S for attention; its feed-forward network for a modality 3 D F, its layer for all tokens
    half of rows · `SparseLayer.flops_per_row` and of `SparseLayer.overhead`, and one for each weight of shared experts. The linear map of
    patches takes T X D an image. Norms and softmax are left out.

    Args:
        encoder: the encoder.
        rows: rows of routed experts a token and layer, as measured; 1 for dense layers, K where a router sends a token to K experts, h·K
            where it does so with each of h sub-tokens.
        words: W.
    """
    shape = encoder.shape
    S = 1 + shape.patches + words
    total = shape.patches * encoder.patches.weight.numel() / S
    for block in encoder.each_block:
        layer = cast(SparseLayer, block.layers[0])
        total += 4 * shape.width**2 + 2 * shape.width * S
        total += (rows if layer.experts.count != 1 else 1) * layer.flops_per_row / 2 + layer.overhead(S, 1) / S / 2
        total += _size(getattr(layer, "shared", None))
    return total


def costs(encoder: VisionLanguage, rows: float) -> dict[str, int]:
    """Return ``parameters``, ``active_parameters`` and ``flops_per_token`` of an encoder, without heads, on an image with the longest text.

    Active are the parameters that a token's forward pass multiplies with: of two networks one, of experts those of its rows, which count
    as different ones. Embeddings count wholly.
    """
    parameters = active = _size(encoder)
    for block in encoder.each_block:
        layer = cast(SparseLayer, block.layers[0])
        if len(block.layers) == 2:
            active -= _size(block.layers[1])
        elif cast(int, layer.experts.count) > 1:
            routes = getattr(layer, "inner", layer)  # head and merge maps are no expert's
            chooses = 0 if hasattr(routes, "router") else routes.overhead(1, 1) / 2  # nor are a router's weights
            everything = _size(layer.experts)
            active -= everything - round(min(everything, rows * layer.flops_per_row / 2 + chooses))
    return {
        "parameters": parameters,
        "active_parameters": active,
        "flops_per_token": round(2 * macs_per_token(encoder, rows, encoder.shape.words)),
    }


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())

"""Transformer encoder, with an optional sparse layer inserted after the middle block.

B sequences, S positions, D width, H heads, F inner width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from moebench.models import shapes
from moebench.models.attention import attend, attention_probs
from moebench.moe.layer import Aux, SparseLayer


class RelativeBias(nn.Module):
    """A learned bias per head and signed distance, shared by all blocks; distances are clipped at ``reach``."""

    def __init__(self, heads: int, reach: int = 64):
        super().__init__()
        self.reach = reach
        self.table = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(self, positions: int) -> Tensor:
        """Return the (1, H, S, S) bias for ``positions`` = S."""
        place = torch.arange(positions, device=self.table.device)
        distance = (place[None, :] - place[:, None]).clamp(-self.reach, self.reach) + self.reach
        return self.table[:, distance][None]


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each with a residual and layer normalisation before or after it."""

    def __init__(self, shape: shapes.Encoder):
        super().__init__()
        self.heads = shape.heads
        self.pre = shape.norm == "pre"
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.inner = nn.Linear(shape.width, shape.inner)
        self.outer = nn.Linear(shape.inner, shape.width)
        self.attention_norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.feed_forward_norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    def attention(self, x_BSD: Tensor, bias: Tensor) -> Tensor:
        """Multi-head self-attention without its residual."""
        query, key, value = self._projections(x_BSD)
        return self.dropout(self.out(attend(query, key, value, bias).transpose(1, 2).reshape(x_BSD.shape)))

    def attention_of(self, x_BSD: Tensor, bias: Tensor) -> Tensor:
        """Return the (B, H, S, S) attention probabilities of this block for the same input, without dropout."""
        query, key, _ = self._projections(self.attention_norm(x_BSD) if self.pre else x_BSD)
        return attention_probs(query, key, bias)

    def _projections(self, x_BSD: Tensor) -> Tensor:
        B, S, D = x_BSD.shape
        return self.qkv(x_BSD).view(B, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)

    def feed_forward(self, x_BSD: Tensor) -> Tensor:
        """The feed-forward layer without its residual."""
        return self.dropout(self.outer(functional.gelu(self.inner(x_BSD))))

    def forward(self, x_BSD: Tensor, bias: Tensor) -> Tensor:
        """One block; shapes (B, S, D) in and out."""
        if self.pre:
            x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), bias)
            return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))
        x_BSD = self.attention_norm(x_BSD + self.attention(x_BSD, bias))
        return self.feed_forward_norm(x_BSD + self.feed_forward(x_BSD))


class Encoder(nn.Module):
    """Encoder after BERT (post-norm, learned positions) or with pre-norm and relative positions.

    The sparse layer, where there is one, is *inserted* after the middle block, as in X-MoE (arXiv 2204.09179, section 4.1),
    h' = h + layer(h): the blocks around it are those of the dense encoder.
    """

    def __init__(self, shape: shapes.Encoder, vocabulary: int, sparse: SparseLayer | None = None):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Embedding(shape.max_positions, shape.width) if shape.positions == "learned" else None
        self.types = nn.Embedding(shape.token_types, shape.width) if shape.token_types else None
        self.bias = RelativeBias(shape.heads) if shape.positions == "relative" else None
        self.norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=shape.initial_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        self.sparse = sparse

    def freeze(self, embedding: bool, blocks: int) -> None:
        """Keep the word embedding as it is, or all embeddings and the lower ``blocks``: no gradient is computed below them."""
        self.embedding.requires_grad_(not embedding)
        if blocks:
            embeddings = (self.embedding, self.positions, self.types, self.bias, None if self.blocks[0].pre else self.norm)
            for module in (*embeddings, *self.blocks[:blocks]):
                if module is not None:
                    module.requires_grad_(False)

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> tuple[Tensor, Aux | None]:
        """Encode.

        Args:
            ids_BS: token ids.
            mask_BS: true where there is a token, false where there is padding.

        Returns:
            (B, S, D) states, and what the sparse layer reports (none in a dense encoder).
        """
        S = ids_BS.shape[1]
        x_BSD = self.embedding(ids_BS)
        if self.positions is not None:
            if self.positions.num_embeddings < S:
                raise ValueError(f"a sequence of {S} tokens does not fit max_positions {self.positions.num_embeddings}")
            x_BSD = x_BSD + self.positions.weight[:S]
        if self.types is not None:
            x_BSD = x_BSD + self.types.weight[0]
        if not self.blocks[0].pre:
            x_BSD = self.norm(x_BSD)
        x_BSD = self.dropout(x_BSD)
        bias = torch.zeros(mask_BS.shape, dtype=torch.float32, device=x_BSD.device).masked_fill(~mask_BS, -math.inf)[:, None, None, :]
        if self.bias is not None:
            bias = bias + self.bias(S)
        aux = None
        for index, block in enumerate(cast("Iterable[Block]", self.blocks), start=1):
            before_BSD, x_BSD = x_BSD, block(x_BSD, bias)
            if self.sparse is not None and index == len(self.blocks) // 2:
                probs_BHSS = block.attention_of(before_BSD, bias) if self.sparse.needs_attention else None
                change_BSD, aux = self.sparse(x_BSD, mask_BS, ids_BS, probs_BHSS)
                x_BSD = x_BSD + change_BSD
        return (self.norm(x_BSD) if self.blocks[0].pre else x_BSD), aux

"""Decoder in the layout of Llama: causal attention with rotary positions, a sparse layer as every block's feed-forward layer.

B sequences, S positions that are new, C positions in the cache, T = C + S, D width, H heads, d = D / H, L blocks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, nll_loss, scaled_dot_product_attention

from moebench.models import shapes
from moebench.moe.layer import Aux, SparseLayer

CHUNK = 512
"""So many tokens' logits are made at a time in training."""


class Cache:
    """Keys and values of the tokens that a decoder has seen, block by block; empty when made, grows with every call that it is given to."""

    def __init__(self) -> None:
        self.blocks: list[tuple[Tensor, Tensor]] = []
        """Keys and values of a block, each (B, H, C, d)."""
        self.mask: Tensor | None = None
        """(B, C), true at real tokens; none: all are real."""

    @property
    def length(self) -> int:
        """C, padding counted."""
        return self.blocks[0][0].shape[2] if self.blocks else 0

    def extend(self, block: int, key_BHSd: Tensor, value_BHSd: Tensor) -> tuple[Tensor, Tensor]:
        """Append a block's keys and values; returns all of them, (B, H, T, d) each."""
        if block == len(self.blocks):
            self.blocks.append((key_BHSd, value_BHSd))
        else:
            key_BHCd, value_BHCd = self.blocks[block]
            self.blocks[block] = torch.cat([key_BHCd, key_BHSd], 2), torch.cat([value_BHCd, value_BHSd], 2)
        return self.blocks[block]


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · g (arXiv 1910.07467), computed in fp32; fp64 stays fp64."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D), in the type of ``x_BSD``."""
        exact = torch.promote_types(x_BSD.dtype, torch.float32)
        given = x_BSD.to(exact), self.weight.to(exact), self.epsilon
        normed_BSD = cast(Tensor, _Normed.apply(*given)) if torch.is_grad_enabled() else _normed(*given)[0]
        return normed_BSD.to(x_BSD.dtype)


def _normed(x_BSD: Tensor, weight_D: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The norm, and (B, S, 1) what each token was multiplied with."""
    norm_BS1 = torch.linalg.vector_norm(x_BSD, dim=-1, keepdim=True)
    scale_BS1 = norm_BS1.square_().div_(x_BSD.shape[-1]).add_(epsilon).rsqrt_()
    return (x_BSD * scale_BS1).mul_(weight_D), scale_BS1


class _Normed(torch.autograd.Function):
    """RMSNorm that keeps its input and one number a token; on a CPU it takes half the time of `torch.nn.functional.rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        normed_BSD, scale_BS1 = _normed(x_BSD, weight_D, epsilon)
        ctx.save_for_backward(x_BSD, weight_D, scale_BS1)
        return normed_BSD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSD: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BSD, weight_D, scale_BS1 = ctx.saved_tensors
        with torch.autocast(grad_BSD.device.type, enabled=False):
            product_TD, scale_T = (grad_BSD * x_BSD).flatten(0, -2), scale_BS1.flatten()
            inner_BS1 = (product_TD @ weight_D).mul_(scale_T.pow(3)).div_(len(weight_D)).view_as(scale_BS1)
            return (grad_BSD * weight_D).mul_(scale_BS1).addcmul_(x_BSD, inner_BS1, value=-1), scale_T @ product_TD, None


def rotations(positions_BS: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary positions (RoPE, arXiv 2104.09864), pair i turning by position · base^(−2i/d).

    Args:
        positions_BS: (B, S) places.
        width: d.
        base: of the wavelengths.

    Returns:
        (B, S, 1, 1, d) each, fp32, for `rotate`. A pair is number i of a head and number i + d / 2, as in Llama's published weights; the
        first has minus the sine.
    """
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device=positions_BS.device) / width
    angle = positions_BS[..., None, None, None].float() * (1.0 / base**exponent)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of each head, (B, S, N, H, d), by their position's angles, in fp32 at least."""
    return cast(Tensor, _Rotated.apply(x, cos, sin)) if torch.is_grad_enabled() else _turned(x, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    swapped = torch.cat(x.chunk(2, -1)[::-1], -1)
    return swapped.mul(sin).addcmul_(x.to(torch.promote_types(x.dtype, sin.dtype)), cos).to(x.dtype)


class _Rotated(torch.autograd.Function):
    """The gradient is turned back; plain autograd would add up those of the halves, in twice the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


class Block(nn.Module):
    """x + attention(norm(x)), then x + layer(norm(x)); no biases."""

    layer: SparseLayer

    def __init__(self, shape: shapes.Decoder):
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = RMSNorm(shape.width, shape.epsilon)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.layer_norm = RMSNorm(shape.width, shape.epsilon)

    def attention(self, x_BSD: Tensor, turns: tuple[Tensor, Tensor], visible: Tensor | None, cache: Cache | None, index: int) -> Tensor:
        """Multi-head causal self-attention without its residual.

        Args:
            x_BSD: normed states.
            turns: what `rotations` says of the positions.
            visible: (B, 1, S, T), true where a query sees a key; none: all keys that are not after it.
            cache: extended here; none: there is nothing before.
            index: the block's number in it.
        """
        B, S, D = x_BSD.shape
        both, value = self.qkv(x_BSD).view(B, S, 3, self.heads, D // self.heads).split([2, 1], 2)
        query, key = rotate(both, *turns).unbind(2)
        query_BHSd, key_BHTd, value_BHTd = query.transpose(1, 2), key.transpose(1, 2), value[:, :, 0].transpose(1, 2)
        if cache is not None:
            key_BHTd, value_BHTd = cache.extend(index, key_BHTd, value_BHTd)
        causal = visible is None and S > 1
        y_BHSd = scaled_dot_product_attention(query_BHSd, key_BHTd, value_BHTd, attn_mask=visible, is_causal=causal)
        return self.out(y_BHSd.transpose(1, 2).reshape(B, S, D))


class Decoder(nn.Module):
    """Llama's layout (arXiv 2302.13971): RMSNorm before each layer, rotary positions, no biases, no dropout; embedding and head are tied.

    Every block's feed-forward layer is a `SparseLayer`; `moebench.moe.layers.dense.Dense` with one SwiGLU expert makes the decoder Llama.

    Weights start as N(0, initial_std²), norms at 1. The trunk (embedding, attention) is drawn before the first feed-forward layer, so that
    decoders with the same seed start from the same trunk. Experts draw their own weights at a standard deviation of 0.02 and are scaled
    here to ``initial_std``; routers start as they like.
    """

    def __init__(self, shape: shapes.Decoder, vocabulary: int, feed_forward: Callable[[int], SparseLayer]):
        """Draw the weights from torch's global generator.

        Args:
            shape: the trunk.
            vocabulary: V, rows of the embedding.
            feed_forward: makes the feed-forward layer of block 0, 1, …, called in this order.

        Raises:
            ValueError: a feed-forward layer needs attention probabilities, which are not computed here.
        """
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.epsilon)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=shape.initial_std)
        for index, block in enumerate(cast("Iterable[Block]", self.blocks)):
            block.layer = feed_forward(index)
            if block.layer.needs_attention:
                raise ValueError(f"{block.layer.name}: its router looks at attention probabilities, which a decoder does not compute")
            for experts in (block.layer.experts, getattr(block.layer, "shared", None)):
                for name, parameter in experts.named_parameters() if experts is not None else ():
                    if "norm" not in name:
                        parameter.data.mul_(shape.initial_std / 0.02)

    @property
    def layers(self) -> list[SparseLayer]:
        """The feed-forward layers, block after block."""
        return [block.layer for block in cast("Iterable[Block]", self.blocks)]

    def forward(
        self, ids_BS: Tensor, mask_BS: Tensor | None = None, positions_BS: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, list[Aux]]:
        """States from which `logits` predicts the token after each.

        Rows that pack several documents are told by their positions: a 0 begins a document, and a token sees its own document alone.

        Args:
            ids_BS: token ids; with a cache those that follow what it holds.
            mask_BS: true at the real tokens of ``ids_BS``, padding left or right of them; none: all are real. The cache remembers the
                masks of earlier calls.
            positions_BS: each token's place in its document; none: a row is one document, counted from 0 over real tokens.
            cache: what was seen before, extended here by these tokens; none: nothing was, and nothing is kept.

        Returns:
            (B, S, D) states after the last norm, arbitrary but finite at padding; and what each block's feed-forward layer reports.

        Raises:
            ValueError: the sequence is longer than the shape's context, or positions are given along with a cache.
        """
        (B, S), shape = ids_BS.shape, self.shape
        before = 0 if cache is None else cache.length
        if before + S > shape.context:
            raise ValueError(f"a sequence of {before + S} tokens does not fit context {shape.context}")
        if cache is not None and positions_BS is not None:
            raise ValueError("positions and a cache: packed documents have no cache, and the cache counts positions itself")
        if mask_BS is not None:
            mask_BS = None if mask_BS.all() else mask_BS.bool()
        document_BS = None
        if positions_BS is not None:
            starts_BS = positions_BS == 0 if mask_BS is None else (positions_BS == 0) & mask_BS
            if starts_BS[:, 1:].any():
                document_BS = starts_BS.cumsum(1)
        seen_BT = mask_BS
        if cache is not None:
            if before and (mask_BS is not None or cache.mask is not None):
                past_BC = ids_BS.new_ones(B, before, dtype=torch.bool) if cache.mask is None else cache.mask
                seen_BT = torch.cat([past_BC, torch.ones_like(ids_BS, dtype=torch.bool) if mask_BS is None else mask_BS], 1)
            cache.mask = seen_BT
        if positions_BS is None:
            if seen_BT is None:
                positions_BS = torch.arange(before, before + S, device=ids_BS.device)[None]
            else:
                positions_BS = (seen_BT.cumsum(1)[:, before:] - 1).clamp(min=0)
        turns = rotations(positions_BS, shape.width // shape.heads, shape.base)
        visible = self._visible(S, before, seen_BT, document_BS, ids_BS.device)
        x_BSD = self.embedding(ids_BS)
        reports = []
        for index, block in enumerate(cast("Iterable[Block]", self.blocks)):
            x_BSD = x_BSD + block.attention(block.attention_norm(x_BSD), turns, visible, cache, index)
            change_BSD, aux = block.layer(block.layer_norm(x_BSD), mask_BS, ids_BS, document_BS=document_BS)
            x_BSD = x_BSD + change_BSD
            reports.append(aux)
        return self.norm(x_BSD), reports

    @staticmethod
    def _visible(S: int, before: int, seen_BT: Tensor | None, document_BS: Tensor | None, device: torch.device) -> Tensor | None:
        """(B or 1, 1, S, T), true where a query sees a key; none: the keys that are not after it."""
        if seen_BT is None and document_BS is None and (not before or S == 1):
            return None
        own_ST = torch.ones(S, before + S, dtype=torch.bool, device=device).tril(before)
        visible = own_ST[None]
        if document_BS is not None:
            visible = visible & (document_BS[:, :, None] == document_BS[:, None, :])
        if seen_BT is not None:  # a padding token sees itself, so that no softmax is over nothing
            visible = visible & seen_BT[:, None, :] | torch.eye(S, before + S, dtype=torch.bool, device=device).roll(before, 1)
        return visible[:, None]

    def logits(self, states_BSD: Tensor) -> Tensor:
        """(B, S, V) logits of the token after each state, by the tied embedding; any leading axes."""
        return linear(states_BSD, self.embedding.weight)

    def loss(self, states_BSD: Tensor, targets_BS: Tensor) -> Tensor:
        """Mean negative log-likelihood of the targets (-100: none), 0 with a gradient of 0 without any; the states' leading axes are any.

        The logits of `CHUNK` tokens at a time are made and used, forward and backward, so they need no memory of their own and stay in the
        processor's cache; in fp32 at least.
        """
        return cast(Tensor, _NextToken.apply(states_BSD.flatten(0, -2), self.embedding.weight, targets_BS.flatten()))


class _NextToken(torch.autograd.Function):
    """Cross-entropy behind a linear head; the gradients are made in the forward pass, for a gradient of 1."""

    @staticmethod
    def forward(ctx: Any, states_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
        device = states_TD.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states_TD.dtype
        exact = torch.promote_types(kind, torch.float32)
        learns = any(ctx.needs_input_grad)
        to_states_TD = torch.empty_like(states_TD) if learns else states_TD.new_empty(0)
        to_weight_VD = torch.zeros_like(weight_VD, dtype=exact) if learns else states_TD.new_empty(0)
        weight_VD = weight_VD.to(kind)
        targets = (targets_T != -100).sum().clamp(min=1)
        loss = torch.zeros((), dtype=exact, device=states_TD.device)
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(states_TD), CHUNK):
                states_ND, targets_N = states_TD[begin : begin + CHUNK].to(kind), targets_T[begin : begin + CHUNK]
                log_NV = (states_ND @ weight_VD.T).to(exact).log_softmax(-1)
                loss += nll_loss(log_NV, targets_N, reduction="sum")
                if learns:
                    share_N1 = ((targets_N != -100).to(exact) / targets)[:, None]
                    grad_NV = log_NV.exp_().mul_(share_N1).scatter_add_(1, targets_N.clamp(min=0)[:, None], -share_N1).to(kind)
                    to_states_TD[begin : begin + CHUNK] = grad_NV @ weight_VD
                    to_weight_VD.addmm_(grad_NV.T, states_ND) if kind == exact else to_weight_VD.add_(grad_NV.T @ states_ND)
        ctx.save_for_backward(to_states_TD, to_weight_VD)
        return loss / targets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        to_states_TD, to_weight_VD = ctx.saved_tensors
        return (to_states_TD * grad).to(to_states_TD.dtype), to_weight_VD * grad, None


@torch.no_grad()
def generate(decoder: Decoder, ids_BS: Tensor, mask_BS: Tensor | None, most: int, stop_ids: Sequence[int]) -> Tensor:
    """Continue prompts greedily, a token at a time, with a cache.

    Args:
        decoder: in evaluation mode, if its routers behave otherwise in training.
        ids_BS: prompts, with padding on the left.
        mask_BS: true at their real tokens; none: all are real.
        most: the most new tokens of a prompt.
        stop_ids: a prompt ends with the first of these.

    Returns:
        (B, N) new ids, N ≤ ``most`` the length of the longest continuation; after a stop id, that id again.

    Raises:
        ValueError: a prompt has padding on the right, or prompt and continuation do not fit the context.
    """
    if mask_BS is not None and not mask_BS[:, -1].all():
        raise ValueError("prompts are continued after their last token: padding should be on the left")
    new: list[Tensor] = []
    cache, stops = Cache(), torch.tensor(list(stop_ids), dtype=ids_BS.dtype, device=ids_BS.device)
    ended_B = torch.zeros(len(ids_BS), dtype=torch.bool, device=ids_BS.device)
    for _ in range(most):
        states_BSD, _ = decoder(ids_BS, mask_BS, cache=cache)
        next_B1 = decoder.logits(states_BSD[:, -1]).argmax(-1, keepdim=True)
        if new:
            next_B1 = torch.where(ended_B[:, None], new[-1], next_B1)
        new.append(next_B1)
        ended_B = ended_B | torch.isin(next_B1[:, 0], stops)
        if ended_B.all():
            break
        ids_BS, mask_BS = next_B1, None
    return torch.cat(new, 1) if new else ids_BS[:, :0]

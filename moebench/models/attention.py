"""Scaled dot-product attention by the path that trains fastest: the explicit product or torch's fused kernel.

B sequences, H heads, S positions, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

EXPLICIT_LIMIT = 512
"""In half precision on a CPU the explicit product takes half the time of the fused kernel at 128 to this many positions; longer was not
timed, and its (B, H, S, S) probabilities grow."""


def attend(query_BHSd: Tensor, key_BHSd: Tensor, value_BHSd: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ / √d + bias) v.

    Args:
        query_BHSd: queries; keys and values have the same shape and type.
        key_BHSd: keys.
        value_BHSd: values.
        bias: added to the scores, broadcast to (B, H, S, S); ``-inf`` hides a position. Every query must see at least one position.

    Returns:
        (B, H, S, d) weighted values.
    """
    B, H, S, d = value_BHSd.shape
    half = value_BHSd.dtype.itemsize < 4 and S <= EXPLICIT_LIMIT
    # torch's fused CPU kernel gives a bias no gradient: with a learned one it falls back to a product that is slower than ours
    if value_BHSd.device.type == "cpu" and (half or bias.requires_grad):
        probs_BHSS = attention_probs(query_BHSd, key_BHSd, bias)
        return torch.bmm(probs_BHSS.view(B * H, S, S), value_BHSd.reshape(B * H, S, d)).view(B, H, S, d)
    return scaled_dot_product_attention(query_BHSd, key_BHSd, value_BHSd, attn_mask=bias.to(query_BHSd.dtype))


def attention_probs(query_BHSd: Tensor, key_BHSd: Tensor, bias: Tensor) -> Tensor:
    """(B, H, S, S) probabilities softmax(q kᵀ / √d + bias) of the queries over the keys; arguments as in `attend`."""
    B, H, S, d = query_BHSd.shape
    query_NSd, key_NSd = query_BHSd.reshape(B * H, S, d), key_BHSd.reshape(B * H, S, d)
    bias = bias.to(query_BHSd.dtype)
    bias = bias.expand(B, H, *bias.shape[2:]).reshape(B * H, *bias.shape[2:])
    scores_NSS = torch.baddbmm(bias, query_NSd, key_NSd.transpose(1, 2), alpha=d**-0.5)  # scale and bias in the product's own pass
    return scores_NSS.softmax(dim=-1).view(B, H, S, S)

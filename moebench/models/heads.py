"""What stands on the encoder: the masked-language-model head and the task heads.

B sequences, S positions, D width, V vocabulary, C classes, W words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class MaskedLMHead(nn.Module):
    """Scores the vocabulary at the masked positions, with the embedding as the output matrix (tied)."""

    def __init__(self, width: int, vocabulary: int, epsilon: float, initial_std: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=initial_std)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states_ND: Tensor, embedding_VD: Tensor) -> Tensor:
        """Return (N, V) logits for N masked positions."""
        return functional.linear(self.norm(functional.gelu(self.dense(states_ND))), embedding_VD, self.bias)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class PairHead(nn.Module):
    """Classifies two texts from the states of ``<s>``, the means a and b of both texts, |a - b| and a * b."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.linear = _linear(5 * width, classes)

    def forward(self, states_BSD: Tensor, segment_BS: Tensor) -> Tensor:
        """Return (B, C) logits; ``segment_BS`` is 1 on the first text, 2 on the second, 0 elsewhere."""
        first, second = (_mean(states_BSD, segment_BS == number) for number in (1, 2))
        return self.linear(torch.cat([states_BSD[:, 0], first, second, (first - second).abs(), first * second], dim=-1))


def _mean(states_BSD: Tensor, chosen_BS: Tensor) -> Tensor:
    weight_BS1 = chosen_BS[..., None].to(states_BSD.dtype)
    return (states_BSD * weight_BS1).sum(dim=1) / weight_BS1.sum(dim=1).clamp(min=1)


class TagHead(nn.Module):
    """Classifies each word from the state of the piece that stands for it."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.linear = _linear(width, classes)

    def forward(self, states_BSD: Tensor, first_BW: Tensor) -> Tensor:
        """Return (B, W, C) logits; ``first_BW`` holds a position per word (padding: any position)."""
        return self.linear(states_BSD.gather(1, first_BW[..., None].expand(-1, -1, states_BSD.shape[-1])))


class SpanHead(nn.Module):
    """Scores each position as the start and as the end of the answer."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = _linear(width, 2)

    def forward(self, states_BSD: Tensor, allowed_BS: Tensor) -> Tensor:
        """Return (B, S, 2) start and end logits, ``-inf`` where no answer may stand."""
        return self.linear(states_BSD).float().masked_fill(~allowed_BS[..., None], float("-inf"))

"""Hash layers (Roller et al., arXiv 2106.04426): a fixed table says which expert a vocabulary piece belongs to.

T tokens, E experts, V vocabulary pieces.
"""

from __future__ import annotations

import heapq
import random
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.moe.contract import Router, RouterInputs, Routing


class Hash(Router):
    """k = table[id], with weight 1. Nothing is learned and the table never changes; it is a buffer, saved with the model.

    Tables. ``balanced``: `before_training` walks the pieces by falling frequency in the training corpus and gives
    each to the expert with the fewest tokens so far; among equal pieces and experts the lowest index comes first. A piece that the corpus
    lacks weighs as one that occurs once (the paper leaves it open), else all of them would go to one expert. ``random``: a uniform
    expert per piece; seed and draws are those of the public code (ParlAI), which has this table only. ``modulo``: id mod E, as in ReMoE's
    Hash baseline.

    Every layer and every run with the same corpus has the same table. Scores and probabilities are one-hot.

    Public code: ParlAI normalises an expert's output after its residual sum; here that is the experts' matter.

    Losses: none.

    Args:
        d_model: width of the tokens, which are not looked at.
        experts: E.
        vocabulary: V.
        table: which table.
    """

    table: Tensor

    def __init__(self, d_model: int, experts: int, *, vocabulary: int, table: Literal["balanced", "random", "modulo"] = "balanced"):
        super().__init__(d_model, experts)
        if vocabulary < 1:
            raise ValueError(f"vocabulary {vocabulary}: should be at least 1, the table has a row per piece")
        self.kind = table
        if table == "random":
            draw = random.Random(42)
            table_V = torch.tensor([draw.randrange(experts) for _ in range(vocabulary)])
        elif table == "modulo":
            table_V = torch.arange(vocabulary) % experts
        else:
            table_V = torch.full((vocabulary,), -1)  # until before_training or a checkpoint fills it
        self.register_buffer("table", table_V)

    def before_training(self, token_counts: Tensor) -> None:
        """Fill the balanced table.

        Raises:
            ValueError: ``token_counts`` is for another vocabulary.
        """
        if self.kind != "balanced":
            return
        if len(token_counts) != len(self.table):
            raise ValueError(f"token counts of {len(token_counts)} pieces: should be {len(self.table)}, the vocabulary")
        counts_V = token_counts.cpu().clamp(min=1)
        order_V = counts_V.argsort(descending=True, stable=True).tolist()
        counts = counts_V.tolist()
        lightest = [(0, expert) for expert in range(self.experts)]  # a heap of (tokens so far, expert)
        table = [0] * len(counts)
        for piece in order_V:
            tokens, expert = lightest[0]
            table[piece] = expert
            heapq.heapreplace(lightest, (tokens + counts[piece], expert))
        self.table.copy_(torch.tensor(table))

    def forward(self, inputs: RouterInputs) -> Routing:
        """Look every token up.

        Raises:
            RuntimeError: the balanced table is empty.
        """
        expert_T = self.table[inputs.require("token_ids")]
        if (expert_T < 0).any():
            raise RuntimeError("the balanced hash table is empty: call before_training(token_counts) first, or load a checkpoint")
        one_hot_TE = F.one_hot(expert_T, self.experts).to(inputs.tokens.dtype)
        weight_T = inputs.tokens.new_ones(len(expert_T))
        return Routing.top1(expert_T, weight_T, scores=one_hot_TE, losses={}, probs=one_hot_TE)

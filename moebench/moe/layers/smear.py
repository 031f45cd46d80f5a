"""Soft merging (SMEAR, Muqeeth et al., arXiv 2306.03745): one expert a sequence, whose parameters are a mean of all experts' parameters.

T tokens, D model width, E experts, B sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moebench.moe.contract import RouterInputs
from moebench.moe.layer import Aux, SparseLayer


class SMEAR(SparseLayer):
    """z = mean of a sequence's tokens, p = softmax(LN(z) · LN'(W) + b), θ = Σ_e p_e θ_e; y_t = expert_θ(x_t) for its tokens.

    There is no choice, so neither capacity nor losses. In training each p_e is set to 0 with probability ``dropout``, and p made to sum
    to 1 again as (p + 1e-10) / Σ (p + 1e-10): uniform where all were dropped.

    W starts as N(0, 0.01²), the scale of LN' at 0.01, b at 0, as in the public code. LN' has no shift: it would add the same to all
    logits. Public code also averages over padding; here z is over real tokens. The paper merges narrow adapters (D / 32 wide): every
    sequence of a batch has merged parameters of its own, so the memory is B experts.

    `Aux.load` is the mass of each expert, Σ over tokens of p.

    Args:
        d_model: D.
        experts: a module of E experts, all parameters with a leading E axis.
        name: what errors call this layer.
        dropout: probability that an expert is left out for a sequence in training.

    Raises:
        ValueError: ``dropout`` is not in [0, 1).
    """

    causal = False

    def __init__(self, d_model: int, experts: nn.Module, name: str = "smear", *, dropout: float = 0.1):
        super().__init__(name)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout}: should be at least 0 and below 1, which would merge all experts alike")
        self.experts = experts
        self.dropout = dropout
        count = next(experts.parameters()).shape[0]
        self.embedding = nn.Parameter(torch.empty(count, d_model).normal_(std=0.01))
        self.bias = nn.Parameter(torch.zeros(count))
        self.token_norm = nn.LayerNorm(d_model)
        self.embedding_norm = nn.LayerNorm(d_model, bias=False)
        nn.init.constant_(self.embedding_norm.weight, 0.01)

    def change(self, tokens_TD: Tensor, inputs: RouterInputs) -> tuple[Tensor, Aux]:
        """Merge the experts for every sequence, run its tokens through the result."""
        sequence_T = inputs.require("sequence_ids")
        lengths_B = sequence_T.bincount(minlength=1)  # one empty sequence stands for none at all
        with torch.autocast(tokens_TD.device.type, enabled=False):
            probs_BE = self._probs(inputs.tokens, sequence_T, lengths_B)
            merged = {
                key: (probs_BE.to(stacked.dtype) @ stacked.flatten(1)).unflatten(1, stacked.shape[1:])
                for key, stacked in self.experts.named_parameters()
            }
        change_TD = torch.func.functional_call(self.experts, merged, (tokens_TD, lengths_B))  # tokens stand sequence after sequence
        probs_TE = probs_BE.detach()[sequence_T]
        return change_TD, Aux({}, probs_TE.sum(0), probs_TE)

    def _probs(self, tokens_TD: Tensor, sequence_T: Tensor, lengths_B: Tensor) -> Tensor:
        sum_BD = tokens_TD.new_zeros(len(lengths_B), tokens_TD.shape[1]).index_add(0, sequence_T, tokens_TD)
        z_BD = sum_BD / lengths_B.clamp(min=1)[:, None]
        logits_BE = self.token_norm(z_BD) @ self.embedding_norm(self.embedding).T + self.bias
        self.check_finite(scores=logits_BE)
        probs_BE = logits_BE.softmax(-1)
        if self.training and self.dropout:
            kept_BE = torch.rand_like(probs_BE) >= self.dropout
            probs_BE = probs_BE * kept_BE + 1e-10
            probs_BE = probs_BE / probs_BE.sum(-1, keepdim=True)
        return probs_BE

    def overhead(self, tokens: int, sequences: int) -> int:
        """Operations of the logits and of the merging, both once a sequence."""
        return 2 * sequences * (self.embedding.numel() + sum(parameter.numel() for parameter in self.experts.parameters()))

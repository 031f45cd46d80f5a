"""Auxiliary losses of routers, unscaled.

T tokens, E experts, A assignments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class Losses(Mapping[str, Tensor]):
    """Losses of a router by name, each computed when it is first read: evaluation reads none of them, and training only what it weights.

    Args:
        losses: name → what computes it, from what the router has at hand.
    """

    def __init__(self, **losses: Callable[[], Tensor]):
        self._waiting = losses
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The scalar; computed once, outside autocast like the router itself."""
        if name not in self._known:
            compute = self._waiting[name]
            with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
                self._known[name] = compute()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        """Names in the order in which they were given."""
        return iter(self._waiting)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._waiting)


def load_balance(probs_TE: Tensor, expert_A: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e, where f_e is the share of assignments sent to expert e and P_e the mean over tokens of its probability.

    1 when the probabilities are uniform, E when all tokens go to one expert with certainty, 0 without tokens. Only P carries a gradient.
    Assignments count as chosen: a capacity drops them afterwards.

    Source: Switch (arXiv 2101.03961, eqs. 4-6), X-MoE (arXiv 2204.09179, section 3.1). MoEc's code sums over tokens where this
    averages, and adds 1e-6 to each f_e.

    Args:
        probs_TE: (T, E) probabilities of the experts, rows summing to 1.
        expert_A: (A,) chosen experts.

    Returns:
        A scalar.
    """
    tokens, experts = probs_TE.shape
    share_E = torch.bincount(expert_A, minlength=experts).to(probs_TE.dtype) / max(len(expert_A), 1)
    return experts * (share_E * probs_TE.sum(0)).sum() / max(tokens, 1)


def router_z(logits_TE: Tensor) -> Tensor:
    """Mean over tokens of (log Σ_e exp logit_e)²; 0 without tokens. Keeps the logits of a softmax small.

    Source: ST-MoE (arXiv 2202.08906, eq. 5), whose coefficient is 1e-3.

    Args:
        logits_TE: (T, E) what the softmax over experts is taken of.

    Returns:
        A scalar.
    """
    return logits_TE.logsumexp(dim=-1).square().sum() / max(len(logits_TE), 1)


def squared_variation(values: Tensor) -> Tensor:
    """(σ / μ)² over the last axis, with the population's σ: 0 when all are equal, or all are 0.

    Source: Shazeer et al. (arXiv 1701.06538, eqs. 6-7), of importances and loads.
    """
    mean = values.mean(dim=-1)
    return (values.std(dim=-1, correction=0) / torch.where(mean == 0, 1, mean)).square()

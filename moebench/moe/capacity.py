"""A limit on how many tokens an expert takes: an explicit filter on assignments.

A assignments in the order in which they queue, E experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_factors(**factors: float | None) -> None:
    """Raise ValueError with the name and the value of a capacity factor that is not above 0; none means no limit."""
    for name, factor in factors.items():
        if factor is not None and not factor > 0:
            raise ValueError(f"{name} {factor}: should be above 0, or none for no limit")


def capacity(factor: float, tokens: int, experts: int) -> int:
    """C = ⌊factor · ⌈T / E⌉⌋, at least 1: TorchScale's rounding, which leaves no expert without a place however few the tokens are."""
    return max(int(factor * math.ceil(tokens / experts)), 1)


def queue_position(expert_A: Tensor) -> Tensor:
    """How many earlier assignments go to the same expert; an expert of capacity C takes those with a position below C.

    Source: GShard (arXiv 2006.16668, algorithm 1), whose running counts per expert this is. The order of the list is the priority: for
    top-2 all first choices stand before all second ones, for batch priority the most confident tokens stand first.

    Args:
        expert_A: (A,) chosen experts, first come first.

    Returns:
        (A,) positions from 0.
    """
    order_A = expert_A.argsort(stable=True)
    sorted_A = expert_A[order_A]
    place_A = torch.arange(len(expert_A), device=expert_A.device)
    begin_A = torch.searchsorted(sorted_A, sorted_A)  # where the expert's segment begins
    return torch.empty_like(place_A).index_copy_(0, order_A, place_A - begin_A)

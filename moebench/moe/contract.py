"""What a router is given, what it decides, and the base class of all routers.

T real tokens, D model width, E experts, A assignments: (token, expert) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RouterInputs:
    """The real tokens of a batch, sequence after sequence; padding is already gone."""

    tokens: Tensor
    """(T, D), fp32 or fp64."""
    token_ids: Tensor | None = None
    """(T,) vocabulary ids."""
    sequence_ids: Tensor | None = None
    """(T,) which sequence of the batch a token is from."""
    step: int = 0
    """Optimiser steps taken so far."""


@dataclass(frozen=True)
class Routing:
    """A router's decision, as a flat list of assignments: a token may have one, several or none."""

    token: Tensor
    """(A,) index of the token."""
    expert: Tensor
    """(A,) index of the expert."""
    weight: Tensor
    """(A,) factor of the expert's output; carries the gradient to the router."""
    scores: Tensor
    """(T, E) what the choice was made from, for analysis: detached."""
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    """Name → unscaled scalar; the coefficients belong to whoever trains."""

    @classmethod
    def top1(cls, expert_T: Tensor, weight_T: Tensor, *, scores: Tensor, losses: Mapping[str, Tensor]) -> Routing:
        """One expert for every token, in token order; ``scores`` are detached here."""
        return cls(torch.arange(len(expert_T), device=expert_T.device), expert_T, weight_T, scores.detach(), losses)

    @property
    def load(self) -> Tensor:
        """(E,) number of assignments of each expert."""
        return torch.bincount(self.expert, minlength=self.scores.shape[1])


class Router(nn.Module):
    """Decides which experts see which tokens.

    A router is one file ``routers/<name>.py`` with one class that names ``Router`` as its base. Its options are the keyword-only
    parameters of ``__init__``: annotated with int, float, bool, str, None, Literal or unions of them, defaults written as literals.
    Methods are configured from that signature, which is read without importing the file.

    `MoELayer` calls it outside autocast, with tokens in fp32 at least. Whatever changes during training, other than parameters,
    lives in buffers, so that a resumed run is the same run.
    """

    def __init__(self, d_model: int, experts: int):
        super().__init__()
        self.d_model = d_model
        self.experts = experts

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route T tokens; T may be 0."""
        raise NotImplementedError

    def after_optimizer_step(self) -> None:
        """Restore what the router promises to hold (a norm, a bias); called after every optimiser step.

        Does nothing here. A router whose parameters are frozen (``requires_grad`` off) must not change.
        """

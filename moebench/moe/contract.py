"""What a router is given, what it decides, and the base class of all routers.

T real tokens, D model width, E experts, A assignments: (token, expert) pairs, H heads, S positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

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
    """(T,) which sequence of the batch a token is from, rising."""
    positions: Tensor | None = None
    """(T,) a token's place in its sequence, padding counted."""
    attention: Tensor | None = None
    """(T, H, S) attention probabilities of a token's row in the block before the layer, without dropout; 0 at padding."""
    heads: int = 1
    """Rows a token: 1, or the sub-tokens of `moebench.moe.multi_head.MultiHead`, side by side; each has all that is known of its token."""

    def require(self, name: str) -> Tensor:
        """Return a field that a router cannot do without.

        Raises:
            ValueError: the field was not given.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this router needs {name}, which the layer was not given")
        return value


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
    probs: Tensor | None = None
    """(T, E) the distribution over experts that entropies are taken of, detached; none: softmax of the scores."""
    dropped: int = 0
    """Assignments that a capacity refused; they are not in the list."""

    @classmethod
    def top1(
        cls, expert_T: Tensor, weight_T: Tensor, *, scores: Tensor, losses: Mapping[str, Tensor], probs: Tensor | None = None
    ) -> Routing:
        """One expert for every token, in token order; ``scores`` and ``probs`` are detached here."""
        return cls.topk(expert_T[:, None], weight_T[:, None], scores=scores, losses=losses, probs=probs)

    @classmethod
    def topk(
        cls,
        expert_TK: Tensor,
        weight_TK: Tensor,
        *,
        scores: Tensor,
        losses: Mapping[str, Tensor],
        probs: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Routing:
        """K experts for every token, token after token; where ``kept`` (T, K) is false, an assignment was dropped."""
        token_A = torch.arange(len(expert_TK), device=expert_TK.device).repeat_interleave(expert_TK.shape[1])
        expert_A, weight_A, dropped = expert_TK.flatten(), weight_TK.flatten(), 0
        if kept is not None:
            kept_A = kept.flatten()
            token_A, expert_A, weight_A, dropped = token_A[kept_A], expert_A[kept_A], weight_A[kept_A], int((~kept_A).sum())
        return cls(token_A, expert_A, weight_A, scores.detach(), losses, None if probs is None else probs.detach(), dropped)

    @classmethod
    def from_mask(
        cls, active_TE: Tensor, weight_TE: Tensor, *, scores: Tensor, losses: Mapping[str, Tensor], probs: Tensor | None = None
    ) -> Routing:
        """Any number of experts a token: those where ``active_TE`` (T, E) is true."""
        token_A, expert_A = active_TE.nonzero(as_tuple=True)
        return cls(token_A, expert_A, weight_TE[token_A, expert_A], scores.detach(), losses, None if probs is None else probs.detach())

    @cached_property
    def load(self) -> Tensor:
        """(E,) number of assignments of each expert."""
        return torch.bincount(self.expert, minlength=self.scores.shape[1])


class Router(nn.Module):
    """Decides which experts see which tokens.

    A router is one file ``routers/<name>.py`` with one class that names ``Router`` as its base. Its options are the keyword-only
    parameters of ``__init__``: annotated with int, float, bool, str, None, Literal or unions of them, defaults written as literals.
    Methods are configured from that signature, which is read without importing the file. A keyword-only ``vocabulary: int`` is no
    option: whoever builds the router gives the number of vocabulary pieces.

    `MoELayer` calls it outside autocast, with tokens in fp32 at least. Whatever changes during training, other than parameters,
    lives in buffers, so that a resumed run is the same run. Randomness comes from torch's global generator and only in training:
    in evaluation a token's routing depends on its own sequence alone.
    """

    losses: ClassVar[tuple[str, ...]] = ()
    """Names of the losses that `forward` reports, a literal; whoever trains gives each a coefficient (``z`` may be left out)."""
    untaught: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Options, a literal, that together make every weight constant, so that the router gets no gradient of the task; refused in methods."""
    causal: ClassVar[bool] = True
    """Whether, in evaluation, a token's routing depends on no later token."""
    needs_attention: ClassVar[bool] = False
    """Whether `RouterInputs.attention` is needed."""

    def __init__(self, d_model: int, experts: int):
        super().__init__()
        self.d_model = d_model
        self.experts = experts

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route T tokens; T may be 0."""
        raise NotImplementedError

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations a token, an addition and a multiplication counted as two: here one product with every matrix."""
        return 2 * sum(parameter.numel() for parameter in self.parameters() if parameter.ndim >= 2)

    def before_training(self, token_counts: Tensor) -> None:
        """Build what follows from the training corpus; called once, on a new router, where there is a corpus. Does nothing here.

        Args:
            token_counts: (V,) how often each vocabulary piece occurs in the training corpus.
        """

    def after_optimizer_step(self) -> None:
        """Update or restore the router's state (a bias, a held norm); called after every optimiser step, unless frozen.

        Does nothing here. Frozen means that no parameter of router and experts learns; then nothing of the router changes.
        """


def summed_over_ranks(counts: Tensor) -> Tensor:
    """Sum a tensor over the processes that train together; itself where there is one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts

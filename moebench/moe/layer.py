"""The call that all sparse layers share, and the layer of router, experts and dispatch.

B sequences, S positions, T real tokens, D model width, E experts, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.coupling import coupling as coupling_loss
from moebench.moe.dispatch import dispatch


@dataclass(frozen=True)
class Aux:
    """What a sparse layer reports beside its output."""

    losses: Mapping[str, Tensor]
    """Name → unscaled scalar."""
    load: Tensor
    """(E,) number of rows of each expert."""
    probs: Tensor
    """(T, E) distribution of each token over the experts, detached."""
    dropped: int = 0
    """Assignments that a capacity refused."""
    routing: Routing | None = None
    """The whole decision where there are assignments; its tokens are numbered along ``x[mask]``."""
    heads: int = 1
    """In how many sub-tokens each token was split (`moebench.moe.multi_head.MultiHead`): ``probs`` and ``routing`` are then of sub-tokens,
    number u of token u // heads, and there are ``len(probs) // heads`` tokens."""


class SparseLayer(nn.Module):
    """Base of the layers: takes padding away before the layer and puts zero rows there after it.

    A layer without a router is one file ``layers/<name>.py`` with one class that names ``SparseLayer`` as its base, built as
    ``Class(d_model, experts, name, **options)`` with a module of experts, whose ``count`` is E. Options and losses are read from its
    source like a router's. A layer returns the experts' part alone: the caller adds the residual, h' = h + y.
    """

    losses: ClassVar[tuple[str, ...]] = ()
    """Names of the losses that the layer reports."""

    works_with: ClassVar[tuple[str, ...]] = ()
    """Classes of `moebench.moe.experts` that it works with, a literal; empty: any."""

    experts: nn.Module
    causal = True
    """Whether, in evaluation, a token's output depends on no later token of its sequence."""
    needs_attention = False
    """Whether the layer has to be given attention probabilities."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(
        self,
        x_BSD: Tensor,
        mask_BS: Tensor | None = None,
        token_ids_BS: Tensor | None = None,
        attention_BHSS: Tensor | None = None,
        document_BS: Tensor | None = None,
    ) -> tuple[Tensor, Aux]:
        """Run the layer.

        Args:
            x_BSD: (B, S, D) hidden states.
            mask_BS: (B, S), true at real tokens; none: all are real.
            token_ids_BS: (B, S) vocabulary ids, for routers that look at them.
            attention_BHSS: (B, H, S, S) attention probabilities of the block before, for routers that look at them.
            document_BS: (B, S) which document of its row a token is of, rising along a row; the layer then takes each document for a
                sequence, and places count from its first real token. None: a row is one sequence.

        Returns:
            (B, S, D) change to add to ``x_BSD``, zero at padding, in its type; and what the layer reports.

        Raises:
            FloatingPointError: a score or weight is not finite; the message names the layer.
            ValueError: both documents and attention are given: attention is over rows.
        """
        if document_BS is not None and attention_BHSS is not None:
            raise ValueError(f"{self.name}: attention is over rows, so routers that look at it cannot be given documents of a row")
        B, S, _ = x_BSD.shape
        place_T = torch.arange(B * S, device=x_BSD.device) if mask_BS is None else mask_BS.flatten().nonzero()[:, 0]

        def real(values: Tensor) -> Tensor:
            return values.flatten(0, 1) if mask_BS is None else values.flatten(0, 1).index_select(0, place_T)

        tokens_TD, sequence_T, position_T = real(x_BSD), place_T // S, place_T % S
        if document_BS is not None:
            document_T = real(document_BS)
            begins_T = torch.ones_like(place_T, dtype=torch.bool)
            begins_T[1:] = (sequence_T.diff() != 0) | (document_T.diff() != 0)
            sequence_T = begins_T.cumsum(0) - 1
            position_T = position_T - position_T[begins_T][sequence_T]
        inputs = RouterInputs(
            tokens=tokens_TD.to(torch.promote_types(tokens_TD.dtype, torch.float32)),
            token_ids=None if token_ids_BS is None else real(token_ids_BS),
            sequence_ids=sequence_T,
            positions=position_T,
            attention=None if attention_BHSS is None else real(attention_BHSS.transpose(1, 2)),
        )
        change_TD, aux = self.change(tokens_TD, inputs)
        change_TD = change_TD.to(x_BSD.dtype)
        if mask_BS is None:
            return change_TD.reshape(x_BSD.shape), aux
        return x_BSD.new_zeros(B * S, x_BSD.shape[2]).index_copy(0, place_T, change_TD).view_as(x_BSD), aux

    def change(self, tokens_TD: Tensor, inputs: RouterInputs) -> tuple[Tensor, Aux]:
        """Compute the (T, D) change of the real tokens.

        Args:
            tokens_TD: (T, D) in the caller's type, for the experts.
            inputs: the same tokens in fp32 at least, and what is known about them.
        """
        raise NotImplementedError

    def check_finite(self, **values: Tensor) -> None:
        """Raise FloatingPointError with the layer's name if a value is not finite."""
        if torch.stack([value.detach().sum().double() for value in values.values()]).sum().isfinite():  # finite if all are: one question
            return
        for what, value in values.items():
            if not value.isfinite().all():
                bad = int((~value.isfinite()).sum())
                raise FloatingPointError(f"{self.name}: {bad} of {value.numel()} {what} of the router are not finite")

    @property
    def flops_per_row(self) -> int:
        """Floating-point operations of a row through a routed expert, an addition and a multiplication counted as two: 2 a parameter."""
        return 2 * sum(parameter.numel() for parameter in self.experts.parameters()) // cast(int, self.experts.count)

    def overhead(self, tokens: int, sequences: int) -> int:
        """Floating-point operations of a forward pass beside those of the experts' rows; 0 here."""
        return 0

    def after_optimizer_step(self) -> None:
        """Called after every optimiser step. Does nothing here."""


def sum_of_all(experts: nn.Module, tokens_TD: Tensor) -> Tensor:
    """(T, D) sum of what all experts say to every token."""
    count = next(experts.parameters()).shape[0]
    rows: Tensor = experts(tokens_TD.repeat(count, 1), torch.full((count,), len(tokens_TD), device=tokens_TD.device))
    return rows.view(count, *tokens_TD.shape).sum(0)


class MoELayer(SparseLayer):
    """Router + experts + dispatch. The router runs outside autocast, on fp32 tokens (fp64 tokens stay fp64).

    Args:
        router: decides who sees what.
        experts: maps (A, D) rows sorted by expert and (E,) counts to (A, D) outputs.
        name: what errors call this layer.
        shared: experts that see every token with weight 1 beside the routed ones (DeepSeekMoE, arXiv 2401.06066, eq. 9); none: there are
            no such experts. Built like ``experts``.
        coupling: α of `moebench.moe.coupling.coupling`, which is then reported as one more loss, ``coupling``: with noise in training,
            without in evaluation. None: no such loss. Its operations, 2·E²·D·F a batch, are not in `overhead`.

    Raises:
        ValueError: ``coupling`` is not above 0, or the router has no embedding (E, D), or the experts no gate.
    """

    def __init__(
        self,
        router: Router,
        experts: nn.Module,
        name: str = "moe",
        shared: nn.Module | None = None,
        coupling: float | None = None,
    ):
        super().__init__(name)
        if coupling is not None:
            if not coupling > 0:
                raise ValueError(f"coupling {coupling}: should be above 0, or none for no such loss")
            if getattr(getattr(router, "embedding", None), "shape", None) != (router.experts, router.d_model):
                raise ValueError(f"coupling {coupling}: {type(router).__name__} has no embedding of the tokens' width for each expert")
            if not hasattr(experts, "gate_EFD"):
                raise ValueError(f"coupling {coupling}: {type(experts).__name__} has no gate; SwiGLUExperts and FactorisedExperts have")
        self.router = router
        self.experts = experts
        self.shared = shared
        self.coupling = coupling
        self.causal = router.causal
        self.needs_attention = router.needs_attention

    def change(self, tokens_TD: Tensor, inputs: RouterInputs) -> tuple[Tensor, Aux]:
        """Route, dispatch, add what the shared experts say."""
        with torch.autocast(tokens_TD.device.type, enabled=False):
            routing = self.router(inputs)
        self.check_finite(scores=routing.scores, weights=routing.weight)
        change_TD = dispatch(tokens_TD, routing, self.experts)
        if self.shared is not None:
            change_TD = change_TD + sum_of_all(self.shared, tokens_TD)
        probs_TE = routing.scores.softmax(-1) if routing.probs is None else routing.probs
        losses = routing.losses
        if self.coupling is not None:
            embedding_ED, gate_EFD = cast(Tensor, self.router.embedding), cast(Tensor, self.experts.gate_EFD)
            losses = dict(losses)
            losses["coupling"] = coupling_loss(embedding_ED, gate_EFD, self.coupling, noise=self.training)
        return change_TD, Aux(losses, routing.load, probs_TE, routing.dropped, routing)

    def overhead(self, tokens: int, sequences: int) -> int:
        """Operations of the router."""
        return tokens * self.router.flops_per_token

    def after_optimizer_step(self) -> None:
        """Call the router's hook, unless router and experts are frozen."""
        if any(parameter.requires_grad for parameter in self.parameters()):
            self.router.after_optimizer_step()

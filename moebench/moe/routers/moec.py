"""Clusters of experts (MoEC, Xie et al., arXiv 2207.09094), approximate: the public code's gate, its variance loss and its dropout.

T tokens, D model width, E experts, N experts that survive dropout, R routing width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.losses import load_balance, router_z

EPSILON = 1e-4
"""Least norm that is divided by and least temperature, as in the public code."""
LOSS_TEMPERATURE = 0.07
"""Of the softmax in the losses, as in the public code: a constant, whatever the gate has learned."""


class MoEC(Router):
    """s_i = cos(W h, e_i); the token goes to k = argmax_i s_i with weight sigmoid(s_k / τ), τ learned. Approximate.

    Experts e with the same ⌊e / ``cluster_size``⌋ are a cluster; the last one may be smaller. In training ⌊(1 − ``dropout``) · n⌋ (at least
    1) of the n experts of every cluster survive; the others are not chosen. The survivors are drawn anew every ``dropout_interval``
    optimiser steps. Evaluation has all experts.

    Losses, with P = mean over tokens of softmax(s / 0.07) over the N survivors: ``balance``, N · Σ f_i P_i, 1 when uniform; ``variance``,
    N · mean over clusters of the variance of P within the cluster (over its n, 0 when the experts of every cluster are used alike);
    ``z``, on s / τ.

    Approximate because the paper's equations were not at hand: gate, losses, dropout and defaults follow its authors' code and scripts (64
    experts in 8 clusters). The code's sharper form, which divides the variance by exp(difference of the two most used blocks of experts),
    is left out. Public code differs: it sums over tokens, so against its balance loss its variance counts T times as much; it divides
    by n − 1; it resamples in every 250th forward pass and drops in evaluation too; one draw holds for all clusters, whose scores
    are then those of the first one's embeddings; a capacity of 2·T, which never binds.

    W starts as torch's linear layer does, the embeddings orthogonal with gain 0.1; their norm is free.

    Args:
        d_model: D.
        experts: E.
        cluster_size: experts of a cluster.
        dropout: share of each cluster's experts that is dropped in training.
        dropout_interval: optimiser steps between two draws.
        temperature: start of τ.
        dim: R.

    Raises:
        ValueError: a size or interval below 1, ``dropout`` not in [0, 1), or a temperature that is not above 1e-4.
    """

    losses: ClassVar[tuple[str, ...]] = ("balance", "variance", "z")

    alive: Tensor
    steps: Tensor

    def __init__(
        self,
        d_model: int,
        experts: int,
        *,
        cluster_size: int = 8,
        dropout: float = 0.5,
        dropout_interval: int = 250,
        temperature: float = 0.07,
        dim: int = 32,
    ):
        super().__init__(d_model, experts)
        for name, value in {"cluster_size": cluster_size, "dropout_interval": dropout_interval, "dim": dim}.items():
            if value < 1:
                raise ValueError(f"{name} {value}: should be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout}: should be at least 0 and below 1, which would leave no expert")
        if temperature <= EPSILON:
            raise ValueError(f"temperature {temperature}: should be above {EPSILON}, scores are divided by it")
        self.cluster_size = cluster_size
        self.dropout = dropout
        self.dropout_interval = dropout_interval
        self.projection = nn.Linear(d_model, dim, bias=False)
        self.embedding = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, dim), gain=0.1))
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.register_buffer("alive", torch.ones(experts, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._draw()

    def forward(self, inputs: RouterInputs) -> Routing:
        """Route every token to one expert."""
        z_TR = F.normalize(self.projection(inputs.tokens), dim=1, eps=EPSILON)
        scores_TE = z_TR @ F.normalize(self.embedding, dim=1, eps=EPSILON).T
        alive_N = (self.alive if self.training else torch.ones_like(self.alive)).nonzero()[:, 0]
        scores_TN = scores_TE[:, alive_N]
        choice_T = scores_TN.argmax(-1)  # not of the gates: a saturated sigmoid has ties
        tau = self.temperature.clamp(min=EPSILON)
        weight_T = (scores_TN.gather(1, choice_T[:, None])[:, 0] / tau).sigmoid()
        probs_TN = (scores_TN / LOSS_TEMPERATURE).softmax(-1)
        losses = {
            "balance": load_balance(probs_TN, choice_T),
            "variance": self._variance(probs_TN, alive_N // self.cluster_size),
            "z": router_z(scores_TN / tau),
        }
        return Routing.top1(alive_N[choice_T], weight_T, scores=scores_TE, losses=losses, probs=(scores_TE / tau).softmax(-1))

    @staticmethod
    def _variance(probs_TN: Tensor, cluster_N: Tensor) -> Tensor:
        mean_N = probs_TN.sum(0) / max(len(probs_TN), 1)
        clusters = mean_N.split(cluster_N.bincount().tolist())
        return len(mean_N) * torch.stack([each.var(correction=0) for each in clusters]).mean()

    def _draw(self) -> None:
        self.alive.zero_()
        for cluster in self.alive.split(self.cluster_size):  # views
            survivors = max(int((1 - self.dropout) * len(cluster)), 1)
            cluster[torch.randperm(len(cluster), device=cluster.device)[:survivors]] = True

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Count the step; draw survivors when it is time."""
        self.steps += 1
        if self.steps % self.dropout_interval == 0:
            self._draw()

"""MC dropout (Gal and Ghahramani, arXiv 1506.02142): predictions with dropout left on, as members of an ensemble.

B examples, S passes, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def dropout_on(model: nn.Module) -> Iterator[None]:
    """Inside, only dropout is random: ``nn.Dropout`` modules train, all others (noisy routers) evaluate; afterwards all are as they were.

    Raises:
        ValueError: the model has no ``nn.Dropout``, so that all passes would be alike. With a rate of 0 they are, too.
    """
    modes = {module: module.training for module in model.modules()}
    dropouts = [module for module in modes if isinstance(module, nn.Dropout)]
    if not dropouts:
        raise ValueError(f"{type(model).__name__} has no dropout: all passes would be alike")
    try:
        model.eval()
        for dropout in dropouts:
            dropout.train()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def mc_dropout(model: nn.Module, predict: Callable[[], Tensor], passes: int) -> Tensor:
    """Predict S times, each time with other units dropped, without gradients.

    The prediction is the mean of the passes' probabilities, the paper's estimate of the predictive mean; for (B, S, C) that is
    `moebench.models.vit.ensemble_log_probs`. The paper has dropout before every layer with weights; ours is where the model has it. The
    public code of E³ and of the vision baselines has no setting for it; uncertainty-baselines has 10 passes for text and 30 for CIFAR.

    Examples:
        >>> logits_BSC = mc_dropout(vit, lambda: vit(images)[0], 10).flatten(1, 2)  # the model's own M members become S·M
        >>> logits_BSC = mc_dropout(module, lambda: head(encoder(ids, mask)[0], segment), 10)

    Args:
        model: holds all dropout, the encoder's and the head's; its modes are as before afterwards.
        predict: one pass, (B, ...) logits, on this model. Units are drawn from torch's global generator, for each example its own: the same
            seed and batch give the same passes, another batch others.
        passes: S.

    Returns:
        (B, S, ...).

    Raises:
        ValueError: the model has no dropout; or there is no pass.
    """
    if passes < 1:
        raise ValueError(f"passes {passes}: should be at least 1")
    with dropout_on(model):
        return torch.stack([predict() for _ in range(passes)], 1)

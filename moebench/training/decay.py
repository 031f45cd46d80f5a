"""A learning rate that rises linearly and falls, linearly or like a cosine, to a share of its peak."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def decaying(optimiser: Optimizer, steps: int, warmup: float, decay: Literal["linear", "cosine"], floor: float) -> LambdaLR:
    """Return the schedule of an optimiser.

    Args:
        optimiser: its rates are the peaks.
        steps: of the run.
        warmup: share of them in which the rate rises.
        decay: how it falls.
        floor: to what share of the peak.
    """
    rising = max(1, round(warmup * steps))

    def scale(step: int) -> float:
        left = min(1.0, max(0.0, (steps - step) / max(1, steps - rising)))
        fall = left if decay == "linear" else (1 - math.cos(math.pi * left)) / 2
        return min((step + 1) / rising, floor + (1 - floor) * fall)

    return LambdaLR(optimiser, scale)

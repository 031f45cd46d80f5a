"""What the loop asks of a run: the one object that a protocol builds for it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from torch import Tensor

from moebench.config import Optimisation
from moebench.experiment import Experiment, Run
from moebench.training.batches import Batch
from moebench.training.module import Training


class Job(abc.ABC):
    """A training run of some protocol, ready to go.

    Attributes:
        module: what learns.
        optimisation: for how long, and how.
    """

    module: Training
    optimisation: Optimisation

    @abc.abstractmethod
    def batches(self, part: int, parts: int) -> Callable[[int], Batch]:
        """Return the function from a step to a part of its batch: the rows ``part``, ``part + parts``, ...; maybe none.

        There are as many parts as ranks times ``optimisation.accumulate``. Whatever is drawn (rows, masks) is drawn for the whole batch, so
        that all parts together are the batch of one process. The batch has the key ``weight`` (`moebench.training.batches.weight`).
        """

    def before(self, trainer: lightning.Trainer, folder: Path) -> None:  # noqa: B027  # most runs have nothing to do here
        """Measure what has to be measured before the first step; a run that is continued comes here again."""

    @abc.abstractmethod
    def after(self, trainer: lightning.Trainer, folder: Path) -> list[dict[str, Any]]:
        """Leave the predictions as files in the run's folder, if this is the first rank, and return what the run measured itself.

        A measure has ``task``, ``language``, ``metric``, ``value`` and ``n``.
        """

    @abc.abstractmethod
    def costs(self) -> dict[str, Any]:
        """Return parameters and operations of the model, for ``costs.csv``."""

    def weights(self) -> dict[str, Tensor] | None:
        """What the checkpoint for later runs holds; none: nothing starts from this run."""
        return None


def by_stage(pretraining: Callable[..., Job], finetuning: Callable[..., Job]) -> Callable[[Experiment, Run, dict[str, Any]], Job]:
    """Return the function that builds a run of either stage from its experiment, itself and its plan."""
    return lambda experiment, run, plan: (pretraining if run.stage == "pretrain" else finetuning)(experiment, run, plan)

"""Stage ``baselines``: predictions of the shallow baselines of an experiment."""

from __future__ import annotations

from moebench.experiment import Experiment
from moebench.files import replacing


def baselines(experiment: Experiment) -> None:
    """Write ``runs/<profile>/<paper>/baselines/<baseline>/…``; earlier ones are replaced.

    Raises:
        MoebenchError: prepared data is missing or damaged; the message names the file. Nothing was changed then.
    """
    with replacing(experiment.baselines_folder) as folder:
        experiment.protocol.baselines.baselines(experiment, folder)

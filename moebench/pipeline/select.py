"""Verb ``select``: writes the pipeline of an experiment, ``experiments/<paper>/<profile>/``, that DVC reads.

``dvc.yaml`` is the same text for every paper and profile. DVC cannot compute which runs there are, so ``params.yaml`` beside it lists
them. With ``dvc.lock`` the folder says what was done; it stands in git for the profiles whose results do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from moebench.config import check_devices
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import write_text

PIPELINE = Path(__file__).with_name("stages.yaml")
HEADER = """\
# Generated from methods/, profiles/ and data/: do not edit. After adding a method, a seed or a training set, run `moebench select`
# (`moebench run` does it by itself).
"""


def select(experiment: Experiment) -> None:
    """Write the pipeline of an experiment; files that are right already are not touched.

    Raises:
        MoebenchError: the configuration is wrong, or asks for devices that are not there. Whoever writes the pipeline of another machine
            names its GPUs in CUDA_VISIBLE_DEVICES. Other nodes are no question here: how they start shows when a run does.
    """
    experiment.check()
    check_devices(experiment.setting_file, experiment.setting.model_copy(update={"nodes": 1}))
    for name, content in (("dvc.yaml", PIPELINE.read_text(encoding="utf-8")), ("params.yaml", listed(experiment))):
        path = experiment.pipeline / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            write_text(path, content)


def check_selected(experiment: Experiment) -> None:
    """Check that the generated list is that of the configuration.

    Raises:
        MoebenchError: it is not; the message says what to run.
    """
    path = experiment.pipeline / "params.yaml"
    if not path.is_file() or path.read_text(encoding="utf-8") != listed(experiment):
        raise MoebenchError(
            f"{path}: does not list the stages that methods/, profiles/ and data/ ask for;"
            f" run `moebench select --paper {experiment.paper} --profile {experiment.profile}` and repeat, or use `moebench run`"
        )


def listed(experiment: Experiment) -> str:
    """Return the content of ``params.yaml``: the name of every run → its values, as ``foreach`` expands them."""
    lists: dict[str, Any] = {"paper": experiment.paper, "profile": experiment.profile, "pretrain": {}, "finetune": {}}
    for run in experiment.runs:
        values: dict[str, Any] = {"method": run.method, "seed": run.seed, "part": run.part}
        lists[run.stage][run.name] = values | ({"set": run.training_set, "start": run.start} if run.stage == "finetune" else {})
    return HEADER + yaml.safe_dump(lists, sort_keys=False, default_flow_style=None, width=140)

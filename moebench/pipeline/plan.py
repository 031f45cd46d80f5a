"""Stage ``plan``: what every run is, its resolved configuration and a fingerprint of the code it reaches, before anything trains.

Each file under ``runs/<profile>/<paper>/plan/`` is ``{"config": ..., "fingerprint": ...}`` and holds exactly what one stage depends on, so
that adding a method changes no other method's file, editing a router changes the files of the methods that use it, and a comment none.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from moebench.experiment import Experiment
from moebench.files import replacing, write_json
from moebench.pipeline.fingerprint import fingerprint
from moebench.pipeline.select import check_selected
from moebench.protocol import Plan


def plan(experiment: Experiment) -> None:
    """Validate the whole configuration of an experiment and write its plan; what was planned before is replaced.

    Raises:
        MoebenchError: the configuration is wrong anywhere, or the generated list of stages (``experiments/<paper>/<profile>/params.yaml``)
            does not fit it. Nothing was changed then.
    """
    experiment.check()
    check_selected(experiment)
    with replacing(experiment.plan_folder) as folder:
        for name, value in planned(experiment).items():
            write_json(folder / f"{name}.json", value)


def planned(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the plan: one entry for each stage, of training stages one for all seeds."""
    protocol = experiment.protocol
    stages = {}
    for run in experiment.runs:
        if run.plan_name not in stages:
            stages[run.plan_name] = _entry(protocol.runs.plan(experiment, run), "moebench.pipeline.train")
    setting, data = experiment.setting.model_dump(mode="json", exclude={"notes"}), experiment.data.model_dump(mode="json")
    judged = {
        "runs": {name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for name, value in stages.items()},
        "setting": setting,
        "data": data,
        "methods": {name: one.model_dump(mode="json", exclude={"label", "published"}) for name, one in experiment.methods.items()},
    }
    shown = {
        "about": experiment.about.model_dump(mode="json"),
        "setting": experiment.setting.model_dump(mode="json"),
        "data": data,
        "methods": {name: one.model_dump(mode="json") for name, one in experiment.methods.items()},
    }
    return stages | {
        "prepare": _entry(protocol.prepare.plan(experiment), "moebench.pipeline.prepare"),
        "baselines": _entry(Plan({"setting": setting, "data": data}, [protocol.module("baselines")]), "moebench.pipeline.baselines"),
        "evaluate": _entry(Plan(judged, [protocol.module("scoring")]), "moebench.pipeline.evaluate"),
        "tabulate": _entry(Plan(shown, [protocol.module("tables")]), "moebench.pipeline.tabulate"),
    }


def _entry(what: Plan, *stage: str) -> dict[str, Any]:
    return {"config": what.config, "fingerprint": fingerprint([*stage, *what.modules], without=what.without)}

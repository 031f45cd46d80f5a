"""Stage ``plan``: what every run is, its resolved configuration and a fingerprint of the code it reaches, before anything trains.

Each file under ``runs/<profile>/plan/`` is ``{"config": ..., "fingerprint": ...}`` and holds exactly what one stage depends on, so that
adding a method changes no other method's file, editing a router changes the files of the methods that use it, and a comment none.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moebench import catalogue, config, config_images
from moebench.files import write_json
from moebench.stages import plan_images
from moebench.stages.fingerprint import fingerprint
from moebench.stages.select import check, check_selected, start, training_sets

OTHER_SOURCE = {
    "constructed": ["moebench.data.files", "moebench.data.hub"],
    "files": ["moebench.data.constructed", "moebench.data.hub"],
    "hub": ["moebench.data.constructed"],
}
"""Source → the modules of the others, which ``prepare`` imports only when asked for it."""
NOT_FINETUNING = {"label", "published", "table", "dropout"}  # the rate of dropout is in the encoder
NOT_PRETRAINING = NOT_FINETUNING | {"freeze_in_finetuning", "pretrain_as", "ensemble", "members"}
SCALE = {"precision", "threads", "devices", "nodes", "initialisation", "checkpoint"}


def plan(root: Path, profile: str) -> None:
    """Validate the whole configuration of a profile and write its plan; what was planned before is replaced.

    Args:
        root: the project's root.
        profile: name of the profile.

    Raises:
        MoebenchError: the configuration is wrong anywhere, or the generated lists of stages (``experiments/<paper>/params.yaml``) do not
            fit it. Nothing was changed then.
    """
    check(root, profile)
    check_selected(root, profile)
    planned = shared(root, profile)
    for paper in config.papers(root, profile):
        part = plan_images.of_paper if config_images.of_images(root, paper) else of_paper
        planned |= {f"{paper}/{name}": value for name, value in part(root, profile, paper).items()}
    folder = root / "runs" / profile / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    for name, value in planned.items():
        write_json(folder / f"{name}.json", value)


def shared(root: Path, profile: str) -> dict[str, dict[str, Any]]:
    """Plan of what all papers share: the prepared data and the shallow baselines."""
    data = config.data(root, profile)
    prepare = data.model_dump(mode="json") | {"catalogue": _facts(data.tasks)}
    if data.source == "files":
        from moebench.data.files import FilesSource

        prepare["files"] = FilesSource(config.benchmark_folder(root), data).files()
    if data.source == "hub":
        from moebench.data.hub import HubSource

        hub = HubSource(root, data)
        prepare["hub"] = {"files": hub.files(), "choices": hub.choices(), "reading": hub.reading()}
    code = fingerprint(["moebench.stages.prepare"], without=OTHER_SOURCE[data.source])
    pictures = {}
    if (root / "data" / "images" / f"{profile}.yaml").is_file():
        pictures["images"] = plan_images.prepared(root, profile)
    return pictures | {
        "prepare": {"config": prepare, "fingerprint": code},
        "baselines": {"config": {"catalogue": _facts(data.tasks)}, "fingerprint": fingerprint(["moebench.stages.baselines"])},
    }


def of_paper(root: Path, profile: str, paper: str) -> dict[str, dict[str, Any]]:
    """Plan of a paper: one entry a method in pre-training, one a method and training set in fine-tuning, evaluation and tables."""
    setting, tasks = config.setting(root, paper, profile), config.data(root, profile).tasks
    methods = {name: config.method(root, paper, name, profile) for name in config.method_names(root, paper, profile)}
    planned = {}
    for name in sorted({start(root, paper, name) for name in methods}):
        method = config.method(root, paper, name, profile)
        what = _model(setting, method, NOT_PRETRAINING) | {"pretrain": setting.pretrain.model_dump(mode="json")}
        planned[f"pretrain/{name}"] = {"config": what, "fingerprint": _code("pretrain", method)}
    for name, method in methods.items():
        for training_set, names in training_sets(root, profile, paper, name).items():
            what = _model(setting, method, NOT_FINETUNING) | {
                "finetune": setting.finetune[training_set].model_dump(mode="json"),
                "tasks": names,
                "catalogue": _facts(names),
            }
            planned[f"finetune/{name}-{training_set}"] = {"config": what, "fingerprint": _code("finetune", method)}
    evaluated = {
        "runs": {name: _hash(value) for name, value in planned.items()},  # provenance names them
        "seeds": setting.seeds,
        "pretrain_steps": setting.pretrain.steps,
        "methods": {
            name: method.model_dump(mode="json", include={"pretrained", "pretrain_as", "table"}) for name, method in methods.items()
        },
        "catalogue": _facts(tasks),
    }
    shown = {
        "setting": setting.model_dump(mode="json"),
        "methods": {name: method.model_dump(mode="json") for name, method in methods.items()},
        "catalogue": _facts(tasks),
    }
    planned["evaluate"] = {"config": evaluated, "fingerprint": fingerprint(["moebench.stages.evaluate"])}
    planned["tabulate"] = {"config": shown, "fingerprint": fingerprint(["moebench.stages.tabulate"])}
    return planned


def _model(setting: config.Setting, method: config.Method, without: set[str]) -> dict[str, Any]:
    """What pre-training and fine-tuning of a method have in common."""
    sparse = config.sparse(setting, method)
    return setting.model_dump(mode="json", include=SCALE) | {
        "method": method.model_dump(mode="json", exclude=without | {"fine_grained", "shared"}),  # they are in the sparse layer's sizes
        "encoder": config.encoder(setting, method).model_dump(mode="json"),
        "sparse": None if sparse is None else sparse.model_dump(mode="json"),
    }


def _code(stage: str, method: config.Method) -> str:
    """Fingerprint of a training stage; the router or layer, imported by name at run time, is named here, ensembles where there is one."""
    by_name = [f"moebench.moe.routers.{method.router}"] if method.router else []
    if method.layer not in ("none", "moe"):
        by_name = [f"moebench.moe.layers.{method.layer}"]
    return fingerprint([f"moebench.stages.{stage}", *by_name], without=() if method.ensemble else ["moebench.ensembles"])


def _facts(tasks: Any) -> dict[str, dict[str, Any]]:
    """What the catalogue says about tasks."""
    return {name: asdict(catalogue.task(name)) | {"metrics": catalogue.task(name).metrics} for name in tasks}


def _hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

"""Which runs there are, what each starts from and reads, and what code it can reach. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from moebench.data import catalogue
from moebench.experiment import Experiment, Run
from moebench.protocol import Plan
from moebench.protocols.transfer.config import Method, encoder, sparse, training_sets

PRETRAINED_ON = "mlm"
"""Name of the task of pre-training in ``provenance.csv`` and ``costs.csv``."""
NOT_FINETUNING = {"label", "published", "table", "dropout"}  # the rate of dropout is in the encoder
NOT_PRETRAINING = NOT_FINETUNING | {"freeze_in_finetuning", "pretrain_as", "ensemble", "members"}
MODULE = {"pretrain": "pretraining", "finetune": "finetuning"}
SCALE = {"precision", "threads", "devices", "nodes", "initialisation", "checkpoint"}


def runs(experiment: Experiment) -> list[Run]:
    """List the runs, pre-training first.

    A method that starts from another one's checkpoints (``pretrain_as``) has no pre-training runs of its own; those numbers stand under
    the other method and are not repeated.
    """
    methods, seeds = experiment.methods, experiment.setting.seeds
    starts = {name: method.pretrain_as or name for name, method in methods.items()}
    return [Run("pretrain", name, seed, part="corpus") for name in sorted(set(starts.values())) for seed in seeds] + [
        Run("finetune", name, seed, training_set, f"{starts[name]}-{seed}", training_set)
        for name, method in methods.items()
        for training_set in sorted(training_sets(experiment, method))
        for seed in seeds
    ]


def plan(experiment: Experiment, run: Run) -> Plan:
    """What a run is; the router or layer, imported by name at run time, is named here, ensembles where there is one."""
    setting, method = experiment.setting, experiment.method(run.method)
    if run.stage == "pretrain":
        what = _model(experiment, method, NOT_PRETRAINING) | {"pretrain": setting.pretrain.model_dump(mode="json")}
    else:
        tasks = training_sets(experiment)[run.training_set]
        what = _model(experiment, method, NOT_FINETUNING) | {
            "finetune": setting.finetune[run.training_set].model_dump(mode="json"),
            "tasks": tasks,
            "catalogue": facts(tasks),
        }
    modules = [f"moebench.protocols.transfer.{MODULE[run.stage]}"]
    if method.source and method.layer != "moe":
        modules.append(f"moebench.moe.layers.{method.layer}")
    elif method.source:
        modules.append(f"moebench.moe.routers.{method.router}")
    return Plan(what, modules, [] if method.ensemble else ["moebench.ensembles"])


def facts(tasks: Any) -> dict[str, dict[str, Any]]:
    """What the catalogue says about tasks."""
    return {name: asdict(catalogue.task(name)) | {"metrics": catalogue.task(name).metrics} for name in tasks}


def _model(experiment: Experiment, method: Method, without: set[str]) -> dict[str, Any]:
    """What pre-training and fine-tuning of a method have in common."""
    setting = experiment.setting
    layer = sparse(setting, method)
    return setting.model_dump(mode="json", include=SCALE) | {
        "method": method.model_dump(mode="json", exclude=without | {"fine_grained", "shared"}),  # they are in the sparse layer's sizes
        "encoder": encoder(setting, method).model_dump(mode="json"),
        "sparse": None if layer is None else layer.model_dump(mode="json"),
    }

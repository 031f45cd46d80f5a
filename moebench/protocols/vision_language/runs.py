"""Which runs there are, what each starts from and reads, and what code it can reach. Imports no torch."""

from __future__ import annotations

from typing import Any

from moebench.experiment import Experiment, Run
from moebench.protocol import Plan
from moebench.protocols.vision_language.config import TASKS, Method, Setting, shape_of

PRETRAINED_ON = "masked"
"""Name of the task of pre-training in ``provenance.csv`` and ``costs.csv``."""
PRETRAIN = "pretrain"
"""The part of the prepared data that pre-training reads; each task has one of its name."""
SCALE = {"precision", "threads", "devices", "nodes", "model", "sparse_every", "predict_batch"}
NOT_A_MODEL = {"label", "published", "pretrain_as", "wide", "split"}  # the last two are in the experts' sizes
OPTIONAL = {"multi_head", "shared"}
"""Parts of a method that stand in its plan only where it has them."""
MODULE = {"pretrain": "pretraining", "finetune": "finetuning"}
SCENES = ["moebench.data.scenes"]
ORIGINALS = ["moebench.data.image_benchmarks", "moebench.data.text_files", "moebench.data.vision_language_files"]
"""Modules that make the data or read the original files; training reads what was prepared."""


def runs(experiment: Experiment) -> list[Run]:
    """List the runs, pre-training first; each is fine-tuned on every task."""
    methods, seeds = experiment.methods, experiment.setting.seeds
    return [Run("pretrain", name, seed, part=PRETRAIN) for name in methods for seed in seeds] + [
        Run("finetune", name, seed, task, f"{name}-{seed}", task) for name in methods for task in TASKS for seed in seeds
    ]


def plan(experiment: Experiment, run: Run) -> Plan:
    """What a run is; the router or layer, imported by name at run time, is named here."""
    setting: Setting = experiment.setting
    method: Method = experiment.method(run.method)
    options = setting.pretrain if run.stage == "pretrain" else getattr(setting, run.training_set)
    what = _model(setting, run.method, method) | {run.stage: options.model_dump(mode="json")}
    layer = f"moebench.moe.routers.{method.router}" if method.router else f"moebench.moe.layers.{method.layer}"
    return Plan(what, [f"moebench.protocols.vision_language.{MODULE[run.stage]}", layer], SCENES + ORIGINALS)


def _model(setting: Setting, name: str, method: Method) -> dict[str, Any]:
    """What pre-training and fine-tuning of a method have in common."""
    absent = {key for key in OPTIONAL if not getattr(method, key)}
    return setting.model_dump(mode="json", include=SCALE) | {
        "method": method.model_dump(mode="json", exclude=NOT_A_MODEL | absent),
        "sizes": shape_of(setting, method, name),
    }

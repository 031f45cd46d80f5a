"""Which runs there are, what each starts from and reads, and what code it can reach. Imports no torch."""

from __future__ import annotations

from typing import Any

from moebench.data.image_settings import DOWNSTREAM, UPSTREAM
from moebench.experiment import Experiment, Run
from moebench.protocol import Plan
from moebench.protocols.vision.config import Method, Setting, vision

PRETRAINED_ON = UPSTREAM
"""Name of the task of pre-training in ``provenance.csv`` and ``costs.csv``."""
IMAGES = "images"
"""The one part of the prepared data."""
MODULE = {"pretrain": "pretraining", "finetune": "finetuning"}
SCALE = {"precision", "threads", "devices", "nodes", "experts", "last", *Setting.newer}
NOT_PRETRAINING = {"label", "published", "of", "pretrain_as", "draw"}
NOT_FINETUNING = {"label", "published", "of"}
ORIGINALS = ["moebench.data.image_benchmarks", "moebench.data.image_files"]
"""Modules of the source ``files``; training reads what was prepared."""


def runs(experiment: Experiment) -> list[Run]:
    """List the runs, pre-training first; a deep ensemble has none of its own."""
    seeds = experiment.setting.seeds
    starts = {name: method.pretrain_as or name for name, method in experiment.methods.items() if method.variant != "deep"}
    return [Run("pretrain", name, seed, part=IMAGES) for name in sorted(set(starts.values())) for seed in seeds] + [
        Run("finetune", name, seed, DOWNSTREAM, f"{start}-{seed}", IMAGES) for name, start in starts.items() for seed in seeds
    ]


def plan(experiment: Experiment, run: Run) -> Plan:
    """What a run is; the router, imported by name at run time, is named here."""
    setting, method = experiment.setting, experiment.method(run.method)
    if run.stage == "pretrain":
        what = _model(experiment, method, NOT_PRETRAINING) | {"pretrain": setting.pretrain.model_dump(mode="json")}
    else:
        what = _model(experiment, method, NOT_FINETUNING) | {"finetune": setting.finetune.model_dump(mode="json")}
        what["vision"]["image"] = setting.finetune_side or what["vision"]["image"]
    router = [f"moebench.moe.routers.{method.router}"] if method.router else []
    return Plan(what, [f"moebench.protocols.vision.{MODULE[run.stage]}", *router], ORIGINALS)


def _model(experiment: Experiment, method: Method, without: set[str]) -> dict[str, Any]:
    """What pre-training and fine-tuning of a method have in common."""
    return experiment.setting.model_dump(mode="json", include=SCALE) | {
        "method": {"label": ""} | method.model_dump(mode="json", exclude=without),
        "vision": vision(experiment.setting, method).model_dump(mode="json"),
    }

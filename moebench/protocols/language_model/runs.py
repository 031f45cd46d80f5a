"""Which runs there are, what each starts from and reads, and what code it can reach. Imports no torch."""

from __future__ import annotations

from typing import Any

from moebench.experiment import Experiment, Run
from moebench.protocol import Plan
from moebench.protocols.language_model.config import Data, Method, Setting, shape_of

PRETRAINED_ON = "text"
"""Name of the task of pre-training in ``provenance.csv`` and ``costs.csv``."""
EXAMINATION = "examination"
"""What every model is given after pre-training: held-out text and zero-shot tasks; nothing is learned."""
SCALE = {"precision", "threads", "devices", "nodes", "decoder"}
NOT_PRETRAINING = {
    "label",
    "published",
    "table",
    "pretrain_as",
    "wide",
    "rank",
    "match",
    "split",
}  # the last four are in the experts' sizes
OPTIONAL = {"multi_head", "shared", "one_bit"}
"""Parts of a method that stand in its plan only where it has them, so that what others are does not depend on there being such parts."""
NOT_EXAMINATION = NOT_PRETRAINING | {"losses", "coupling"}
SOURCES = [
    "moebench.data.choices",
    "moebench.data.constructed",
    "moebench.data.docstrings",
    "moebench.data.files",
    "moebench.data.text_files",
    "moebench.data.text_stream",
]
"""Modules that make the texts; training reads what was prepared."""


def runs(experiment: Experiment) -> list[Run]:
    """List the runs, pre-training first; a method with ``pretrain_as`` is only examined."""
    methods, seeds = experiment.methods, experiment.setting.seeds
    starts = {name: method.pretrain_as or name for name, method in methods.items()}
    return [Run("pretrain", name, seed, part="train") for name in sorted(set(starts.values())) for seed in seeds] + [
        Run("finetune", name, seed, EXAMINATION, f"{start}-{seed}", EXAMINATION) for name, start in starts.items() for seed in seeds
    ]


def plan(experiment: Experiment, run: Run) -> Plan:
    """What a run is; the router or layer, imported by name at run time, is named here."""
    setting: Setting = experiment.setting
    method: Method = experiment.method(run.method)
    data: Data = experiment.data
    if run.stage == "pretrain":
        what = _model(setting, run.method, method, NOT_PRETRAINING) | {"pretrain": setting.pretrain.model_dump(mode="json")}
        module = "pretraining"
    else:
        what = _model(setting, run.method, method, NOT_EXAMINATION) | {"examine_batch": setting.examine_batch, "tasks": data.tasks}
        what["texts"] = sorted(data.texts)
        module = "examination"
    layer = f"moebench.moe.routers.{method.router}" if method.router else f"moebench.moe.layers.{method.layer}"
    return Plan(what, [f"moebench.protocols.language_model.{module}", layer], SOURCES)


def _model(setting: Setting, name: str, method: Method, without: set[str]) -> dict[str, Any]:
    """What pre-training and examination of a method have in common."""
    absent = {key for key in OPTIONAL if not getattr(method, key)}
    every = {"sparse_every": setting.sparse_every} if setting.sparse_every > 1 else {}
    return (
        setting.model_dump(mode="json", include=SCALE)
        | every
        | {
            "method": method.model_dump(mode="json", exclude=without | absent),
            "sizes": shape_of(setting, method, name),
        }
    )

"""The verb ``finetune`` of papers on images: train the downstream task, then predict test, shifted, corrupted and foreign images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from moebench.config_images import DOWNSTREAM, UPSTREAM, ImageMethod, ImageTraining, Vision
from moebench.ensembles.build import build_vit
from moebench.files import atomic_write, read_json, sha256, write_json
from moebench.stages.guard import guard
from moebench.stages.images import names, read_set
from moebench.stages.pretrain_images import costs_of
from moebench.training.images import ImageBatches, ImageModule, predict
from moebench.training.trainer import close_run, costs, fit, make_trainer, open_run

FEATURES = (f"{DOWNSTREAM}_train", f"{DOWNSTREAM}_test", "ood_")
"""Beginnings of the names of the sets whose features are kept, for distances between them."""


def finetune_images(root: Path, profile: str, paper: str, method: str, seed: int) -> None:
    """Fine-tune one method; writes ``runs/<profile>/<paper>/finetune/<method>-downstream-<seed>/``.

    ``predictions/<set>.npz`` has the members' ``logits`` (N, M, C), ``labels`` (N,), and for some sets ``features`` (N, F), members side by
    side. ``fewshot.npz`` has the features of the pre-trained model, before fine-tuning.

    Raises:
        MoebenchError: missing or damaged input, or a damaged checkpoint.
    """
    prepared = root / "data" / "prepared" / "images" / profile
    plan_file = root / "runs" / profile / "plan" / paper / "finetune" / f"{method}-{DOWNSTREAM}.json"
    folder = root / "runs" / profile / paper / "finetune" / f"{method}-{DOWNSTREAM}-{seed}"
    plan = read_json(plan_file)["config"]
    what, optimisation = ImageMethod.model_validate(plan["method"]), ImageTraining.model_validate(plan["finetune"])
    start = root / "runs" / profile / paper / "pretrain" / f"{what.pretrain_as or method}-{seed}" / "model.safetensors"
    with guard(folder):
        inputs = " ".join(sha256(path) for path in (plan_file, prepared / "manifest.json", start))
        open_run(folder, hashlib.sha256(inputs.encode()).hexdigest())
        train = read_set(prepared, f"{DOWNSTREAM}_train")
        draw = seed * 1000 + what.draw
        torch.manual_seed(draw)
        model = build_vit(Vision.model_validate(plan["vision"]), what, plan["experts"], plan["last"], len(train.classes), start)
        module = ImageModule(model, what, optimisation, draw)
        trainer, progress = make_trainer(folder, optimisation.steps, optimisation.checkpoint_every, plan)
        before: dict[str, np.ndarray] = {}
        if not (folder / "fewshot.npz").is_file():  # a resumed run has it
            for split in ("train", "validation", "test"):
                images = read_set(prepared, f"{DOWNSTREAM}_{split}")
                before |= {split: predict(trainer, module, images)["features"], f"{split}_labels": images.labels}
            _write(folder / "fewshot.npz", before)
        fit(trainer, module, ImageBatches(train, optimisation, draw, trainer.global_rank, trainer.world_size), folder)
        for name in names(prepared):
            if name.startswith(UPSTREAM):
                continue
            images = read_set(prepared, name)
            found = predict(trainer, module, images)
            arrays = {"labels": images.labels}
            if name != f"{DOWNSTREAM}_train":
                arrays["logits"] = found["logits"]
            if name.startswith(FEATURES):
                arrays["features"] = found["features"]
            if trainer.is_global_zero:
                _write(folder / "predictions" / f"{name}.npz", arrays)
        if trainer.is_global_zero:
            counted = costs_of(model, what, module.rows_per_token())
            facts = {"stage": "finetune", "task": "model", "language": "", "n": 1}
            write_json(
                folder / "measures.json", [facts | {"metric": key, "value": counted[key]} for key in ("flops_per_image", "parameters")]
            )
            write_json(folder / "costs.json", costs(trainer, progress, counted))
            close_run(folder)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_write(path, binary=True) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]

"""The verb ``pretrain`` of papers on images: from random weights to a checkpoint, and its accuracy on the upstream task."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from moebench.config_images import UPSTREAM, ImageMethod, ImageTraining, Vision
from moebench.ensembles.build import build_vit
from moebench.files import atomic_write, read_json, sha256, write_json
from moebench.models.vit import ViT, flops_per_image
from moebench.stages.guard import guard
from moebench.stages.images import read_set
from moebench.training.images import ImageBatches, ImageModule, predict
from moebench.training.trainer import close_run, costs, fit, make_trainer, open_run


def pretrain_images(root: Path, profile: str, paper: str, method: str, seed: int) -> None:
    """Pre-train one method with one seed; writes ``runs/<profile>/<paper>/pretrain/<method>-<seed>/``.

    Raises:
        MoebenchError: missing or damaged input, or a damaged checkpoint.
    """
    prepared = root / "data" / "prepared" / "images" / profile
    plan_file = root / "runs" / profile / "plan" / paper / "pretrain" / f"{method}.json"
    folder = root / "runs" / profile / paper / "pretrain" / f"{method}-{seed}"
    plan = read_json(plan_file)["config"]
    with guard(folder):
        open_run(folder, hashlib.sha256(f"{sha256(plan_file)} {sha256(prepared / 'manifest.json')}".encode()).hexdigest())
        what, optimisation = ImageMethod.model_validate(plan["method"]), ImageTraining.model_validate(plan["pretrain"])
        train, test = read_set(prepared, f"{UPSTREAM}_train"), read_set(prepared, f"{UPSTREAM}_test")
        torch.manual_seed(seed)
        model = build_vit(Vision.model_validate(plan["vision"]), what, plan["experts"], plan["last"], len(train.classes))
        module = ImageModule(model, what, optimisation, seed)
        trainer, progress = make_trainer(folder, optimisation.steps, optimisation.checkpoint_every, plan)
        fit(trainer, module, ImageBatches(train, optimisation, seed, trainer.global_rank, trainer.world_size), folder)
        logits_NMC = predict(trainer, module, test)["logits"]
        if trainer.is_global_zero:
            right = (mean_probabilities(logits_NMC).argmax(-1) == test.labels).mean()
            measure = {"stage": "pretrain", "task": f"{UPSTREAM}_test", "language": "", "metric": "accuracy", "value": 100 * float(right)}
            with atomic_write(folder / "model.safetensors", binary=True) as file:
                file.write(save({name: value.detach().contiguous() for name, value in model.state_dict().items()}))
            write_json(folder / "measures.json", [measure | {"n": len(test)}])
            write_json(folder / "costs.json", costs(trainer, progress, costs_of(model, what, module.rows_per_token())))
            close_run(folder)


def mean_probabilities(logits_NMC: np.ndarray) -> np.ndarray:
    """Mean over the members of their probabilities, (N, C)."""
    return torch.from_numpy(logits_NMC).softmax(-1).mean(1).numpy()


def costs_of(model: ViT, method: ImageMethod, rows: float) -> dict[str, Any]:
    """Parameters, all and those of a forward pass through ``rows`` experts a token, and forward FLOPs of a prediction of an image."""
    passes = method.members if method.variant == "mc_dropout" else 1
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    count = next((len(parameter) for name, parameter in model.named_parameters() if ".experts." in name), 1)
    active = total - experts + round(experts * min(rows * model.copies / count, 1))
    return {"parameters": total, "active_parameters": active, "flops_per_image": round(passes * flops_per_image(model, rows))}

"""The verb ``finetune``: train a task in the pivot language, then predict its validation set and every language's test set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from moebench import config
from moebench.catalogue import task
from moebench.data import hub_tokenizer
from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_json, read_jsonl, sha256, write_json, write_jsonl
from moebench.models.build import build_encoder, load_weights
from moebench.models.flops import costs_of
from moebench.stages.guard import guard
from moebench.training.features import features
from moebench.training.finetuning import FinetuningModule, TaskBatches, predict
from moebench.training.trainer import close_run, costs, fit, make_trainer, open_run


def finetune(root: Path, profile: str, paper: str, method: str, training_set: str, seed: int) -> None:
    """Fine-tune one method on one training set; writes ``runs/<profile>/<paper>/finetune/<method>-<training set>-<seed>/``.

    Raises:
        MoebenchError: missing or damaged input, or a damaged checkpoint.
    """
    prepared = root / "data" / "prepared" / profile
    plan_file = root / "runs" / profile / "plan" / paper / "finetune" / f"{method}-{training_set}.json"
    folder = root / "runs" / profile / paper / "finetune" / f"{method}-{training_set}-{seed}"
    plan = read_json(plan_file)["config"]
    start = root / "runs" / profile / paper / "pretrain" / f"{plan['method']['pretrain_as'] or method}-{seed}" / "model.safetensors"
    with guard(folder):
        inputs = " ".join(sha256(path) for path in (plan_file, prepared / "manifest.json", start))
        open_run(folder, hashlib.sha256(inputs.encode()).hexdigest())
        tokenizer = hub_tokenizer.load(prepared / "tokenizer")
        optimisation = config.Finetuning.model_validate(plan["finetune"])
        kind = task(plan["tasks"][0])
        data = prepared / "tasks" / training_set
        training = features(kind, read_jsonl(data / "train.jsonl"), tokenizer, optimisation)
        if optimisation.epochs:
            per_epoch = -(-len(training) // optimisation.batch)
            optimisation = optimisation.model_copy(update={"steps": optimisation.epochs * per_epoch})
        sparse = config.Sparse.model_validate(plan["sparse"]) if plan["sparse"] else None
        torch.manual_seed(seed)
        encoder = build_encoder(config.Encoder.model_validate(plan["encoder"]), sparse, plan["method"], embedding_rows(start))
        load_weights(encoder, start)
        if plan["method"]["pretrained"]:
            encoder.freeze(optimisation.freeze_embedding, optimisation.freeze_blocks)
        freeze, ensemble, members = (plan["method"][key] for key in ("freeze_in_finetuning", "ensemble", "members"))
        torch.manual_seed(seed)
        losses, consistency = plan["method"]["losses"], plan["method"]["consistency"]
        module = FinetuningModule(encoder, optimisation, losses, consistency, seed, kind, freeze, ensemble, members)
        trainer, progress = make_trainer(folder, optimisation.steps, optimisation.checkpoint_every, plan)
        make = TaskBatches(kind, training, optimisation.batch, tokenizer.pad, seed, trainer.global_rank, trainer.world_size)
        fit(trainer, module, make, folder)
        tests = [(name, path) for name in plan["tasks"] for path in sorted((data / "test" / name).glob("*.jsonl"))]
        for name, path in [("", data / "validation.jsonl"), *tests]:
            predicted, probabilities = predict(trainer, module, task(name) if name else kind, read_jsonl(path), tokenizer, optimisation)
            if trainer.is_global_zero:
                target = folder / "predictions" / name / path.name
                write_jsonl(target, predicted)
                if probabilities is not None:
                    with atomic_write(target.with_suffix(".npy"), binary=True) as file:
                        np.save(file, probabilities.astype(np.float32))
        if trainer.is_global_zero:
            write_json(folder / "measures.json", [])
            counts = costs_of(encoder, sparse, optimisation.max_length, module.rows_per_token())
            counts["flops_per_token"] *= members  # each is a forward pass of its own
            write_json(folder / "costs.json", costs(trainer, progress, counts))
            close_run(folder)


def embedding_rows(checkpoint: Path) -> int:
    """Read the vocabulary size off a checkpoint without loading it.

    Raises:
        MoebenchError: it is missing or damaged.
    """
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return int(file.get_slice("embedding.weight").get_shape()[0])
    except Exception as error:
        raise MoebenchError(f"{checkpoint}: not a readable checkpoint ({error}); delete its folder and run again") from error

"""The verb ``pretrain``: from random or published weights to a pre-trained checkpoint and its validation perplexity."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from moebench import config
from moebench.data import hub_tokenizer
from moebench.data.checkpoint_files import resolve
from moebench.files import atomic_write, read_json, sha256, write_json
from moebench.models.build import build_encoder, load_bundled
from moebench.models.checkpoints import check_vocabulary, load_checkpoint, rows_of
from moebench.models.flops import costs_of
from moebench.moe.layer import MoELayer
from moebench.stages.guard import guard
from moebench.training.pretraining import MaskedLMBatches, PretrainingModule, validate
from moebench.training.trainer import close_run, costs, fit, make_trainer, open_run


def pretrain(root: Path, profile: str, paper: str, method: str, seed: int) -> None:
    """Pre-train one method with one seed; writes ``runs/<profile>/<paper>/pretrain/<method>-<seed>/``.

    Raises:
        MoebenchError: missing or damaged input, or a damaged checkpoint.
    """
    prepared = root / "data" / "prepared" / profile
    plan_file = root / "runs" / profile / "plan" / paper / "pretrain" / f"{method}.json"
    folder = root / "runs" / profile / paper / "pretrain" / f"{method}-{seed}"
    plan = read_json(plan_file)["config"]
    with guard(folder):
        open_run(folder, hashlib.sha256(f"{sha256(plan_file)} {sha256(prepared / 'manifest.json')}".encode()).hexdigest())
        tokenizer = hub_tokenizer.load(prepared / "tokenizer")
        optimisation = config.Pretraining.model_validate(plan["pretrain"])
        sparse = config.Sparse.model_validate(plan["sparse"]) if plan["sparse"] else None
        downloads = root / "data" / "downloads"
        checkpoint = resolve(plan["checkpoint"], downloads) if plan["initialisation"] == "hub" else None
        rows = tokenizer.size
        if checkpoint:
            check_vocabulary(checkpoint, tokenizer)
            rows = rows_of(checkpoint)
        torch.manual_seed(seed)
        encoder = build_encoder(config.Encoder.model_validate(plan["encoder"]), sparse, plan["method"], rows)
        if checkpoint and plan["method"]["pretrained"]:
            load_checkpoint(encoder, checkpoint)
        elif plan["initialisation"] == "bundled" and plan["method"]["pretrained"]:
            load_bundled(encoder, tokenizer.rows, downloads)
        module = PretrainingModule(encoder, optimisation, plan["method"]["losses"], plan["method"]["consistency"], seed)
        steps = optimisation.steps if plan["method"]["pretrained"] else 0
        trainer, progress = make_trainer(folder, steps, optimisation.checkpoint_every, plan)
        measures: list[dict[str, Any]] = []
        positions = 128
        if steps:
            make = MaskedLMBatches(prepared / "corpus", tokenizer, optimisation, seed, trainer.global_rank, trainer.world_size)
            positions = make.rows.rows_NS.shape[1]
            if isinstance(encoder.sparse, MoELayer):
                encoder.sparse.router.before_training(torch.from_numpy(make.rows.piece_counts(tokenizer)))
            fit(trainer, module, make, folder)
            measures = validate(trainer, module, sparse, prepared / "corpus", tokenizer, optimisation.mask)
        if trainer.is_global_zero:
            weights = {name.removeprefix("encoder."): value.detach().contiguous() for name, value in module.state_dict().items()}
            del weights["usage"]
            if not steps:
                weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
            with atomic_write(folder / "model.safetensors", binary=True) as file:
                file.write(save(weights))
            write_json(folder / "measures.json", measures)
            write_json(folder / "costs.json", costs(trainer, progress, costs_of(encoder, sparse, positions, module.rows_per_token())))
            close_run(folder)

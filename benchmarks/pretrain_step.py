"""Time one pre-training step of every method of a profile on random ids: tokens per second, without data loading and Lightning.

    python benchmarks/pretrain_step.py [--profile cpu] [--rounds 15]

Methods take turns, so that a busy machine slows all of them alike; the figure is the median.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from moebench import config
from moebench.models.build import build_encoder
from moebench.training.pretraining import PretrainingModule


def main() -> None:
    """Print a line per method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--paper", default="xmoe")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    root = config.project_root()
    setting = config.setting(root, arguments.paper, arguments.profile)
    data = config.data(root, arguments.profile)
    vocabulary = data.tokens.vocabulary or 250002  # the bundled tokenizer's
    positions = data.corpus.sequence_length if data.corpus else 64
    torch.set_num_threads(setting.threads)
    size = (setting.pretrain.batch, positions)
    ids = torch.randint(5, vocabulary, size)
    chosen = torch.rand(size) < setting.pretrain.mask
    batch = {"ids": ids, "mask": torch.ones(size, dtype=torch.bool), "chosen": chosen, "targets": ids[chosen]}
    modules, seconds = {}, {}
    for name in config.method_names(root, arguments.paper, arguments.profile):
        method = config.method(root, arguments.paper, name)
        if method.pretrained and not method.pretrain_as:
            torch.manual_seed(0)
            sparse = setting.sparse if method.layer == "moe" else None
            encoder = build_encoder(setting.encoder, sparse, method.model_dump(), vocabulary)
            module = PretrainingModule(encoder, setting.pretrain, method.balance, 0)
            optimiser = module.configure_optimizers()["optimizer"]
            modules[name], seconds[name] = (module, optimiser), []
    for _ in range(arguments.rounds + 2):
        for name, (module, optimiser) in modules.items():
            begin = time.perf_counter()
            optimiser.zero_grad()
            logits, aux = module.logits(batch)
            module.total_loss(torch.nn.functional.cross_entropy(logits, batch["targets"]), aux).backward()
            module.configure_gradient_clipping(optimiser)
            optimiser.step()
            seconds[name].append(time.perf_counter() - begin)
    for name, taken in seconds.items():
        median = statistics.median(taken[2:])  # the first two warm up
        print(f"{name:24s} {1000 * median:8.1f} ms a step {ids.numel() / median:10.0f} tokens/s")


if __name__ == "__main__":
    main()

"""Runs of every kind of loss on rows of very different lengths, of which two ranks and one process should make the same steps.

Nothing in them is random but the batches, and the learning rate is next to nothing, so that every step's gradient can be compared.
"""

import json

import numpy as np
import torch
from test_runs import METHODS, SCALE, SPARSE, TOKENIZER

from moebench.data.catalogue import task
from moebench.data.images import ImageSet
from moebench.models import shapes
from moebench.models.build import build_encoder
from moebench.protocols.transfer.config import Finetuning, Pretraining
from moebench.protocols.transfer.features import Feature
from moebench.protocols.transfer.finetuning import FinetuningModule, TaskBatches
from moebench.protocols.transfer.pretraining import MaskedLMBatches, PretrainingModule
from moebench.protocols.vision.build import build_vit
from moebench.protocols.vision.classification import ImageBatches, ImageModule
from moebench.protocols.vision.config import ImageTraining, Method
from moebench.training.trainer import fit, make_trainer, open_run

STEPS = 6
SHAPE = shapes.Encoder(layers=2, width=16, heads=2, inner=16, positions="relative", dropout=0.0)
TASKS = {"tagging": "udpos", "pair": "xnli", "qa": "xquad"}
ROUTERS = {
    "capacity": {"layer": "moe", "router": "switch", "options": {"capacity_factor": 0.5}},
    "counting": {"layer": "moe", "router": "aux_free", "options": {"k": 2, "rate": 0.01}},
}
METHOD = {
    "images": {"variant": "dense"},
    "members": {"variant": "batch_ensemble", "members": 2},
    "mimo": {"variant": "mimo", "members": 2, "repetition": 1.0},
}
KINDS = ("mlm", "mlm_of_one_row", "mlm_without_targets", "two_passes", *ROUTERS, *TASKS, *METHOD)
"""What is trained: nine rows in batches of four leave one row, so a rank empty, and so does a batch of one."""


class TwoPasses(PretrainingModule):
    """Every second pass says something else, and the same on every rank."""

    passes = 0

    def outputs(self, batch):
        logits, targets, reports = super().outputs(batch)
        self.passes += 1
        return logits * (1 + 20 * (self.passes % 2)), targets, reports


def corpus(folder):
    """Rows of 3 to 30 pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = generator.integers(5, TOKENIZER.size, (12, 32)).astype(np.int32)
    rows[:, 0] = TOKENIZER.bos
    for row, length in zip(rows, generator.permutation(np.linspace(3, 30, 12).astype(int)), strict=True):
        row[length:] = TOKENIZER.pad
    np.save(folder / "train.npy", rows)
    (folder / "train.json").write_text(json.dumps({"language": ["aa"] * 12, "kind": ["text"] * 12}))
    return folder


def feature(kind, generator):
    words = int(generator.integers(3, 31))
    ids = [TOKENIZER.bos, *generator.integers(5, TOKENIZER.size, words).tolist(), TOKENIZER.eos]
    segment = [0, *[1] * (words // 2), *[2] * (words - words // 2), 0]
    if kind == "tagging":
        return Feature(ids, 0, first=list(range(1, words + 1)), tags=generator.integers(0, 17, words).tolist())
    return Feature(ids, 0, segment, label=int(generator.integers(3)), span=(words // 2 + 1, words))


def job(kind, folder, accumulate):
    """Return the module, its options and its batches."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    options = {"steps": STEPS, "batch": 4, "rate": 1e-12, "accumulate": accumulate}
    if kind in METHOD:
        method = Method(label="", **METHOD[kind])
        model = build_vit(shapes.Vision(image=4, patch=2, channels=1, layers=2, width=8, heads=2, inner=8), method, 1, None, 3)
        images = ImageSet(generator.integers(0, 256, (9, 4, 4, 1), dtype=np.uint8), generator.integers(0, 3, 9), ("a", "b", "c"))
        options = ImageTraining(**options, shift=1)
        module = ImageModule(model.double(), method, options, 0)  # two images in one input cancel: rounding is above 1e-6 in fp32
        return module, lambda part, parts: ImageBatches(images, options, 0, part, parts)
    method = ROUTERS.get(kind, METHODS["xmoe"])
    encoder = build_encoder(SHAPE, SPARSE, method, TOKENIZER.size)
    if kind in TASKS:
        options = Finetuning(**options, max_length=32)
        inputs = [feature(kind, generator) for _ in range(9)]
        module = FinetuningModule(encoder, options, {}, 0.0, 0, task(TASKS[kind]), False)
        return module, lambda part, parts: TaskBatches(module.task, inputs, 4, TOKENIZER.pad, 0, part, parts)
    options |= {"batch": 1 if kind == "mlm_of_one_row" else 4, "mask": 1e-9 if kind == "mlm_without_targets" else 0.3, "translation": 0}
    options = Pretraining(**options)
    rows = corpus(folder / "corpus")
    module = TwoPasses(encoder, options, {}, 5.0, 0) if kind == "two_passes" else PretrainingModule(encoder, options, {}, 0.0, 0)
    return module, lambda part, parts: MaskedLMBatches(rows, TOKENIZER, options, 0, part, parts)


def train(kind, folder, ranks, accumulate):
    """Return what each step of this process saw: gradients and seeds; its own use of the sparse layer; and what the run recorded."""
    module, batches = job(kind, folder, accumulate)
    found = {"gradients": [], "seeds": [], "own": torch.zeros(3, dtype=torch.int64), "losses": []}
    seeded, outputs = module.on_train_batch_start, module.outputs

    def on_train_batch_start(batch, batch_idx):
        seeded(batch, batch_idx)
        found["seeds"].append(torch.default_generator.initial_seed())

    def observed(batch):
        result = outputs(batch | {"images": batch["images"].double()} if kind in METHOD else batch)
        for aux in result[2]:
            found["own"] += torch.tensor([len(aux.probs), int(aux.load.sum()), aux.dropped])
        return result

    def configure_gradient_clipping(*arguments, **options):
        gradients = [torch.zeros(1) if each.grad is None else each.grad.flatten() for each in module.trained]
        found["gradients"].append(torch.cat(gradients).double())
        found["losses"].append(module.loss)

    module.on_train_batch_start, module.outputs = on_train_batch_start, observed
    module.configure_gradient_clipping = configure_gradient_clipping
    home = folder / f"{kind}-{ranks}-{accumulate}"
    open_run(home, "key")
    trainer, progress = make_trainer(home, module.optimisation, SCALE | {"devices": ranks})
    fit(trainer, module, batches, home)
    return found | {"gradients": torch.stack(found["gradients"]), "usage": module.usage, "tokens": progress.tokens}

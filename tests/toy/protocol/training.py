"""How a run learns and predicts."""

import numpy as np
import torch

from moebench.config import Optimisation
from moebench.files import write_json
from moebench.moe.experts import ResidualExperts
from moebench.moe.layer import MoELayer
from moebench.moe.registry import build_router
from moebench.training.batches import weight
from moebench.training.job import Job
from moebench.training.module import Training


class Points(Training):
    def __init__(self, plan, seed):
        super().__init__(Optimisation.model_validate(plan["pretrain"]), plan["method"]["losses"], 0.0, seed)
        torch.manual_seed(seed)
        router = build_router(plan["method"]["router"], 16, plan["experts"], plan["method"]["options"], 0)
        self.inner, self.head = torch.nn.Linear(2, 16), torch.nn.Linear(16, 4)
        self.sparse = MoELayer(router, ResidualExperts(plan["experts"], 16, 16, 1), "sparse layer")

    def outputs(self, batch):
        states = self.inner(batch["points"])[:, None]
        y, aux = self.sparse(states, torch.ones_like(states[..., 0], dtype=torch.bool))
        return self.head((states + y)[:, 0]), batch["labels"], [aux]


class PointsJob(Job):
    def __init__(self, experiment, run, plan):
        self.module = Points(plan, run.seed)
        self.optimisation = self.module.optimisation
        files = (np.load(experiment.prepared / f"{split}.npz").items() for split in ("train", "test"))
        self.train, self.test = ({name: torch.from_numpy(values) for name, values in file} for file in files)

    def batches(self, part, parts):
        own, whole = slice(part, 32, parts), {"weight": weight(np.ones(32), part, parts)}
        return lambda step: whole | {name: values[32 * step % 320 :][own] for name, values in self.train.items()}

    def after(self, trainer, folder):
        logits, labels, _ = self.module.eval().outputs(self.test)
        write_json(folder / "right.json", (logits.argmax(-1) == labels).tolist())
        return []

    def costs(self):
        return {"parameters": sum(values.numel() for values in self.module.parameters())}


job = PointsJob

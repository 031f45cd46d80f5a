"""The verbs ``pretrain`` and ``finetune``: one run of any protocol, from its plan to its predictions, measures and costs."""

from __future__ import annotations

import hashlib

from safetensors.torch import save

from moebench.experiment import Experiment, Run
from moebench.files import atomic_write, read_object, sha256, write_json
from moebench.pipeline.guard import guard
from moebench.training.job import Job
from moebench.training.trainer import close_run, costs, fit, is_finished, make_trainer, open_run


def train(experiment: Experiment, run: Run) -> None:
    """Train one run in its folder; a killed one continues from its last checkpoint.

    Leaves ``measures.json``, ``costs.json``, ``course.csv``, the predictions or the checkpoint ``model.safetensors``.

    Raises:
        MoebenchError: missing or damaged input, or a damaged checkpoint.
    """
    folder, plan_file = experiment.folder(run), experiment.plan_file(run)
    plan = read_object(plan_file, config=dict)["config"]
    with guard(folder):
        inputs = [plan_file, experiment.part_file(run.part), *([experiment.start(run)] if run.start else [])]
        key = hashlib.sha256(" ".join(map(sha256, inputs)).encode()).hexdigest()
        if is_finished(folder, key):
            print(f"{folder} is finished already; to train this run again, delete it")
            return
        open_run(folder, key)
        job: Job = experiment.protocol.training.job(experiment, run, plan)
        trainer, progress = make_trainer(folder, job.optimisation, plan)
        job.before(trainer, folder)
        if job.optimisation.steps:
            fit(trainer, job.module, job.batches, folder)
        measures = job.after(trainer, folder)
        if trainer.is_global_zero:
            if (weights := job.weights()) is not None:
                with atomic_write(folder / "model.safetensors", binary=True) as file:
                    file.write(save({name: value.detach().contiguous() for name, value in weights.items()}))
            write_json(folder / "measures.json", [{"stage": run.stage} | measure for measure in measures])
            write_json(folder / "costs.json", costs(trainer, progress, job.costs()))
            close_run(folder, key)

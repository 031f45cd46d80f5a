"""What the tasks give away without understanding: predictions of shallow baselines."""

from __future__ import annotations

from pathlib import Path

from moebench.data.choices import ChoiceSource
from moebench.experiment import Experiment
from moebench.files import read_jsonl, write_jsonl
from moebench.protocols.language_model import shallow
from moebench.protocols.language_model.config import CONSTRUCTED_TASKS, Data


def baselines(experiment: Experiment, folder: Path) -> None:
    """Answer every constructed task, ``<baseline>/choices/<task>.jsonl``; data of the harness' own tasks are not at hand here."""
    data: Data = experiment.data
    if data.constructed is None:
        return
    tasks = {name: read_jsonl(experiment.prepared / "tasks" / f"{name}.jsonl") for name in data.tasks if name in CONSTRUCTED_TASKS}
    for name, answers in shallow.baselines(ChoiceSource(data.constructed).documents("train"), tasks).items():
        for task, scores in answers.items():
            write_jsonl(folder / name / "choices" / f"{task}.jsonl", shallow.choice_rows(tasks[task], scores))

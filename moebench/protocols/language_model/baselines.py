"""What the tasks give away without understanding: predictions of shallow baselines."""

from __future__ import annotations

from pathlib import Path

from moebench.data.choices import ChoiceSource
from moebench.experiment import Experiment
from moebench.files import read_jsonl, write_jsonl
from moebench.protocols.language_model import shallow
from moebench.protocols.language_model.config import Data


def baselines(experiment: Experiment, folder: Path) -> None:
    """Answer every constructed task, ``<baseline>/choices/<task>.jsonl``, with words counted in the text of its language.

    The harness' tasks have no baselines: their data are not at hand here, XNLI's files aside.
    """
    data: Data = experiment.data
    for text, language in data.made.items():
        names = data.asked_of(text)
        assert data.constructed is not None
        tasks = {name: read_jsonl(experiment.prepared / "tasks" / f"{name}.jsonl") for name in names}
        documents = ChoiceSource(data.constructed, language).documents("train")
        found = shallow.baselines(documents, tasks, endings=language > 0) if tasks else {}  # the pivot has none
        for name, answers in found.items():
            for task, scores in answers.items():
                write_jsonl(folder / name / "choices" / f"{task}.jsonl", shallow.choice_rows(tasks[task], scores))

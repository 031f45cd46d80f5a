"""What the tasks give away without understanding: predictions of the shallow baselines."""

from __future__ import annotations

from pathlib import Path

from moebench import files
from moebench.data.text_settings import tasks
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.protocols.transfer.shallow import BASELINES


def baselines(experiment: Experiment, folder: Path) -> None:
    """Write ``<baseline>/<task>/<language>.jsonl`` into an empty folder, for every task.

    Raises:
        MoebenchError: prepared data is missing or damaged; the message names the file.
    """
    for one in tasks(experiment.data):
        name, source = one.name, experiment.prepared / "tasks" / one.train
        train = files.read_jsonl(source / "train.jsonl")
        tests = {path.stem: files.read_jsonl(path) for path in sorted((source / "test" / name).glob("*.jsonl"))}
        if not train or not tests:
            lacking = source / "train.jsonl" if not train else source / "test" / name
            raise MoebenchError(f"{lacking}: no examples of task {name!r}; delete {experiment.prepared} and run again")
        every = [row for rows in tests.values() for row in rows]  # one call for all languages: a baseline is fitted once
        for baseline, predict in BASELINES[one.kind].items():
            predictions = iter(predict(train, every))
            for language, rows in tests.items():
                files.write_jsonl(folder / baseline / name / f"{language}.jsonl", [next(predictions) for _ in rows])

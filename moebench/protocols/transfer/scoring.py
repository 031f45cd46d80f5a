"""What predictions are worth: scores of every task and language, and how far probabilities can be trusted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from moebench.data.catalogue import Task
from moebench.data.text_settings import tasks
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, Run
from moebench.files import read_jsonl, read_object
from moebench.metrics import uncertainty
from moebench.protocols.transfer import answers, probabilities
from moebench.results.scored import Scored


def score(experiment: Experiment, judged: Collection[str], finished: Collection[Run]) -> Scored:
    """Score every prediction of finished runs, of ensembles over seeds, and of the shallow baselines.

    Fine-tuned runs also get the bootstrap standard error of each score over test examples; shallow baselines, which are only compared by
    their means, do not. Where the probabilities of pairs or words lie beside a run's predictions, it also gets the measures of uncertainty,
    as fractions. The stage ``ensemble``, seed 0, is the mean of the probabilities of **all** seeds of the setting, pre-trained and
    fine-tuned apart; it is there for a method and task only where every seed is, and there are two or more. Where a run is an ensemble
    itself, it is the mean over all members of all seeds.

    Args:
        experiment: whose predictions.
        judged: the methods to judge.
        finished: the runs that are.

    Raises:
        MoebenchError: a file is damaged or does not fit the test data.
    """
    prepared = experiment.prepared
    manifest = read_object(prepared / "manifest.json", train_languages=dict)
    chosen = tasks(experiment.data)
    gold = {task.name: _gold(prepared, task, manifest) for task in chosen}
    scored = Scored()
    members: dict[tuple[str, str], list[Path]] = defaultdict(list)  # (method, training set) → folders of its finished seeds
    for run in experiment.runs:
        if run.stage != "finetune" or run.method not in judged or run not in finished:
            continue
        folder = experiment.folder(run)
        members[run.method, run.training_set].append(folder)
        for task in chosen:
            if task.train == run.training_set:
                found, holes = _scores(task, gold[task.name], folder / "predictions" / task.name, answers.score_with_errors)
                found += _uncertainty(task, gold[task.name], prepared, manifest, [folder])
                scored.records += ({"method": run.method, "seed": run.seed, "stage": run.stage} | row for row in found)
                scored.missing += ((hole, run) for hole in holes)
    seeds = experiment.setting.seeds
    for (method, training_set), folders in members.items():
        for task in chosen:
            if task.train == training_set and len(folders) == len(seeds) > 1:
                found = _uncertainty(task, gold[task.name], prepared, manifest, folders)
                scored.records += ({"method": method, "seed": 0, "stage": "ensemble"} | row for row in found)
    folder = experiment.baselines_folder
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        scored.missing.append((folder, None))
    for name in names:
        for task in chosen:
            if (folder / name / task.name).is_dir():  # not every baseline fits every kind of task
                found, holes = _scores(task, gold[task.name], folder / name / task.name, answers.score)
                scored.records += ({"method": name, "seed": 0, "stage": "baseline"} | row for row in found)
                scored.missing += ((hole, None) for hole in holes)
    return scored


def _gold(prepared: Path, task: Task, manifest: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Read the test data of a task: language → rows. What the manifest names has to be there."""
    folder = prepared / "tasks" / task.train / "test" / task.name
    made = {prepared / "tasks" / name for name in manifest.get("rows", {})}
    languages = {path.stem: read_jsonl(path) for path in sorted({*folder.glob("*.jsonl"), *(one for one in made if one.parent == folder)})}
    if not languages:
        raise MoebenchError(f"{folder}: holds no test data of task {task.name!r}; delete {prepared} and run again")
    return languages


def _scores(
    task: Task, gold: dict[str, list[dict[str, Any]]], folder: Path, score: Callable[..., dict[str, tuple[float, int]]]
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Score the predictions of one model on one task; also returns the prediction files that are not there."""
    rows, holes = [], []
    for language, examples in gold.items():
        path = folder / f"{language}.jsonl"
        if not path.is_file():
            holes.append(path)
            continue
        for metric, (value, n) in score(task, language, examples, read_jsonl(path), where=str(path)).items():
            rows.append({"task": task.name, "language": language, "metric": metric, "value": value, "n": n})
    return rows, holes


def _uncertainty(
    task: Task, gold: dict[str, list[dict[str, Any]]], prepared: Path, manifest: dict[str, Any], folders: list[Path]
) -> list[dict[str, Any]]:
    """Judge the probabilities of a run, or the mean of those of several, which also get the ensemble's score.

    Members, those within a run and those of several runs alike, also get how they differ.

    The temperature is fitted on the validation set of the training language, under which it is recorded. Runs without probabilities (older
    ones, or of tasks without classes) have no such records.
    """

    def of_members(name: str, examples: list[dict[str, Any]]) -> np.ndarray:
        return np.concatenate([probabilities.read(folder / "predictions" / name, task, examples) for folder in folders])

    def there(name: str) -> bool:
        return all((folder / "predictions" / name).is_file() for folder in folders)

    if task.kind not in probabilities.KINDS or not there("validation.npy"):
        return []
    held_out = read_jsonl(prepared / "tasks" / task.train / "validation.jsonl")
    probs_NC = of_members("validation.npy", held_out).mean(axis=0)
    fitted = uncertainty.fitted(probs_NC, probabilities.labels(task, held_out))
    pivot = manifest["train_languages"][task.train]
    rows = [{"language": pivot, "metric": metric, "value": value, "n": len(probs_NC)} for metric, value in fitted.items()]
    for language, examples in gold.items():
        if not there(f"{task.name}/{language}.npy"):
            continue
        probs_MNC = of_members(f"{task.name}/{language}.npy", examples)
        probs_NC = probs_MNC.mean(axis=0)
        values = uncertainty.measures(probs_NC, probabilities.labels(task, examples), fitted[uncertainty.TEMPERATURE])
        if len(probs_MNC) > 1:
            values |= uncertainty.differing(probs_MNC)
        if len(folders) > 1:
            predicted = probabilities.predictions(task, examples, probs_NC)
            for metric, (value, n) in answers.score(task, language, examples, predicted, "the ensemble's predictions").items():
                rows.append({"language": language, "metric": metric, "value": value, "n": n})
        rows += ({"language": language, "metric": metric, "value": value, "n": len(probs_NC)} for metric, value in values.items())
    return [{"task": task.name} | row for row in rows]

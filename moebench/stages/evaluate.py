"""Stage ``evaluate``: predictions and measures of every run of a paper become its records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moebench import catalogue, config
from moebench.errors import MoebenchError
from moebench.files import read_json, read_jsonl, sha256, write_text
from moebench.results import records
from moebench.stages.kept import keep
from moebench.stages.runs import Run
from moebench.stages.select import training_sets
from moebench.tasks import scoring, uncertainty

FILES = {"records.csv": records.RECORDS, "provenance.csv": records.PROVENANCE, "costs.csv": records.COSTS}
MEASURE: dict[str, Any] = {"stage": str, "task": str, "language": str, "metric": str, "value": (int, float), "n": int}


def expected_runs(root: Path, profile: str, paper: str) -> list[Run]:
    """List the runs that a paper's setting asks for, pre-training first.

    A method that starts from another one's checkpoints (``pretrain_as``) has no pre-training runs of its own; those numbers stand under
    the other method and are not repeated.
    """
    setting = config.setting(root, paper, profile)
    methods = {name: config.method(root, paper, name) for name in config.method_names(root, paper, profile)}
    own = [name for name, method in methods.items() if not method.pretrain_as]
    return [Run("pretrain", name, seed) for name in own for seed in setting.seeds] + [
        Run("finetune", name, seed, training_set)
        for name in methods
        for training_set in sorted(training_sets(root, profile, paper, name))
        for seed in setting.seeds
    ]


def made_from(root: Path, profile: str, paper: str) -> dict[str, list[str]]:
    """Map each method of a profile to those whose runs it starts from."""
    starts = {name: config.method(root, paper, name).pretrain_as for name in config.method_names(root, paper, profile)}
    return {name: [start] if start else [] for name, start in starts.items()}


def data_name(manifest: dict[str, Any]) -> str:
    """Return the short name of the data that every record carries: ``constructed-1``, or ``files:`` and 12 digits of the revision."""
    revision = str(manifest["revision"])
    return f"files:{revision[:12]}" if manifest["source"] == "files" else revision


def evaluate(root: Path, profile: str, paper: str, only: Collection[str] = ()) -> list[str]:
    """Score every prediction and write ``records.csv``, ``provenance.csv`` and ``costs.csv`` under ``results/<profile>/<paper>/``.

    Everything is read and scored before the first file is written. Fine-tuned runs also get the bootstrap standard error of each score
    over test examples; shallow baselines, which are only compared by their means, do not.

    Where the probabilities of pairs or words lie beside a run's predictions, it also gets the measures of uncertainty, as fractions. The
    stage ``ensemble``, seed 0, is the mean of the probabilities of **all** seeds of the setting, pre-trained and fine-tuned apart; it is
    there for a method and task only where every seed is, and there are two or more. Where a run is an ensemble itself, it is the mean over
    all members of all seeds.

    Args:
        root: the project's root.
        profile: name of the profile.
        paper: name of the paper.
        only: score the runs of these methods alone; the records of all others stay as they are (`moebench.stages.kept`). None: score all.

    Returns:
        The methods whose records stay although their code has changed.

    Raises:
        MoebenchError: cells are missing (the message lists them and the command that makes the first), a file is damaged or does not
            fit the test data, or the records of other methods cannot stay.
    """
    prepared = root / "data" / "prepared" / profile
    manifest = read_json(prepared / "manifest.json")
    tasks = config.tasks(config.data(root, profile))
    gold = {task.name: _gold(prepared, task, profile) for task in tasks}
    common = {"profile": profile, "data": data_name(manifest), "paper": paper}
    runs = expected_runs(root, profile, paper)
    kept, changed = keep(root, profile, paper, only, made_from(root, profile, paper), runs, FILES)
    rows, provenance, costs = (kept[name] for name in FILES)
    missing: list[tuple[Path, str]] = []
    members: dict[tuple[str, str], list[Path]] = defaultdict(list)  # (method, training set) → folders of its finished seeds

    for run in runs:
        if only and run.method not in only:
            continue
        folder = run.folder(root, profile, paper)
        make = records.command(paper, run.stage, profile, run.method, run.seed, run.training_set)
        if not (folder / "costs.json").is_file() or (folder / "run.json").exists():  # not there, or not finished
            missing.append((folder, make))
            continue
        key = common | {"method": run.method, "seed": run.seed}
        rows += (key | measure for measure in measures_of(folder / "measures.json", run.stage))
        members[run.method, run.training_set].append(folder)
        for task in tasks:
            if run.stage == "finetune" and task.train == run.training_set:
                found, holes = _scores(task, gold[task.name], folder / "predictions" / task.name, scoring.score_with_errors)
                found += _uncertainty(task, gold[task.name], prepared, manifest, [folder])
                rows += (key | {"stage": run.stage} | score for score in found)
                missing += ((hole, make) for hole in holes)
        plan, cost = run.plan(root, profile, paper), read_json(folder / "costs.json")
        identity = {"profile": profile, "paper": paper, "method": run.method, "seed": run.seed, "stage": run.stage}
        identity["task"] = run.training_set or "mlm"
        facts = cost | {
            "train_language": manifest["train_languages"][run.training_set] if run.training_set else None,
            "config_hash": sha256(plan),
            "fingerprint": read_json(plan).get("fingerprint"),
        }
        provenance.append(identity | {column: facts.get(column) for column in records.PROVENANCE.values})
        costs.append(identity | {column: cost.get(column) for column in records.COSTS.values})

    seeds = config.setting(root, paper, profile).seeds
    for (method, training_set), folders in members.items():
        for task in tasks:
            if task.train == training_set and len(folders) == len(seeds) > 1:
                found = _uncertainty(task, gold[task.name], prepared, manifest, folders)
                rows += (common | {"method": method, "seed": 0, "stage": "ensemble"} | score for score in found)

    baselines = root / "runs" / profile / "baselines"
    make = f"dvc repro baselines@{profile}"
    names = sorted(path.name for path in baselines.iterdir() if path.is_dir()) if baselines.is_dir() else []
    if not names:
        missing.append((baselines, make))
    for name in names:
        for task in tasks:
            if (baselines / name / task.name).is_dir():  # not every baseline fits every kind of task
                found, holes = _scores(task, gold[task.name], baselines / name / task.name, scoring.score)
                rows += (common | {"method": name, "seed": 0, "stage": "baseline"} | score for score in found)
                missing += ((hole, make) for hole in holes)

    if missing:
        listed = "\n".join(f"  {path.relative_to(root)}" for path, _ in missing)
        raise MoebenchError(f"{len(missing)} missing under {root}:\n{listed}\nThe first is made by: {missing[0][1]}")
    target = root / "results" / profile / paper
    contents = zip(FILES.items(), (rows, provenance, costs), strict=True)
    texts = {target / name: records.render(content, form, target / name) for (name, form), content in contents}
    for path, text in texts.items():
        write_text(path, text)
    return changed


def _gold(prepared: Path, task: catalogue.Task, profile: str) -> dict[str, list[dict[str, Any]]]:
    """Read the test data of a task: language → rows."""
    folder = prepared / "tasks" / task.train / "test" / task.name
    languages = {path.stem: read_jsonl(path) for path in sorted(folder.glob("*.jsonl"))}
    if not languages:
        raise MoebenchError(f"{folder}: holds no test data of task {task.name!r}; make it with: dvc repro prepare@{profile}")
    return languages


def measures_of(path: Path, stage: str) -> Iterator[dict[str, Any]]:
    """Read what a run measured itself."""
    for number, measure in enumerate(read_json(path)):
        if measure.keys() != MEASURE.keys() or not all(isinstance(measure[name], kind) for name, kind in MEASURE.items()):
            raise MoebenchError(f"{path}: entry {number} is {measure}; should have {', '.join(MEASURE)}")
        if measure["stage"] != stage:
            raise MoebenchError(f"{path}: entry {number}: key 'stage' has the value {measure['stage']!r}; should be {stage!r}")
        yield measure


def _scores(
    task: catalogue.Task, gold: dict[str, list[dict[str, Any]]], folder: Path, score: Callable[..., dict[str, tuple[float, int]]]
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
    task: catalogue.Task, gold: dict[str, list[dict[str, Any]]], prepared: Path, manifest: dict[str, Any], folders: list[Path]
) -> list[dict[str, Any]]:
    """Judge the probabilities of a run, or the mean of those of several, which also get the ensemble's score.

    Members, those within a run and those of several runs alike, also get how they differ.

    The temperature is fitted on the validation set of the training language, under which it is recorded. Runs without probabilities (older
    ones, or of tasks without classes) have no such records.
    """

    def of_members(name: str, examples: list[dict[str, Any]]) -> np.ndarray:
        return np.concatenate([uncertainty.read(folder / "predictions" / name, task, examples) for folder in folders])

    def there(name: str) -> bool:
        return all((folder / "predictions" / name).is_file() for folder in folders)

    if task.kind not in uncertainty.KINDS or not there("validation.npy"):
        return []
    held_out = read_jsonl(prepared / "tasks" / task.train / "validation.jsonl")
    probs_NC = of_members("validation.npy", held_out).mean(axis=0)
    temperature = uncertainty.fit_temperature(probs_NC, uncertainty.labels(task, held_out))
    pivot = manifest["train_languages"][task.train]
    rows = [{"language": pivot, "metric": uncertainty.TEMPERATURE, "value": temperature, "n": len(probs_NC)}]
    for language, examples in gold.items():
        if not there(f"{task.name}/{language}.npy"):
            continue
        probs_MNC = of_members(f"{task.name}/{language}.npy", examples)
        probs_NC = probs_MNC.mean(axis=0)
        values = uncertainty.measures(probs_NC, uncertainty.labels(task, examples), temperature)
        if len(probs_MNC) > 1:
            values |= uncertainty.differing(probs_MNC)
        if len(folders) > 1:
            predicted = uncertainty.predictions(task, examples, probs_NC)
            for metric, (value, n) in scoring.score(task, language, examples, predicted, "the ensemble's predictions").items():
                rows.append({"language": language, "metric": metric, "value": value, "n": n})
        rows += ({"language": language, "metric": metric, "value": value, "n": len(probs_NC)} for metric, value in values.items())
    return [{"task": task.name} | row for row in rows]

"""What predictions are worth: answers, labels and captions become accuracies, consistency, BLEU-4 and CIDEr."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from moebench.data.image_text import LABELS
from moebench.errors import MoebenchError, shown
from moebench.experiment import Experiment, Run
from moebench.files import read_jsonl
from moebench.metrics import captions, vqa
from moebench.metrics.uncertainty import FLOOR
from moebench.protocols.vision_language.config import TASKS
from moebench.results.scored import Row, Scored

SAID = {"vqa": "answer", "nlvr": "label", "caption": "caption"}
"""Task → the key of what is predicted."""


def score(experiment: Experiment, judged: Collection[str], finished: Collection[Run]) -> Scored:
    """Score the test sets of every fine-tuned model and of the shallow baselines.

    Args:
        experiment: whose predictions.
        judged: the methods to judge.
        finished: the runs that are.

    Raises:
        MoebenchError: a file is damaged, or of other rows than the test set's.
    """
    scored = Scored()
    tests = {task: read_jsonl(experiment.prepared / task / "test" / "rows.jsonl") for task in TASKS}
    for run in experiment.runs:
        if run.stage != "finetune" or run.method not in judged or run not in finished:
            continue
        task = run.training_set
        path = experiment.folder(run) / "predictions" / f"{task}.jsonl"
        if path.is_file():
            whose = {"method": run.method, "seed": run.seed, "stage": run.stage}
            scored.records += (whose | row for row in scores(task, path, tests[task]))
        else:
            scored.missing.append((path, run))
    if not experiment.baselines_folder.is_dir():
        scored.missing.append((experiment.baselines_folder, None))
    for folder in sorted(path for path in experiment.baselines_folder.glob("*/") if path.is_dir()):
        whose = {"method": folder.name, "seed": 0, "stage": "baseline"}
        for task in TASKS:
            if (path := folder / "predictions" / f"{task}.jsonl").is_file():
                scored.records += (whose | row for row in scores(task, path, tests[task]))
    return scored


def scores(task: str, path: Path, rows: Sequence[Row]) -> list[Row]:
    """Judge the predictions of a test set; the language of a record is the type of question or statement, empty over all.

    All but ``nll``, in nats, are times 100, as the literature prints them. Of a question with one answer ``accuracy`` is the share of
    right ones, of one with ten the VQA accuracy (`moebench.metrics.vqa`). ``nll`` is that of the most frequent reference answer, over the
    questions whose answer a model can give, or of the right label.

    Args:
        task: one of `moebench.protocols.vision_language.config.TASKS`.
        path: the predictions, a line a row.
        rows: of the test set.

    Raises:
        MoebenchError: a line is not as it should be, or nothing is asked; the message names it.
    """
    predictions = read_jsonl(path)
    _check(path, task, predictions, rows)
    said = [str(row[SAID[task]]) for row in predictions]
    if task == "caption":
        found = captions.caption_scores(said, [row["captions"] for row in rows])
        return [_record(task, "", metric, 100 * value, len(rows)) for metric, value in found.items() if value is not None]
    if task == "vqa":
        right = [_vqa(one, row["answers"]) for one, row in zip(said, rows, strict=True)]
        losses = [row["nll"] for row in predictions if row.get("nll") is not None]
    else:
        right = [float(one == row["label"]) for one, row in zip(said, rows, strict=True)]
        losses = [
            _loss(row["probability_true"], one["label"]) for row, one in zip(predictions, rows, strict=True) if "probability_true" in row
        ]
    records = [_record(task, "", "accuracy", 100 * math.fsum(right) / len(right), len(right))]
    if task == "nlvr":
        groups = [row["group"] for row in rows]
        share = vqa.consistency([row["label"] for row in rows], said, groups)
        records.append(_record(task, "", "consistency", 100 * share, len(set(groups))))
    if losses:
        records.append(_record(task, "", "nll", math.fsum(losses) / len(losses), len(losses)))
    by_type: dict[str, list[float]] = defaultdict(list)
    for row, value in zip(rows, right, strict=True):
        by_type[row["type"]].append(value)
    types = sorted(kind for kind in by_type if kind)
    return records + [
        _record(task, kind, "accuracy", 100 * math.fsum(by_type[kind]) / len(by_type[kind]), len(by_type[kind])) for kind in types
    ]


def _vqa(said: str, answers: Sequence[str]) -> float:
    return float(said == answers[0]) if len(answers) == 1 else vqa.vqa_accuracies([said], [answers])[0]


def _loss(probability_true: float, label: str) -> float:
    """Negative log-likelihood of the right label."""
    return -math.log(max(probability_true if label == LABELS[0] else 1 - probability_true, FLOOR))


def _record(task: str, language: str, metric: str, value: float, n: int) -> Row:
    return {"task": task, "language": language, "metric": metric, "value": value, "n": n}


def _check(path: Path, task: str, predictions: Sequence[Row], rows: Sequence[Row]) -> None:
    if len(predictions) != len(rows) or not rows:
        raise MoebenchError(f"{path}: {len(predictions)} predictions of {len(rows)} test rows; delete its run's folder and run again")
    for number, (row, one) in enumerate(zip(predictions, rows, strict=True), start=1):
        if row.get("id") != one["id"]:
            raise MoebenchError(
                f"{path}:{number}: key 'id' has the value {shown(row.get('id'))}; should be {one['id']!r}, as in the test set"
            )
        wrong: dict[str, Any] = {} if isinstance(row.get(SAID[task]), str) else {SAID[task]: "a text"}
        for key, bounds in (("probability", (0, 1)), ("probability_true", (0, 1)), ("nll", (0, math.inf))):
            value = row.get(key)
            if value is not None and not (isinstance(value, (int, float)) and bounds[0] <= value <= bounds[1]):
                wrong[key] = f"a number from {bounds[0]} to {bounds[1]}"
        for key, should in wrong.items():
            raise MoebenchError(f"{path}:{number}: key {key!r} has the value {shown(row.get(key))}; should be {should}")

"""What predictions are worth: the likelihoods of choices become accuracy and calibration; norms on the way, points of figures."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from moebench.errors import MoebenchError
from moebench.experiment import Experiment, Run
from moebench.files import read_json, read_jsonl
from moebench.metrics import calibration
from moebench.metrics.uncertainty import FLOOR
from moebench.protocols.language_model.config import Data, language_of
from moebench.results.scored import Row, Scored
from moebench.results.statistics import mean


def score(experiment: Experiment, judged: Collection[str], finished: Collection[Run]) -> Scored:
    """Score the choices of every examined model and of the shallow baselines.

    Args:
        experiment: whose predictions.
        judged: the methods to judge.
        finished: the runs that are.

    Raises:
        MoebenchError: a file is damaged.
    """
    data: Data = experiment.data
    scored = Scored()
    for run in experiment.runs:
        if run.method not in judged or run not in finished:
            continue
        folder, whose = experiment.folder(run), {"method": run.method, "seed": run.seed}
        if run.stage == "finetune":
            for task in data.tasks:
                path = folder / "choices" / f"{task}.jsonl"
                if path.is_file():
                    scored.records += (whose | {"stage": run.stage} | row for row in chosen(task, path))
                else:
                    scored.missing.append((path, run))
        elif (folder / "norms.json").is_file():
            scored.curves += (whose | point for point in norm_points(folder / "norms.json"))
    for folder in sorted(path for path in experiment.baselines_folder.glob("*/") if path.is_dir()):
        for path in sorted((folder / "choices").glob("*.jsonl")):
            whose = {"method": folder.name, "seed": 0, "stage": "baseline"}
            scored.records += (whose | row for row in chosen(path.stem, path) if row["metric"] == "accuracy")
    if not experiment.baselines_folder.is_dir():
        scored.missing.append((experiment.baselines_folder, None))
    return scored


def chosen(task: str, path: Path) -> list[Row]:
    """Judge choices by their log-likelihoods: `moebench.protocols.language_model.config.CHOICES`.

    The prediction is the likeliest choice, or, normalised, the likeliest a character, as lm-evaluation-harness has ``acc`` and
    ``acc_norm``; the probabilities of calibration are softmax over the choices of their whole log-likelihoods. Accuracies are in percent.
    Where several choices are ``right`` there is one measure, which the harness calls ``acc`` too: the probability of all of them.

    Raises:
        MoebenchError: a row is not as it should be.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows):
        keys = ("loglikelihoods", "lengths_characters", *(("right",) if "right" in rows[0] else ()))
        sizes = {len(row[key]) if isinstance(row.get(key), list) else -1 for key in keys}
        if len(sizes) > 1 or not isinstance(row.get("label"), int) or not 0 <= row["label"] < min(sizes):
            raise MoebenchError(f"{path}: line {number + 1} should have label, loglikelihoods and lengths_characters of as many choices")
    if not rows:
        raise MoebenchError(f"{path}: holds no row; delete its run's folder and run again")
    label_N = np.array([row["label"] for row in rows])
    most = max(len(row["loglikelihoods"]) for row in rows)
    scores_NC, lengths_NC = np.full((len(rows), most), -np.inf), np.ones((len(rows), most))
    for place, row in enumerate(rows):
        scores_NC[place, : len(row["loglikelihoods"])] = row["loglikelihoods"]
        lengths_NC[place, : len(row["lengths_characters"])] = np.maximum(row["lengths_characters"], 1)
    probs_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    probs_NC /= probs_NC.sum(axis=1, keepdims=True)
    if "right" in rows[0]:
        right = [math.fsum(probs_NC[place][np.flatnonzero(row["right"])]) for place, row in enumerate(rows)]
        values = {"accuracy": 100 * mean(right)}
    else:
        values = {
            "accuracy": 100 * float((scores_NC.argmax(axis=1) == label_N).mean()),
            "accuracy_normalised": 100 * float(((scores_NC / lengths_NC).argmax(axis=1) == label_N).mean()),
            "nll": calibration.nll(probs_NC, label_N, FLOOR),
            "brier": calibration.brier(probs_NC, label_N),
            "ece": calibration.ece(probs_NC, label_N),
        }
    kind, language = language_of(task)
    return [{"task": kind, "language": language, "metric": metric, "value": value, "n": len(rows)} for metric, value in values.items()]


def norm_points(path: Path) -> list[dict[str, Any]]:
    """Points of the figure of norms: a curve an expert, ``norm.layer<i>.expert<e>``, x the step, y the mean norm.

    Raises:
        MoebenchError: the file is not as `moebench.protocols.language_model.pretraining` leaves it.
    """
    found = read_json(path)
    try:
        return [
            {
                "curve": f"norm.layer{layer + 1:02d}.expert{expert + 1:03d}",
                "point": point,
                "x": float(row["step"]),
                "y": float(norm),
                "n": 1,
            }
            for point, row in enumerate(found)
            for layer, norms in enumerate(row["norms"])
            for expert, norm in enumerate(norms)
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise MoebenchError(f"{path}: is no list of steps and norms; delete its run's folder and run again") from error

"""What predictions are worth: logits and features become records of quality, detection, few examples and diversity, and points of figures.

N images, M members, C classes, D width of a transformer, F width of features: D times the members that have features of their own.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from moebench.data.image_settings import UPSTREAM
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, Run
from moebench.files import read_object
from moebench.metrics import bootstrap, calibration, diversity, fewshot, ood, selective, uncertainty
from moebench.protocols.vision.config import Setting, vision
from moebench.protocols.vision.numbers import FEWSHOT, FITTED, MODEL, SHALLOW, SUMMED, TEST, member_runs
from moebench.results.scored import Row, Scored, measures_of

TRAIN = "downstream_train"
SHIFT, OOD, CORRUPTED = "shift_", "ood_", "corrupted_"
"""How the names of the other sets start."""
DETECTION = {"auroc": ood.auroc, "aupr_out": ood.aupr_out, "aupr_in": ood.aupr_in, "fpr_at_95_tpr": ood.fpr_at_95_tpr}
STEPS = 20
"""Accuracy over the rest is drawn at rejected shares 0, 1/20 .. 19/20, rounded down to whole images."""


@dataclass(frozen=True)
class Model:
    """What predicts together: one run, or the members of a deep ensemble, whose logits are stacked along M.

    Attributes:
        runs: folder of each run and the width D of its transformer.
    """

    runs: tuple[tuple[Path, int], ...]

    def has(self, name: str) -> bool:
        """Whether every run has left a set."""
        return all(_set(folder, name).is_file() for folder, _ in self.runs)

    def logits(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits (M, N, C), float64, and labels (N,) of a set.

        Raises:
            MoebenchError: a damaged file, logits that are not finite, or runs that were not given the same images.
        """
        found = [(path := _set(folder, name), _arrays(path, "logits", "labels")) for folder, _ in self.runs]
        first, expected = found[0]
        for path, one in found:
            if one["logits"].ndim != 3 or not np.isfinite(one["logits"]).all():
                raise MoebenchError(f"{path}: 'logits' should be finite numbers (N, M, C); their shape is {one['logits'].shape}")
            if not np.array_equal(one["labels"], expected["labels"]) or one["logits"].shape[2] != expected["logits"].shape[2]:
                raise MoebenchError(f"{path}: has not the images and classes of {first}; an ensemble's members should")
        logits_NMC = np.concatenate([one["logits"] for _, one in found], axis=1)
        return logits_NMC.transpose(1, 0, 2).astype(np.float64), expected["labels"]

    def probabilities(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The members' probabilities (M, N, C) and the labels (N,) of a set."""
        logits_MNC, labels_N = self.logits(name)
        return softmax(logits_MNC, axis=2), labels_N

    def features(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features (N, D) and labels (N,) of a set, once for each member that has features of its own.

        Raises:
            MoebenchError: a damaged file, or features whose width is no multiple of the transformer's.
        """
        copies = []
        for folder, width in self.runs:
            path = _set(folder, name)
            arrays = _arrays(path, "features", "labels")
            features_NF = arrays["features"]
            if features_NF.ndim != 2 or not features_NF.shape[1] or features_NF.shape[1] % width:
                raise MoebenchError(
                    f"{path}: 'features' has the shape {features_NF.shape}; should be (N, F), F a multiple of width {width}"
                )
            copies += [(part_ND, arrays["labels"]) for part_ND in np.split(features_NF, features_NF.shape[1] // width, axis=1)]
        return copies

    def few_shot(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, F) of all members side by side, of the pre-trained models, and labels of a part of the few-shot data."""
        found = [_arrays(folder / "fewshot.npz", part, f"{part}_labels") for folder, _ in self.runs]
        return np.concatenate([one[part] for one in found], axis=1), found[0][f"{part}_labels"]


def score(experiment: Experiment, judged: Collection[str], finished: Collection[Run]) -> Scored:
    """Judge runs, deep ensembles and shallow baselines.

    ``task`` of a record is the name of the set; of a corruption ``corrupted_<name>``, with ``s<severity>`` as language. Accuracies are in
    percent, all other measures in fractions or nats (``docs/METRICS.md``); a measure that is not defined has no record. A deep ensemble
    has records like a run, under the seed whose members it takes (`moebench.protocols.vision.config.members_of`).

    A run should have every set of the prepared images.

    Args:
        experiment: whose predictions.
        judged: the methods to judge; members of theirs have to be there, too.
        finished: the runs that are.

    Raises:
        MoebenchError: a file is damaged.
    """
    setting, methods = experiment.setting, experiment.methods
    sets = _sets(experiment.prepared / "manifest.json")
    scored = Scored()
    files = [f"predictions/{name}.npz" for name in sets] + ["fewshot.npz"] * bool(setting.draws)
    members = {member for name in judged for member in (methods[name].of or [name])}
    finetuned = {(run.method, run.seed): run for run in experiment.runs if run.stage == "finetune" and run.method in members}
    for run in finetuned.values():
        if run in finished:
            scored.missing += ((experiment.folder(run) / file, run) for file in files if not (experiment.folder(run) / file).is_file())
        elif run.method not in judged:
            scored.missing.append((experiment.folder(run), run))
    shallow = {name: experiment.baselines_folder / name / f"{TEST}.npz" for name in SHALLOW} if setting.shallow else {}
    scored.missing += ((path, None) for path in shallow.values() if not path.is_file())
    if scored.missing:
        return scored
    for name in judged:
        method = methods[name]
        for seed in setting.seeds:
            parts = [finetuned[member] for member in member_runs(name, method, setting.seeds, seed)]
            if not all(run in finished for run in parts):
                continue
            model = Model(tuple((experiment.folder(run), vision(setting, methods[run.method]).width) for run in parts))
            key = {"method": name, "seed": seed}
            try:
                found = _judged(model, sets, setting)
                points = _curves(model) if model.has(TEST) else []
            except ValueError as error:  # of a metric
                raise MoebenchError(f"method {name!r}, seed {seed}, {model.runs[0][0]}: {error}") from error
            if method.variant == "deep":
                found += _summed([_sizes(folder) for folder, _ in model.runs])
            scored.records += (key | {"stage": "finetune"} | row for row in found)
            scored.curves += (key | point for point in points)
    for name, path in shallow.items():
        scored.records += ({"method": name, "seed": 0, "stage": "baseline"} | row for row in _rows(TEST, *_shallow(path)))
    return scored


def _sizes(folder: Path) -> dict[str, Row]:
    """Metric → record of a run's whole model."""
    measures = measures_of(folder / "measures.json", "finetune")
    return {one["metric"]: one for one in measures if one["task"] == MODEL and one["metric"] in SUMMED}


def _shallow(path: Path) -> tuple[dict[str, float], int]:
    """Measures of a shallow baseline, and on how many images."""
    arrays = _arrays(path)
    labels_N = arrays["labels"]
    if "predictions" in arrays:
        return {"accuracy": 100 * float((arrays["predictions"] == labels_N).mean())}, len(labels_N)
    return quality(arrays["probabilities"][None], labels_N), len(labels_N)


def _set(folder: Path, name: str) -> Path:
    return folder / "predictions" / f"{name}.npz"


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read arrays of one length: those named, or all that are there.

    Raises:
        MoebenchError: the file is damaged, or one of them is not there or of another length.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names or file if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MoebenchError(f"{path}: not readable arrays ({error}); delete the run's folder and run again") from error
    if len(arrays) < len(names) or len({array.shape[:1] for array in arrays.values()}) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none of them"
        raise MoebenchError(f"{path}: should hold {' and '.join(names)}, of one length; holds {shapes}")
    return arrays


def _sets(where: Path) -> list[str]:
    """Names of the sets that a fine-tuned run predicts.

    Raises:
        MoebenchError: a name that says nothing about what to measure.
    """
    names = sorted(name for name in read_object(where, sets=dict)["sets"] if not name.startswith(UPSTREAM))
    for name in names:
        severity = name.rpartition("_")[2]
        if not (name in (TRAIN, FITTED, TEST) or name.startswith((SHIFT, OOD)) or (name.startswith(CORRUPTED) and severity.isdecimal())):
            raise MoebenchError(
                f"{where}: unknown set {name!r}; should be {TRAIN}, {FITTED}, {TEST}, {SHIFT}*, {OOD}* or {CORRUPTED}<name>_<severity>"
            )
    return names


def _rows(task: str, values: Mapping[str, float], n: int, language: str = "") -> list[Row]:
    """Records of one set; what is not defined, NaN, has none."""
    return [
        {"task": task, "language": language, "metric": metric, "value": value, "n": n}
        for metric, value in values.items()
        if not math.isnan(value)
    ]


def _judged(model: Model, sets: list[str], setting: Setting) -> list[Row]:
    """All measures of one model, on the sets that are there."""
    there = [name for name in sets if model.has(name)]
    rows = []
    if TEST in there and FITTED in there:
        rows += _test(model)
    for name in there:
        if name.startswith((SHIFT, CORRUPTED)):
            probs_MNC, labels_N = model.probabilities(name)
            task, _, severity = name.rpartition("_") if name.startswith(CORRUPTED) else (name, "", "")
            rows += _rows(task, quality(probs_MNC, labels_N), len(labels_N), severity and f"s{severity}")
    strange = [name for name in there if name.startswith(OOD)]
    if strange and TEST in there and TRAIN in there:
        gaussians = [ood.fit_gaussians(features_ND, labels_N) for features_ND, labels_N in model.features(TRAIN)]
        usual = strangeness(model, TEST, gaussians)
        for name in strange:
            scores = strangeness(model, name, gaussians)
            values = {f"{measure}_{of}": call(usual[of], scores[of]) for of in scores for measure, call in DETECTION.items()}
            rows += _rows(name, values, len(scores["entropy"]))
    if setting.draws and all((folder / "fewshot.npz").is_file() for folder, _ in model.runs):
        rows += _few_shot(model, setting)
    return rows


def quality(probs_MNC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Judge the mean of the members' probabilities on a shifted or corrupted set; of several members also how often they disagree."""
    mean_NC = diversity.ensemble_mean(probs_MNC)
    values = {
        "accuracy": 100 * (1 - calibration.error(mean_NC, labels_N)),
        "nll": calibration.nll(mean_NC, labels_N, uncertainty.FLOOR),
        "brier": calibration.brier(mean_NC, labels_N),
        "ece": calibration.ece(mean_NC, labels_N),
    }
    return values | ({"disagreement": diversity.disagreement(probs_MNC)} if len(probs_MNC) > 1 else {})


def _test(model: Model) -> list[Row]:
    """Judge the test set; the temperature is that of the members' mean on the validation set."""
    held_out_MNC, held_out_N = model.probabilities(FITTED)
    fitted = uncertainty.fitted(diversity.ensemble_mean(held_out_MNC), held_out_N)
    probs_MNC, labels_N = model.probabilities(TEST)
    mean_NC = diversity.ensemble_mean(probs_MNC)
    right_N2 = np.stack([mean_NC.argmax(axis=1) == labels_N, np.ones(len(labels_N))], axis=1)
    values = quality(probs_MNC, labels_N) | uncertainty.measures(mean_NC, labels_N, fitted[uncertainty.TEMPERATURE])
    values |= {"classwise_ece": calibration.classwise_ece(mean_NC, labels_N)}
    values |= {"accuracy_bootstrap_se": 100 * bootstrap.standard_error(right_N2)}
    if len(probs_MNC) > 1:
        values |= uncertainty.differing(probs_MNC) | {
            "normalised_disagreement": diversity.normalised_disagreement(probs_MNC, labels_N),
            "pairwise_kl": diversity.pairwise_kl(probs_MNC),
            "cosine_diversity": diversity.cosine_diversity(probs_MNC),
        }
    return _rows(FITTED, fitted, len(held_out_N)) + _rows(TEST, values, len(labels_N))


def strangeness(model: Model, name: str, gaussians: list[ood.Gaussians]) -> dict[str, np.ndarray]:
    """Score → how strange each image of a set is, (N,). Scores of one model's logits or features are averaged over members.

    Args:
        model: the model.
        name: the set.
        gaussians: those of each member's features of the training set.
    """
    logits_MNC, _ = model.logits(name)
    probs_MNC = softmax(logits_MNC, axis=2)
    mean_NC = diversity.ensemble_mean(probs_MNC)
    scores = {"max_probability": ood.max_probability(mean_NC), "entropy": ood.entropy(mean_NC)}
    if len(probs_MNC) > 1:
        scores["mutual_information"] = ood.mutual_information(probs_MNC)
    scores["max_logit"] = np.mean([ood.max_logit(logits_NC) for logits_NC in logits_MNC], axis=0)
    scores["energy"] = np.mean([ood.energy(logits_NC) for logits_NC in logits_MNC], axis=0)
    pairs = list(zip((features_ND for features_ND, _ in model.features(name)), gaussians, strict=True))
    scores["mahalanobis"] = np.mean([ood.mahalanobis(features_ND, fitted) for features_ND, fitted in pairs], axis=0)
    scores["relative_mahalanobis"] = np.mean([ood.relative_mahalanobis(features_ND, fitted) for features_ND, fitted in pairs], axis=0)
    return scores


def _few_shot(model: Model, setting: Setting) -> list[Row]:
    """Accuracy on few examples a class, the mean over supports that are the same for all models.

    The penalty is, for each number of shots, the one of best mean rank on the **validation** set over the supports. The authors choose by
    test accuracy, over several data sets.
    """
    (train_NF, train_N), held_out, test = (model.few_shot(part) for part in ("train", "validation", "test"))
    draws = range(setting.draws)
    chosen_S = fewshot.best_l2({str(draw): fewshot.few_shot(train_NF, train_N, *held_out, setting.shots, seed=draw) for draw in draws})
    tested_SL = np.mean([fewshot.few_shot(train_NF, train_N, *test, setting.shots, seed=draw) for draw in draws], axis=0)
    values = {f"accuracy_{k}_shot": 100 * float(tested_L[at]) for k, tested_L, at in zip(setting.shots, tested_SL, chosen_S, strict=True)}
    return _rows(FEWSHOT, values, len(test[1]))


def _summed(sizes: list[dict[str, Row]]) -> list[Row]:
    """Parameters and operations of a deep ensemble: nothing is shared."""
    there = [metric for metric in SUMMED if all(metric in one for one in sizes)]
    values = {metric: math.fsum(one[metric]["value"] for one in sizes) for metric in there}
    return [row for metric in there for row in _rows(MODEL, {metric: values[metric]}, sizes[0][metric]["n"])]


def _curves(model: Model) -> list[Row]:
    """Points of the reliability diagram, x the confidence, and of accuracy over rejected share, on the test set; in fractions."""
    probs_MNC, labels_N = model.probabilities(TEST)
    mean_NC = diversity.ensemble_mean(probs_MNC)
    bins = calibration.reliability(mean_NC, labels_N)
    rest = selective.accuracy_rejection(mean_NC.max(axis=1), mean_NC.argmax(axis=1) == labels_N)
    N = len(labels_N)
    return [
        {"curve": "reliability", "point": b, "x": float(bins.confidence_B[b]), "y": float(bins.accuracy_B[b]), "n": int(bins.count_B[b])}
        for b in np.flatnonzero(bins.count_B).tolist()
    ] + [
        {"curve": "accuracy_rejection", "point": step, "x": step / STEPS, "y": float(rest.accuracy_N[i]), "n": N - i}
        for step, i in enumerate(step * N // STEPS for step in range(STEPS))
    ]

"""Stage ``evaluate`` of papers on images: logits and features of every run become records, costs and the points of the figures.

N images, M members, C classes, D width of a transformer, F width of features: D times the members that have features of their own.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from moebench import config_images as config
from moebench.config_images import DOWNSTREAM, UPSTREAM, ImageMethod
from moebench.data.images import ImageSet
from moebench.errors import MoebenchError, nearest
from moebench.files import read_json, sha256, write_text
from moebench.metrics import bootstrap, calibration, diversity, fewshot, ood, selective
from moebench.results import records
from moebench.results.images import CURVES, FEWSHOT, FITTED, MODEL, SUMMED, TEST, member_runs
from moebench.stages.evaluate import FILES as RUN_FILES
from moebench.stages.evaluate import data_name, measures_of
from moebench.stages.images import read_set
from moebench.stages.kept import keep
from moebench.stages.runs import Run
from moebench.tasks import uncertainty
from moebench.tasks.image_baselines import BASELINES

TRAIN = "downstream_train"
SHIFT, OOD, CORRUPTED = "shift_", "ood_", "corrupted_"
"""How the names of the other sets start."""
DETECTION = {"auroc": ood.auroc, "aupr_out": ood.aupr_out, "aupr_in": ood.aupr_in, "fpr_at_95_tpr": ood.fpr_at_95_tpr}
FILES = RUN_FILES | {"curves.csv": CURVES}
STEPS = 20
"""Accuracy over the rest is drawn at rejected shares 0, 1/20 .. 19/20, rounded down to whole images."""

Row = dict[str, Any]


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


def methods_of(root: Path, profile: str, paper: str) -> dict[str, ImageMethod]:
    """Load the methods that run under a profile, by name.

    Raises:
        MoebenchError: a file does not validate, or a deep ensemble has members that do not run.
    """
    methods = {name: config.method(root, paper, name, profile) for name in config.method_names(root, paper, profile)}
    trained = [name for name, method in methods.items() if method.variant != "deep"]
    for name, method in methods.items():
        for member in method.of:
            if member not in trained:
                path = root / "experiments" / paper / "methods" / f"{name}.yaml"
                raise MoebenchError(
                    f"{path}: key 'of' names {member!r}{nearest(member, trained)}, which profile {profile!r} does not train;"
                    f" it trains: {', '.join(trained)}"
                )
    return methods


def expected_runs(root: Path, profile: str, paper: str) -> list[Run]:
    """List the runs that a paper's setting asks for, pre-training first; a deep ensemble has none of its own."""
    seeds = config.setting(root, paper, profile).seeds
    trained = {name: method for name, method in methods_of(root, profile, paper).items() if method.variant != "deep"}
    starts = sorted({method.pretrain_as or name for name, method in trained.items()})
    return [Run("pretrain", name, seed) for name in starts for seed in seeds] + [
        Run("finetune", name, seed, DOWNSTREAM) for name in trained for seed in seeds
    ]


def made_from(root: Path, profile: str, paper: str) -> dict[str, list[str]]:
    """Map each method of a profile to those whose runs it starts from, or which are its members."""
    methods = methods_of(root, profile, paper)
    return {name: list(method.of) or ([method.pretrain_as] if method.pretrain_as else []) for name, method in methods.items()}


def evaluate_images(root: Path, profile: str, paper: str, only: Collection[str] = ()) -> list[str]:
    """Judge every run and deep ensemble; write ``records.csv``, ``provenance.csv``, ``costs.csv`` and ``curves.csv``.

    They go to ``results/<profile>/<paper>/``. Everything is read and judged before the first file is written. ``task`` of a record is the
    name of the set; of a corruption ``corrupted_<name>``, with ``s<severity>`` as language. Accuracies are in percent, all other measures
    in fractions or nats (``docs/METRICS.md``); a measure that is not defined has no record. A deep ensemble has records like a run, under
    the seed whose members it takes (`moebench.config_images.members_of`), but neither provenance nor costs. Shallow baselines, stage
    ``baseline``, are fitted here, on the pixels of the training set.

    A run should have every set of the prepared images.

    Args:
        root: the project's root.
        profile: name of the profile.
        paper: name of the paper.
        only: judge these methods alone; the records of all others stay as they are (`moebench.stages.kept`). None: judge all.

    Returns:
        The methods whose records stay although their code has changed.

    Raises:
        MoebenchError: cells are missing (the message lists them and the command that makes the first), a file is damaged, or the records
            of other methods cannot stay.
    """
    setting, methods = config.setting(root, paper, profile), methods_of(root, profile, paper)
    prepared = root / "data" / "prepared" / "images" / profile / "manifest.json"
    manifest = read_json(prepared)
    sets = _sets(manifest, prepared)
    common = {"profile": profile, "data": data_name(manifest), "paper": paper}
    runs = expected_runs(root, profile, paper)
    kept, changed = keep(root, profile, paper, only, made_from(root, profile, paper), runs, FILES)
    rows, provenance, costs, curves = (kept[name] for name in FILES)
    judged = only or methods
    members = {member for name in judged for member in methods[name].of}
    missing: list[tuple[Path, str]] = []
    finetuned: dict[tuple[str, int], Path] = {}
    sizes: dict[tuple[str, int], dict[str, Row]] = {}  # (method, seed) → metric → record of the whole model

    for run in runs:
        if run.method not in judged and not (run.stage == "finetune" and run.method in members):
            continue
        folder = run.folder(root, profile, paper)
        if not (folder / "costs.json").is_file() or (folder / "run.json").exists():  # not there, or not finished
            missing.append((folder, _make(paper, profile, run)))
            continue
        measured = list(measures_of(folder / "measures.json", run.stage))
        if run.stage == "finetune":
            finetuned[run.method, run.seed] = folder
            sizes[run.method, run.seed] = {one["metric"]: one for one in measured if one["task"] == MODEL and one["metric"] in SUMMED}
        if run.method not in judged:
            continue
        rows += (common | {"method": run.method, "seed": run.seed} | measure for measure in measured)
        plan, cost = run.plan(root, profile, paper), read_json(folder / "costs.json")
        identity = {"profile": profile, "paper": paper, "method": run.method, "seed": run.seed, "stage": run.stage}
        identity["task"] = run.training_set or UPSTREAM
        facts = cost | {"config_hash": sha256(plan), "fingerprint": read_json(plan).get("fingerprint")}
        provenance.append(identity | {column: facts.get(column) for column in records.PROVENANCE.values})
        costs.append(identity | {column: cost.get(column) for column in records.COSTS.values})

    files = [f"predictions/{name}.npz" for name in sets] + ["fewshot.npz"] * bool(setting.draws)
    for (name, seed), folder in finetuned.items():
        make = _make(paper, profile, Run("finetune", name, seed, DOWNSTREAM))
        missing += ((folder / file, make) for file in files if not (folder / file).is_file())
    if missing:
        listed = "\n".join(f"  {path.relative_to(root)}" for path, _ in missing)
        raise MoebenchError(f"{len(missing)} missing under {root}:\n{listed}\nThe first is made by: {missing[0][1]}")

    for name in judged:
        method = methods[name]
        for seed in setting.seeds:
            parts = member_runs(name, method, setting.seeds, seed)
            widths = [config.vision(setting, methods[member]).width for member, _ in parts]
            model = Model(tuple((finetuned[part], width) for part, width in zip(parts, widths, strict=True)))
            key = common | {"method": name, "seed": seed}
            try:
                found = _judged(model, sets, setting)
                points = _curves(model) if model.has(TEST) else []
            except ValueError as error:  # of a metric
                raise MoebenchError(f"method {name!r}, seed {seed}, {model.runs[0][0]}: {error}") from error
            if method.variant == "deep":
                found += _summed([sizes[part] for part in parts])
            rows += (key | {"stage": "finetune"} | row for row in found)
            curves += (key | point for point in points)

    if setting.shallow:
        train, test = (read_set(prepared.parent, name) for name in (TRAIN, TEST))
        few = ImageSet(train.images[: setting.shallow], train.labels[: setting.shallow], train.classes)
        for name, measure in BASELINES.items():
            rows += (common | {"method": name, "seed": 0, "stage": "baseline"} | row for row in _rows(TEST, measure(few, test), len(test)))

    target = root / "results" / profile / paper
    contents = zip(FILES.items(), (rows, provenance, costs, curves), strict=True)
    texts = {target / name: records.render(content, form, target / name) for (name, form), content in contents}
    for path, text in texts.items():
        write_text(path, text)
    return changed


def _make(paper: str, profile: str, run: Run) -> str:
    return records.command(paper, run.stage, profile, run.method, run.seed, run.training_set)


def _set(folder: Path, name: str) -> Path:
    return folder / "predictions" / f"{name}.npz"


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read arrays of one length.

    Raises:
        MoebenchError: the file is damaged, or one of them is not there or of another length.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MoebenchError(f"{path}: not readable arrays ({error}); delete the run's folder and run again") from error
    if len(arrays) < len(names) or len({array.shape[:1] for array in arrays.values()}) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none of them"
        raise MoebenchError(f"{path}: should hold {' and '.join(names)}, of one length; holds {shapes}")
    return arrays


def _sets(manifest: dict[str, Any], where: Path) -> list[str]:
    """Names of the sets that a fine-tuned run predicts.

    Raises:
        MoebenchError: a name that says nothing about what to measure.
    """
    names = sorted(name for name in manifest["sets"] if not name.startswith(UPSTREAM))
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


def _judged(model: Model, sets: list[str], setting: config.ImageSetting) -> list[Row]:
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
    temperature = uncertainty.fit_temperature(diversity.ensemble_mean(held_out_MNC), held_out_N)
    probs_MNC, labels_N = model.probabilities(TEST)
    mean_NC = diversity.ensemble_mean(probs_MNC)
    right_N2 = np.stack([mean_NC.argmax(axis=1) == labels_N, np.ones(len(labels_N))], axis=1)
    values = quality(probs_MNC, labels_N) | uncertainty.measures(mean_NC, labels_N, temperature)
    values |= {"classwise_ece": calibration.classwise_ece(mean_NC, labels_N)}
    values |= {"accuracy_bootstrap_se": 100 * bootstrap.standard_error(right_N2)}
    if len(probs_MNC) > 1:
        values |= uncertainty.differing(probs_MNC) | {
            "normalised_disagreement": diversity.normalised_disagreement(probs_MNC, labels_N),
            "pairwise_kl": diversity.pairwise_kl(probs_MNC),
            "cosine_diversity": diversity.cosine_diversity(probs_MNC),
        }
    return _rows(FITTED, {uncertainty.TEMPERATURE: temperature}, len(held_out_N)) + _rows(TEST, values, len(labels_N))


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


def _few_shot(model: Model, setting: config.ImageSetting) -> list[Row]:
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

"""From records of a paper on images to its tables: pure functions, one row a measure and method. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from moebench.data.image_settings import DOWNSTREAM
from moebench.metrics.uncertainty import AT_BOUND, BOUND, TEMPERATURE
from moebench.protocols.vision.config import DETECTION, SCORES, Method, members_of
from moebench.results import tables
from moebench.results.statistics import deviation, mean
from moebench.results.tables import differences, frame, rows_of

FITTED, TEST, FEWSHOT, MODEL = "downstream_validation", "downstream_test", "fewshot", "model"
"""Tasks of records: where temperature and penalty are chosen, the test set, few examples a class, the model as a whole."""
UPSTREAM_TEST = "upstream_test"
CLEAN, OOD, CORRUPTED, SHIFT = "clean", "ood_", "corrupted_", "shift_"
SUMMED = ("parameters", "flops_per_image")
"""Measures of `MODEL` of which a deep ensemble has the sum over its members."""
QUALITY = ("accuracy", "nll", "brier", "ece")
MORE_QUALITY = ("signed_ece", "adaptive_ece", "classwise_ece", "aurc", "nll_scaled", "ece_scaled", "accuracy_bootstrap_se")
DIVERSITY = ("disagreement", "normalised_disagreement", "mutual_information", "pairwise_kl", "cosine_diversity")
OF_SEVERAL = (*DIVERSITY, *(f"{measure}_mutual_information" for measure in DETECTION))
"""Measures that one member does not have."""

SHALLOW = {"logistic_regression": "Logistic regression", "svm": "SVM, Gaussian kernel"}
"""Shallow baseline → how tables call it."""

Cells = dict[tuple[str, str], dict[str, dict[int, float]]]
"""(set, measure) → method → seed → value."""


def member_runs(name: str, method: Method, seeds: tuple[int, ...], seed: int) -> list[tuple[str, int]]:
    """Method and seed of the runs that predict together: of a deep ensemble its members', of any other method its own."""
    if method.variant != "deep":
        return [(name, seed)]
    return [(member, one) for member, places in method.of.items() for one in members_of(seeds, seed, places)]


@dataclass(frozen=True, kw_only=True)
class Expected(tables.Expected):
    """What the tables should hold.

    Attributes:
        shots: examples a class in few-shot evaluation.
    """

    methods: Mapping[str, Method]
    shots: tuple[int, ...]

    @property
    def dense(self) -> str | None:
        """The first dense transformer of the setting's own shape, that operations are compared with."""
        return next((name for name in self.compared if self.methods[name].variant == "dense" and not self.methods[name].shape), None)

    def runs(self, name: str, seed: int) -> list[tuple[str, int]]:
        """See `member_runs`."""
        return member_runs(name, self.methods[name], self.seeds, seed)

    def outputs(self, name: str) -> int:
        """How many members' predictions a method averages."""
        method = self.methods[name]
        if method.variant == "deep":
            return sum(self.outputs(member) * len(places) for member, places in method.of.items())
        return 1 if method.variant == "only_partitioning" else method.members

    def shared(self) -> list[str]:
        """Deep ensembles of which a run is a member at several seeds."""
        found = []
        for name in self.compared:
            runs = [run for seed in self.seeds for run in set(self.runs(name, seed))]
            if len(set(runs)) < len(runs):
                found.append(name)
        return found

    def repeated(self) -> list[str]:
        """Deep ensembles of which a run is a member twice."""
        first = self.seeds[0]
        return [name for name in self.compared if len(set(self.runs(name, first))) < len(self.runs(name, first))]

    def making(self, name: str, seed: int, stage: str = "finetune") -> str:
        """The command that makes a run, or the first member of a deep ensemble."""
        method, one = self.runs(name, seed)[0]
        return self.make(stage, method, one, DOWNSTREAM if stage == "finetune" else "")


def cells_of(records: pd.DataFrame, stage: str = "finetune") -> Cells:
    """Records without a language, by set and measure."""
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for row in rows_of(records[(records["stage"] == stage) & (records["language"] == "")]):
        cells[row["task"], row["metric"]][row["method"]][row["seed"]] = row["value"]
    return cells


COLUMNS = (
    *("set", "measure", "method", "label", "members", "value", "sd", "n_seeds"),
    *("difference", "ci_low", "ci_high", "p", "p_holm", "note"),
)


def summary(expected: Expected, cells: Cells, shown: Sequence[tuple[str, str]], tested: Collection[tuple[str, str]]) -> pd.DataFrame:
    """Summarise over seeds: one row for each of ``shown`` and each method.

    Args:
        expected: what should be there.
        cells: the values.
        shown: (set, measure), in the order of the rows.
        tested: those of them that are compared with the baseline; Holm's family is the methods of one measure.

    Returns:
        Rows with `COLUMNS`: ``value`` is the mean over ``n_seeds`` seeds, ``sd`` their sample deviation; ``difference`` to the baseline,
        paired by seed, with its 95 % t interval, ``p`` and, adjusted, ``p_holm``. ``note`` says why something is empty, and which command
        fills it; and which temperatures are at a bound.
    """
    rows = []
    for key in shown:
        values = {name: cells.get(key, {}).get(name, {}) for name in expected.compared}
        compared = differences(values, expected.baseline) if key in tested else {}
        for name, found in values.items():
            seeds = [found[seed] for seed in sorted(found)]
            row: dict[str, Any] = dict(zip(("set", "measure"), key, strict=True))
            row |= {"method": name, "label": expected.methods[name].label, "members": expected.outputs(name)}
            row |= {"value": mean(seeds) if seeds else None, "sd": deviation(seeds), "n_seeds": len(seeds)}
            columns, unclaimed = compared.get(name, ({}, ""))
            row |= columns
            bounded = sorted(cells.get((FITTED, AT_BOUND), {}).get(name, {})) if key == (FITTED, TEMPERATURE) else []
            bound = f"{BOUND}: {', '.join(f'seed {seed}' for seed in bounded)}" if bounded else ""
            notes = (_hole(expected, cells, key, name), unclaimed if seeds else "", bound)
            rows.append(row | {"note": "; ".join(filter(None, notes))})
    return frame(rows, COLUMNS)


def _hole(expected: Expected, cells: Cells, key: tuple[str, str], name: str) -> str:
    """Why a method lacks seeds in a cell; empty if it lacks none."""
    lacking = [seed for seed in expected.seeds if seed not in cells.get(key, {}).get(name, {})]
    if not lacking:
        return ""
    method, (of, measure) = expected.methods[name], key
    if of == UPSTREAM_TEST:
        if method.variant == "deep":
            return "members' pre-training: see there"
        if method.pretrain_as:
            source = expected.methods.get(method.pretrain_as)
            return f"starts from the checkpoints of {source.label if source else method.pretrain_as}: see there"
    elif measure in OF_SEVERAL and expected.outputs(name) == 1:
        return "one member"
    measured = {seed for (where, _), one in cells.items() if where == TEST for seed in one.get(name, {})}
    if of == TEST and measured.issuperset(lacking):
        return "not defined for " + ", ".join(f"seed {seed}" for seed in lacking)
    said = ", ".join(f"seed {seed} is missing" for seed in lacking)
    return f"{said}: `{expected.making(name, lacking[0], 'pretrain' if of == UPSTREAM_TEST else 'finetune')}`"


# ------------------------------------------------------------------------------------------------------------- the tables


def table1_quality(records: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """Quality and calibration on the test set, sizes, and accuracy after pre-training; see `summary`. Shallow baselines come last."""
    cells = cells_of(records) | {key: found for key, found in cells_of(records, "pretrain").items() if key[0] == UPSTREAM_TEST}
    measures = [(TEST, measure) for measure in (*QUALITY, *MORE_QUALITY)] + [(FITTED, TEMPERATURE)]
    shown = [*measures, *((MODEL, metric) for metric in SUMMED), (UPSTREAM_TEST, "accuracy")]
    rows = [
        {"set": row["task"], "measure": row["metric"], "method": row["method"], "label": SHALLOW[row["method"]], "value": row["value"]}
        for row in rows_of(records[records["stage"] == "baseline"])
    ]
    table = summary(expected, cells, shown, measures[: len(QUALITY)])
    return pd.concat([table, pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)], ignore_index=True) if rows else table


def table2_ood(records: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """How well each score tells each out-of-distribution set from the test set; see `summary`.

    The measure ``auroc_energy`` is the AUROC of the score ``energy``. Compared with the baseline: the AUROC of ``max_probability``, the
    score of the authors' code.
    """
    cells = cells_of(records)
    sets = sorted({task for task, _ in cells if task.startswith(OOD)})
    shown = [(name, f"{measure}_{score}") for name in sets for score in SCORES for measure in DETECTION]
    return summary(expected, cells, shown, [(name, "auroc_max_probability") for name in sets])


def table3_corruption(records: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """Quality under corruption and shift; see `summary`.

    Sets: ``clean`` (the test set), ``corrupted`` (plain mean over all corruptions and severities), ``corrupted s1`` .. (mean over the
    corruptions at one severity), and the shifted sets. A seed counts only with every cell that any model has.
    """
    cells = cells_of(records)
    several = (*QUALITY, "disagreement")
    sets = {CLEAN: TEST} | {name: name for name in sorted({task for task, _ in cells if task.startswith(SHIFT)})}
    found: Cells = {(label, measure): cells.get((task, measure), {}) for label, task in sets.items() for measure in several}
    mine = rows_of(records[(records["stage"] == "finetune") & records["task"].str.startswith(CORRUPTED)])
    of_model: dict[tuple[str, str, int], dict[tuple[str, str], float]] = defaultdict(dict)
    for row in mine:
        of_model[row["metric"], row["method"], row["seed"]][row["task"], row["language"]] = row["value"]
    wanted = {(row["task"], row["language"]) for row in mine}
    severities = sorted({severity for _, severity in wanted})
    groups = {"corrupted": wanted} | {f"corrupted {one}": {cell for cell in wanted if cell[1] == one} for one in severities}
    for label in groups:
        found |= {(label, measure): defaultdict(dict) for measure in several}
    for (measure, method, seed), values in sorted(of_model.items()):
        if values.keys() >= wanted:
            for label, cellset in groups.items():
                found[label, measure][method][seed] = mean([values[cell] for cell in sorted(cellset)])
    names = [CLEAN, *(name for name in groups if wanted), *(name for name in sets if name != CLEAN)]
    tested = [
        (label, measure) for label in ("corrupted", *(name for name in sets if name != CLEAN)) for measure in ("accuracy", "nll", "ece")
    ]
    return summary(expected, found, [(name, measure) for name in names for measure in several], tested)


def table4_fewshot(records: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """Accuracy of ridge regression on few examples a class, of the pre-trained features; see `summary`."""
    shown = [(FEWSHOT, f"accuracy_{shots}_shot") for shots in expected.shots]
    return summary(expected, cells_of(records), shown, shown)


def table5_diversity(records: pd.DataFrame, expected: Expected) -> pd.DataFrame:
    """How much members differ on the test set; see `summary`. Only methods of several members, so nothing is compared."""
    table = summary(expected, cells_of(records), [(TEST, measure) for measure in DIVERSITY], ())
    return table[table["members"] > 1]


FLOPS_COLUMNS = (
    *("section", "size", "method", "label", "members", "flops", "ratio_to_dense"),
    *("ensemble_of", "ensemble_flops", "fewer_percent", "note"),
)
ANALYTIC = {"dense": ("ViT", 1), "vmoe": ("V-MoE, K = 2", 1), "e3": ("E³, K = 1, M = 2", 2)}
"""Key of `table6_flops`'s second argument → label and members."""


def table6_flops(records: pd.DataFrame, analytic: Mapping[str, Mapping[str, float]], expected: Expected) -> pd.DataFrame:
    """Operations an image, and how many fewer than those of a deep ensemble of dense transformers of the same size.

    Args:
        records: all records of the paper.
        analytic: published size → ``dense``, ``vmoe``, ``e3`` → forward operations an image.
        expected: what should be there.

    Returns:
        Rows with `FLOPS_COLUMNS`; section ``analytic``: the published sizes, ``trained``: this profile's methods, as recorded.
        ``ensemble_of`` is the number M of dense transformers that is compared with, the method's own members but at least two;
        ``fewer_percent`` = 100 (1 - flops / (M · dense)).
    """
    rows = [
        _flops_row("analytic", size, key, label, members, flops[key], flops["dense"])
        for size, flops in analytic.items()
        for key, (label, members) in ANALYTIC.items()
    ]
    recorded = cells_of(records).get((MODEL, "flops_per_image"), {})
    flops = {name: mean(list(recorded[name].values())) if recorded.get(name) else None for name in expected.compared}
    dense = flops[expected.dense] if expected.dense else None
    for name in expected.compared:
        row = _flops_row("trained", "", name, expected.methods[name].label, expected.outputs(name), flops[name], dense)
        rows.append(row | {"note": "" if flops[name] is not None else f"missing: `{expected.making(name, expected.seeds[0])}`"})
    return frame(rows, FLOPS_COLUMNS)


def _flops_row(section: str, size: str, name: str, label: str, members: int, flops: float | None, dense: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"section": section, "size": size, "method": name, "label": label, "members": members, "flops": flops, "note": ""}
    if flops is None or dense is None:
        return row
    several = max(2, members)
    ensemble = several * dense
    more = {"ensemble_of": several, "ensemble_flops": ensemble, "fewer_percent": 100 * (1 - flops / ensemble)}
    return row | {"ratio_to_dense": flops / dense} | more


def training_costs(costs: pd.DataFrame, expected: Expected) -> list[dict[str, Any]]:
    """What training each method costs, a mean over seeds: its members' runs and the pre-training that they start from.

    Returns:
        Rows with label, ``pretrain`` and ``finetune`` seconds and ``peak_memory_mb``, the largest of any of the runs; none where a run is
        missing.
    """
    seconds, memory = (
        {(row["stage"], row["method"], row["seed"]): row[column] for row in rows_of(costs.dropna(subset=[column]))}
        for column in ("seconds", "peak_memory_mb")
    )
    rows = []
    for name in expected.compared:
        row: dict[str, Any] = {"label": expected.methods[name].label}
        used: list[tuple[str, str, int]] = []
        for stage in ("pretrain", "finetune"):
            runs = [_of_stage(expected, stage, expected.runs(name, seed)) for seed in expected.seeds]
            used += [run for one in runs for run in one]
            row[stage] = _mean_sum(runs, seconds)
        row["peak_memory_mb"] = max(memory[run] for run in used) if memory.keys() >= set(used) else None
        rows.append(row)
    return rows


def _of_stage(expected: Expected, stage: str, runs: Iterable[tuple[str, int]]) -> list[tuple[str, str, int]]:
    """Distinct runs of one stage behind fine-tuned members."""
    if stage == "finetune":
        return sorted({(stage, method, seed) for method, seed in runs})
    return sorted({(stage, expected.methods[method].pretrain_as or method, seed) for method, seed in runs})


def _mean_sum(runs: list[list[tuple[str, str, int]]], values: Mapping[tuple[str, str, int], float]) -> float | None:
    if any(run not in values for one in runs for run in one):
        return None
    return mean([sum(values[run] for run in one) for one in runs])

"""How the tables of a paper on images are laid out for readers, and what is said beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from moebench.metrics.uncertainty import BOUND
from moebench.protocols.vision.config import DETECTION, SCORES
from moebench.protocols.vision.numbers import (
    CLEAN,
    DIVERSITY,
    FEWSHOT,
    FITTED,
    MODEL,
    OOD,
    QUALITY,
    SHALLOW,
    TEST,
    UPSTREAM_TEST,
    Expected,
    training_costs,
)
from moebench.published import Table
from moebench.results.rendering import Block
from moebench.results.tables import EMPTY, SPREAD, difference_cell, difference_meaning, measured_cell, notes, number, rows_of

MEASURES = {
    "accuracy": ("accuracy, %", 2),
    "nll": ("NLL, nats", 3),
    "brier": ("Brier", 3),
    "ece": ("ECE", 4),
    "signed_ece": ("signed ECE", 4),
    "adaptive_ece": ("adaptive ECE", 4),
    "classwise_ece": ("classwise ECE", 4),
    "aurc": ("AURC", 4),
    "nll_scaled": ("NLL, scaled", 3),
    "ece_scaled": ("ECE, scaled", 4),
    "temperature": ("temperature", 2),
    "accuracy_bootstrap_se": ("bootstrap SE of accuracy", 2),
    "disagreement": ("disagreement", 4),
    "normalised_disagreement": ("disagreement / error", 3),
    "mutual_information": ("mutual information, nats", 4),
    "pairwise_kl": ("pairwise KL, nats", 4),
    "cosine_diversity": ("1 - cosine", 4),
    "auroc": ("AUROC", 4),
    "aupr_out": ("AUPR, OOD positive", 4),
    "aupr_in": ("AUPR, ID positive", 4),
    "fpr_at_95_tpr": ("FPR at 95 % TPR", 4),
}
"""Measure → heading and decimals."""

Key = tuple[str, str]
"""(set, measure)."""


def table1_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `moebench.protocols.vision.numbers.table1_quality`."""
    quality = [(TEST, measure) for measure in ("accuracy", "nll", "brier", "ece")]
    more = [(TEST, measure) for measure in ("signed_ece", "adaptive_ece", "classwise_ece", "aurc", "nll_scaled", "ece_scaled")]
    cells = {(row["set"], row["measure"], row["method"]): row for row in rows_of(table)}
    sizes = tuple(_size(cells[MODEL, metric, name]["value"], scale) for name in expected.compared for metric, scale in SIZES.items())
    first = _grid(table, expected, "Quality", (_meaning(expected), *_sharing(expected)), quality)
    width = len(SIZES)
    rows = tuple((*row, *sizes[place * width : (place + 1) * width]) for place, row in enumerate(first.rows))
    blocks = [
        Block(first.heading, first.text, (*first.header, "parameters", "MFLOPs an image"), rows),
        _differences(table, expected, quality),
        _grid(table, expected, "Calibration and selective prediction", (CALIBRATION,), [*more, (FITTED, "temperature")]),
        _grid(
            table,
            expected,
            "Before fine-tuning, and over test images",
            (
                "Accuracy on the test set of pre-training; and the bootstrap standard error of the accuracy above over 1000 resamples of"
                " the test images, in percent points: it speaks of the choice of images, as ± does of the seeds.",
            ),
            [(UPSTREAM_TEST, "accuracy"), (TEST, "accuracy_bootstrap_se")],
            ("upstream accuracy, %", "bootstrap standard error"),
        ),
        *_shallow(table),
        *_published(expected, ("CIFAR", "ILSVRC")),
    ]
    return [*blocks, *notes(expected), *_bounds(table), *_holes(table)]


def _shallow(table: pd.DataFrame) -> list[Block]:
    """Lay out the shallow baselines."""
    rows = [row for row in rows_of(table) if row["method"] in SHALLOW]
    values = {(row["label"], row["measure"]): number(row["value"], _decimals(row["measure"])) for row in rows}
    labels = dict.fromkeys(label for label, _ in values)
    lines = tuple((label, *(values.get((label, measure), EMPTY) for measure in QUALITY)) for label in labels)
    text = "scikit-learn on the pixels of the same training images, no image moved; no seed is drawn. An SVM has no probabilities."
    header = ("baseline", *(MEASURES[measure][0] for measure in QUALITY))
    return [Block("Shallow baselines", (text,), header, lines)] if lines else []


SIZES = {"parameters": 1.0, "flops_per_image": 1e-6}
CALIBRATION = (
    "Signed ECE is mean confidence minus accuracy: above 0 over-confident. AURC is the area under the risk-coverage curve. Scaled: after"
    " temperature scaling of the mean over members, with one temperature a model, fitted on the validation set; a temperature above 1 means"
    " that it was over-confident. Down is better but for signed ECE, best at 0, and the temperature. On few images ECE is too large even"
    " for a calibrated model."
)


def table2_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `moebench.protocols.vision.numbers.table2_ood`."""
    text = (
        "Is an image out of distribution? Every score grows with strangeness and **OOD is the positive class**, as in the authors' code;"
        " with the test set positive, AUPR and FPR are other numbers, and AUPR depends on the ratio of the sets. Up is better, but for"
        " FPR. The score `max_probability` is 1 minus the largest mean probability, that of the authors' code; `mutual_information` takes"
        " several members; `max_logit`, `energy` and both Mahalanobis distances are means over the members' own scores."
    )
    sets = list(dict.fromkeys(table["set"]))
    if not sets:
        return [Block("", (f"No out-of-distribution set is measured yet: `{expected.making(expected.baseline, expected.seeds[0])}`.",))]
    blocks = [Block("", (text, _meaning(expected), *_sharing(expected)))]
    for name in sets:
        keys = [(name, f"{measure}_max_probability") for measure in DETECTION]
        blocks.append(_grid(table, expected, f"`{name}`: largest probability", (), keys, tuple(MEASURES[one][0] for one in DETECTION)))
        blocks.append(_grid(table, expected, f"`{name}`: AUROC of each score", (), [(name, f"auroc_{score}") for score in SCORES], SCORES))
    keys = [(name, "auroc_max_probability") for name in sets]
    heading = f"AUROC of the largest probability: difference to {expected.label}"
    blocks.append(_differences(table, expected, keys, tuple(f"`{name.removeprefix(OOD)}`" for name in sets), heading))
    return [*blocks, *_holes(table)]


def table3_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `moebench.protocols.vision.numbers.table3_corruption`."""
    sets = list(dict.fromkeys(table["set"]))
    severities = [name for name in sets if name.startswith("corrupted ")]
    others = [name for name in sets if name not in severities and name != CLEAN]
    several = ("accuracy", "nll", "brier", "ece", "disagreement")
    text = (
        "Seeded corruptions of the test set, which are the project's own and not those of CIFAR-10-C or ImageNet-C: the plain mean over all"
        " corruptions and severities, then over the corruptions at each severity. `shift_*` are other images of the same classes."
    )
    blocks = [Block("", (text, _meaning(expected), *_sharing(expected)))]
    for name in others:
        heading = "All corruptions and severities" if name == "corrupted" else f"`{name}`"
        blocks.append(_grid(table, expected, heading, (), [(name, measure) for measure in several]))
        heading = f"{heading}: difference to {expected.label}"
        blocks.append(_differences(table, expected, [(name, measure) for measure in ("accuracy", "nll", "ece")], heading=heading))
    if severities:
        columns = ["clean", *(name.replace("corrupted s", "severity ") for name in severities)]
        for measure in ("accuracy", "ece"):
            keys = [(name, measure) for name in (CLEAN, *severities)]
            blocks.append(_grid(table, expected, f"By severity: {MEASURES[measure][0]}", (), keys, tuple(columns)))
    return [*blocks, *_holes(table)]


def table4_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `moebench.protocols.vision.numbers.table4_fewshot`."""
    text = (
        "Ridge regression on the features of the **pre-trained** model, before fine-tuning, from k images a class: accuracy on the"
        " downstream test set in percent, mean over the same random supports for every method. Members of an ensemble put their features"
        " side by side. The penalty, one of 30 for each k, has the best mean rank on the **validation** set; the authors choose it by test"
        " accuracy, over several data sets, which is slightly optimistic."
    )
    keys = [(FEWSHOT, f"accuracy_{shots}_shot") for shots in expected.shots]
    headings = tuple(f"k = {shots}" for shots in expected.shots)
    blocks = [
        _grid(table, expected, "", (text, _meaning(expected), *_sharing(expected)), keys, headings),
        _differences(table, expected, keys, headings),
    ]
    return [*blocks, *_holes(table)]


def table5_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `moebench.protocols.vision.numbers.table5_diversity`."""
    text = (
        "How much the members of a model differ on the test set; larger is more diverse, which is better only at equal error. Disagreement"
        " is the share of pairs of members with different predictions; over the error of their mean it is near 1 where errors are"
        " independent. Mutual information is that of prediction and member; KL and cosine are means over pairs. Compare only at equal"
        " numbers of members."
    )
    names = [name for name in expected.compared if expected.outputs(name) > 1]
    if not names:
        return [Block("", ("No method of this profile has several members.",))]
    grid = _grid(table, expected, "", (text, SPREAD, *_sharing(expected)), [(TEST, one) for one in DIVERSITY], names=names)
    rows = tuple((row[0], str(expected.outputs(name)), *row[1:]) for name, row in zip(names, grid.rows, strict=True))
    return [Block("", grid.text, (grid.header[0], "members", *grid.header[1:]), rows), *_holes(table)]


def table6_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out `moebench.protocols.vision.numbers.table6_flops`."""
    rows = rows_of(table)
    analytic, trained = ([row for row in rows if row["section"] == section] for section in ("analytic", "trained"))
    fewer = [row["fewer_percent"] for row in analytic if row["method"] == "e3"]
    text = [
        "Forward operations an image, an addition and a multiplication counted as two, routers and heads included, counted from the"
        " architecture and the rows that experts compute; capacity does not pad. Compared with a deep ensemble of as many dense"
        " transformers of the same size as the model has members, of two if it has one."
    ]
    claim = (
        "At 224 pixels, with 1000 classes and experts in the last two odd blocks (Last-2); their number, 32, is our choice and hardly"
        " counts. The copies of an image begin at the first layer of experts, so that the deeper the model, the less E³ adds."
    )
    said = f" E³ takes {number(min(fewer), 1)} to {number(max(fewer), 1)} % fewer than the ensemble of two." if fewer else ""
    blocks = [
        Block(
            "Published sizes, recomputed",
            (*text, claim + said),
            ("size", *FLOPS_HEADER),
            tuple((row["size"], *_flops(row)) for row in analytic),
        ),
        *_published(expected, ("FLOPs", "Largest")),
        Block("Sizes trained here", (), FLOPS_HEADER, tuple(_flops(row) for row in trained)),
    ]
    return [*blocks, *_holes(table)]


FLOPS_HEADER = ("model", "members", "MFLOPs an image", "over dense", "dense ensemble of", "fewer than it, %")


def _flops(row: dict[str, Any]) -> tuple[str, ...]:
    if row["flops"] is None:
        return (row["label"], str(row["members"]), *[EMPTY] * 4)
    flops = f"{row['flops'] * 1e-6:,.2f}"
    if row["ratio_to_dense"] is None:
        return (row["label"], str(row["members"]), flops, *[EMPTY] * 3)
    return (
        row["label"],
        str(row["members"]),
        flops,
        number(row["ratio_to_dense"], 3),
        str(row["ensemble_of"]),
        number(row["fewer_percent"], 1),
    )


def costs_blocks(costs: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out what training cost: means over seeds. Unlike the tables, seconds and memory differ from run to run."""

    def shown(value: float | None) -> str:
        return EMPTY if value is None else number(value, 0)

    rows = tuple(
        (row["label"], *(shown(row[column]) for column in ("pretrain", "finetune", "peak_memory_mb")))
        for row in training_costs(costs, expected)
    )
    hours = math.fsum(costs["seconds"].dropna()) / 3600
    text = (
        "Of one model, mean over seeds: seconds of the pre-training that it starts from, its own or another method's, and of"
        " fine-tuning; of a deep ensemble the sum over its members, shared pre-training once. Seconds and memory are of the machine in"
        " `provenance.csv`, runs going side by side.",
        f"Training seconds of all runs of this paper together: {hours:.1f} hours.",
    )
    return [Block("", text, ("method", "seconds of pre-training", "seconds of fine-tuning", "peak memory, MB"), rows)]


# ------------------------------------------------------------------------------------------------------------- the parts


def _meaning(expected: Expected) -> str:
    return f"{SPREAD} {difference_meaning(expected)}"


def _sharing(expected: Expected) -> tuple[str, ...]:
    """Say which deep ensembles have runs in common, and which have one run twice, as where seeds are few."""
    said = []
    if labels := [expected.methods[name].label for name in expected.shared()]:
        said.append(
            f"**Deep ensembles of different seeds share member runs ({'; '.join(labels)}): their values vary together, so their ± is"
            " understated, and the intervals and p-values of their differences are too small.**"
        )
    if labels := [expected.methods[name].label for name in expected.repeated()]:
        said.append(f"**With too few seeds for its members, an ensemble has one run twice ({'; '.join(labels)}): it is no real ensemble.**")
    return tuple(said)


def _grid(
    table: pd.DataFrame,
    expected: Expected,
    heading: str,
    text: tuple[str, ...],
    keys: Sequence[Key],
    headings: tuple[str, ...] = (),
    names: Sequence[str] = (),
) -> Block:
    """A row a method, a column a measure."""
    cells = {(row["set"], row["measure"], row["method"]): row for row in rows_of(table)}
    rows = tuple(
        (expected.methods[name].label, *(measured_cell(cells[*key, name], _decimals(key[1])) for key in keys))
        for name in names or expected.compared
    )
    return Block(heading, text, ("method", *(headings or (MEASURES[measure][0] for _, measure in keys))), rows)


def _differences(table: pd.DataFrame, expected: Expected, keys: Sequence[Key], headings: tuple[str, ...] = (), heading: str = "") -> Block:
    cells = {(row["set"], row["measure"], row["method"]): row for row in rows_of(table)}
    rows = tuple(
        (expected.methods[name].label, *(difference_cell(cells[*key, name], _decimals(key[1])) for key in keys))
        for name in expected.compared
        if name != expected.baseline
    )
    header = ("method", *(headings or (MEASURES[measure][0] for _, measure in keys)))
    return Block(heading or f"Difference to {expected.label}", (), header, rows)


def _decimals(measure: str) -> int:
    if measure in MEASURES:
        return MEASURES[measure][1]
    return 2 if measure.startswith("accuracy") else 4  # of few shots; of a score's detection


def _size(value: float | None, scale: float) -> str:
    return EMPTY if value is None else f"{value * scale:,.{0 if scale == 1 else 2}f}"


def _published(expected: Expected, about: tuple[str, ...]) -> list[Block]:
    """Published numbers whose table names one of ``about``."""
    tables = [table for table in expected.published.tables.values() if any(word in table.title for word in about)]
    named = [f"The row of {method.label} is `{method.published}`" for method in expected.methods.values() if method.published]
    text = (
        f"{expected.about.name} (arXiv {expected.about.arxiv}). Other data, other model sizes, other hardware: shown for"
        " orientation, in no mean and no difference above. The paper's own tables could not be had: for every other measure and method, not"
        f" published here. {'; '.join(named) + '.' if named else 'No method of this profile corresponds to a published row.'}"
    )
    blocks = [Block("Published, in another setting", (text,))] if tables else []
    return blocks + [Block("", (_source(table),), ("published row", *table.columns), _published_rows(table)) for table in tables]


def _source(table: Table) -> str:
    seeds = "; number of seeds not stated" if table.seeds is None else f"; {table.seeds} seeds" if table.seeds > 1 else ""
    return f"{table.title}; {table.source}{seeds}, no deviations published."


def _published_rows(table: Table) -> tuple[tuple[str, ...], ...]:
    return tuple((name, *(table.cell(name, column) or EMPTY for column in table.columns)) for name in table.rows)


def _bounds(table: pd.DataFrame) -> list[Block]:
    """List which temperatures are at a bound."""
    items = tuple(f"{row['label']}: {row['note'].rpartition('; ')[2]}" for row in rows_of(table) if BOUND in str(row["note"]))
    return [Block("Temperatures at a bound", (), (), (), items)] if items else []


def _holes(table: pd.DataFrame) -> list[Block]:
    """List why cells are empty or incomplete, a line a method and reason."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows_of(table):
        if note := "; ".join(part for part in str(row["note"]).split("; ") if not part.startswith(("no difference", BOUND))):
            what = " ".join(filter(None, (str(row.get("set") or ""), str(row.get("measure") or ""))))
            cells.setdefault((row["label"], note), []).append(f"`{what}`" if what else "")
    items = tuple(f"{label}{_some(what)}: {note}" for (label, note), what in cells.items())
    return [Block("Empty or incomplete cells", (), (), (), items)] if items else []


def _some(what: list[str]) -> str:
    """Name a few cells."""
    named = [one for one in what if one]
    if not named:
        return ""
    return ", " + (", ".join(named) if len(named) <= 3 else f"{named[0]} and {len(named) - 1} more")

"""The table of routers under the paper's protocol: quality, how the experts are used, and what it costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd

from moebench.data import catalogue
from moebench.protocols.transfer.layout import task_column
from moebench.protocols.transfer.numbers import Expected, Scores, perplexities, task_scores
from moebench.results.rendering import Block
from moebench.results.statistics import deviation, mean
from moebench.results.tables import EMPTY, difference_cell, difference_meaning, differences, frame, measured_cell, number, rows_of

PERPLEXITY = "perplexity"
ROUTING = {
    "max_violation": ("MaxVio", 2),
    "router_entropy": ("router entropy, nats", 2),
    "experts_per_token": ("experts a token", 2),
    "dropped_share": ("dropped in training, %", 1),
    "flops_per_token": ("forward FLOPs a token, thousands", 0),
}
"""Measure of pre-training → heading and decimals; how the last two are scaled for readers stands in `_shown`."""
COLUMNS = ("method", "label", "measure", "value", "sd", "n_seeds", "difference", "ci_low", "ci_high", "p", "p_holm", "note")
COSTS = {"seconds": ("seconds", 0), "tokens_per_second": ("tokens a second", 0), "peak_memory_mb": ("peak memory, MB", 0)}


def table3_routers(records: pd.DataFrame, expected: Expected, tasks: tuple[str, ...]) -> pd.DataFrame:
    """Compare routers: one row a method and measure, the mean over seeds and the sample deviation ``sd`` of ``n_seeds`` values.

    Args:
        records: all records of the paper.
        expected: with the methods of all tables.
        tasks: the tasks that the methods of this table are fine-tuned on; their measure is the task's name, the mean over languages.

    Returns:
        Rows with `COLUMNS`. ``difference`` and what follows are to the baseline method, paired by seed, as in `table1_xtreme`; they are
        given for perplexity and tasks. Without a value, ``note`` says why.
    """
    names = [name for name in expected.compared if not expected.methods[name].pretrain_as]
    columns: dict[str, Mapping[str, Mapping[int, float]]] = {PERPLEXITY: perplexities(records, expected)}
    for task in tasks:
        scores = task_scores(records, catalogue.task(task), expected.pivots.get(task))
        columns[task] = {name: scores.get(("finetune", name), Scores()).value for name in names}
    measured: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows_of(records[(records["stage"] == "pretrain") & (records["language"] == "all")]):
        measured[row["metric"]][row["method"]][row["seed"]] = row["value"]
    rows = []
    for measure in (PERPLEXITY, *tasks, *ROUTING):
        values = columns.get(measure) or {name: measured[measure].get(name, {}) for name in names}
        compared = {} if measure in ROUTING else differences(values, expected.baseline)
        for name in names:
            seeds = list(values[name].values())
            found, note = compared.get(name, ({}, ""))
            row = {"method": name, "label": expected.methods[name].label, "measure": measure, "n_seeds": len(seeds)}
            row |= {"value": mean(seeds) if seeds else None, "sd": deviation(seeds)} | found
            rows.append(row | {"note": note if seeds else _hole(expected, measure, name)})
    return frame(rows, COLUMNS)


def _hole(expected: Expected, measure: str, name: str) -> str:
    if measure in ROUTING and expected.methods[name].layer == "none":
        return "no experts"
    if not expected.pretraining and measure in (PERPLEXITY, *ROUTING):
        return f"profile {expected.profile} does not pre-train"
    if measure in ROUTING or measure == PERPLEXITY:
        return f"missing: `{expected.make('pretrain', name, expected.seeds[0])}`"
    return f"missing: `{expected.make('finetune', name, expected.seeds[0], expected.trained_on[measure])}`"


def table3_blocks(table: pd.DataFrame, expected: Expected, tasks: tuple[str, ...]) -> list[Block]:
    """Lay out `table3_routers`: quality, differences, and how the experts are used."""
    cells = {(row["method"], row["measure"]): row for row in rows_of(table)}
    names = list(dict.fromkeys(table["method"]))
    label = {name: expected.methods[name].label for name in names}
    quality = (PERPLEXITY, *tasks)
    headings = ("perplexity", *map(task_column, tasks))
    text = [
        f"Every method inserts one layer into the same encoder and is pre-trained and fine-tuned alike. Mean over seeds ± sample standard"
        f" deviation (number of seeds); tasks as in Table 1, over all languages. {difference_meaning(expected)}"
    ]
    blocks = [
        Block(
            "Quality",
            tuple(text),
            ("method", *headings),
            tuple((label[name], *(_cell(cells[name, key]) for key in quality)) for name in names),
        ),
        Block(
            f"Quality: difference to {expected.label}",
            ("Lower perplexity is better.",),
            ("method", *headings),
            tuple(
                (label[name], *(difference_cell(cells[name, key], 2 if key == PERPLEXITY else 1) for key in quality))
                for name in names
                if name != expected.baseline
            ),
        ),
    ]
    meaning = (
        "Measured on the validation text after pre-training, where nothing is dropped; the dropped share is that of all training steps."
        " MaxVio is the largest load over the mean load, minus 1; router entropy is of the distribution over experts, mean over tokens"
        " (uniform: ln E). FLOPs are counted from the rows that the experts really saw, with router, trunk and attention, without the head."
    )
    rows = tuple((label[name], *(_shown(cells[name, key], key) for key in ROUTING)) for name in names)
    blocks.append(Block("How the experts are used", (meaning,), ("method", *(heading for heading, _ in ROUTING.values())), rows))
    holes = [f"{row['label']}, {row['measure']}: {row['note']}" for row in rows_of(table) if row["note"].startswith(("missing", "profile"))]
    return [*blocks, *([Block("Empty cells", (), (), (), tuple(holes))] if holes else [])]


def _cell(row: dict[str, Any]) -> str:
    return measured_cell(row, 2 if row["measure"] == PERPLEXITY else 1)


def _shown(row: dict[str, Any], key: str) -> str:
    if row["value"] is None:
        return EMPTY
    scale = {"dropped_share": 100.0, "flops_per_token": 1e-3}.get(key, 1.0)
    decimals = ROUTING[key][1]
    spread = f" ± {number(row['sd'] * scale, decimals)}" if row["sd"] and round(row["sd"] * scale, decimals) else ""
    return number(row["value"] * scale, decimals) + spread


def costs_blocks(costs: pd.DataFrame, expected: Expected) -> list[Block]:
    """Lay out what pre-training cost: means over seeds. Unlike the tables, seconds and memory differ from run to run."""
    rows = []
    mine = costs[costs["stage"] == "pretrain"]
    for name in expected.compared:
        one = mine[mine["method"] == name]
        if len(one) and not expected.methods[name].pretrain_as:
            parameters, active = (int(one[column].iloc[0]) for column in ("parameters", "active_parameters"))
            taken = (number(float(one[column].mean()), decimals) for column, (_, decimals) in COSTS.items())
            rows.append((expected.methods[name].label, f"{parameters:,}", f"{active:,}", *taken))
    text = "Of one pre-training run, mean over seeds; seconds and memory are of the machine in `provenance.csv`, runs going side by side."
    header = ("method", "parameters", "active, one expert a token", *(heading for heading, _ in COSTS.values()))
    hours = math.fsum(float(value) for value in costs["seconds"]) / 3600
    return [Block("", (text, f"Training seconds of all runs of this paper together: {hours:.1f} hours."), header, tuple(rows))]

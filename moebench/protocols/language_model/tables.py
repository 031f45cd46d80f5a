"""How it is shown: likelihood and zero-shot accuracy, calibration, use of experts, selection, removed routers, operations; figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd

from moebench.protocols.language_model import figures, layout, numbers
from moebench.protocols.language_model.config import (
    ACTIVATION,
    CHOICES,
    DIVERSITY,
    DIVERSITY_OF,
    TOKEN_ACTIVATION,
    XNLI,
    XNLI_LANGUAGES,
    Data,
    language_of,
)
from moebench.protocols.language_model.numbers import AVERAGE
from moebench.published import Table
from moebench.results.routing_figures import by_depth, loads
from moebench.results.summaries import ALL, ROUTED, Key, Values, values_of
from moebench.results.tables import Document, Expected, Figure, Measured, frame, title

FILES = """\
| `records.csv` | every measured number in long form, a row a method, seed, task, language and metric; `n`: of how many tokens or items |
| `provenance.csv` | of each run: hash of its configuration, fingerprint of its code, commit, versions, hardware |
| `costs.csv`, `costs.md` | of each run: seconds, tokens a second, peak memory, parameters; the second in short, for each method |
| `curves.csv` | norms of experts over training, of every method and seed that selects by them |
| `table<n>_main.csv` `.md` `.tex` | likelihood of held-out text and zero-shot accuracy, differences, published values |
| `table<n>_languages.csv` `.md` `.tex` | zero-shot accuracy by language; where a task is asked in several |
| `calibration.csv` `.md` `.tex` | how far the probabilities of choices can be trusted |
| `routing.csv` `.md` `.tex` | how experts are used, over all blocks; the CSV also block by block, the data of the figures |
| `activation.csv` `.md` `.tex` | share of experts in use, at several thresholds; where it is measured |
| `diversity.csv` `.md` `.tex` | how many experts the sub-tokens of a token reach; where methods split tokens |
| `table3_selection.csv` `.md` `.tex` | other ways to select experts; where such methods run |
| `table1_removed.csv` `.md` `.tex` | trained models without their routers; where such methods run |
| `table4_throughput.csv` `.md` `.tex` | operations of the published sizes beside published throughput; where throughput is published |
| `table5_heads`, `table6_components`, `tablef2_shared`, `tablef3_one_bit` | sweeps of multi-head layers; where such methods run |
| `load_by_depth.svg`, `confidence_by_depth.svg` | entropy of the load and of a token's choice, block by block |
| `load.svg` | load of every expert, the baseline and the methods whose experts select themselves |
| `heat_map.svg`, `.csv` | selections of every expert of every block, the first seed |
| `diversity.svg` | experts that a token reaches, by class of word; where methods split tokens of a constructed text |
| `norms_<method>.svg` | mean norm of every expert over training, the first seed |
"""
"""Rows of the list of files in the README beside the results."""
NOTES = """\
In `records.csv` the task is `text` (held-out text, the language its name), `routing` (how experts are used on it; language `all`, a text, a
block `layer01`, or one of its experts `layer01.expert001`), or a zero-shot task. The stage `finetune` is the examination of a pre-trained
model: nothing is learned in it. Accuracies are in percent, all other measures fractions, nats or bits. A shallow baseline has the stage
`baseline` and seed 0.

`records.csv`, the tables and the figures are the same byte for byte when made again from the same runs; seconds, memory, versions and
commits are not. What the measures are stands in `docs/METRICS.md`.
"""
"""What that README says about them."""
USED = ("load_entropy", "router_entropy", "rank_margin", "idle", "max_violation", "experts_per_token", "coupling", "macs_per_token")
BLOCK_BY_BLOCK = ("load_entropy", "router_entropy", "rank_margin", "coupling")
RANKS = (64, 128, 256, 512)
"""d_low of the paper's Table 4."""
VOCABULARY = 32_000


@cache
def published_sizes() -> dict[str, tuple[int, float]]:
    """Parameters and multiplications a token, without attention's scores, of the rows of the paper's Table 4."""
    import torch

    from moebench.models.flops import decoder_costs, macs_per_token
    from moebench.protocols.language_model.build import build
    from moebench.protocols.language_model.config import matched

    found = {}
    for low in (0, *RANKS):
        name, method = (f"AoE {low}", {"layer": "aoe", "router": None}) if low else ("MoE", {"layer": "moe", "router": "topk"})
        shape = {"layers": 12, "width": 768, "heads": 12, "inner": 3072, "context": 2048}
        sizes = {"experts": 8, "low": low, "inner": matched(768, 3072, low)}
        with torch.device("meta"):  # shapes without weights
            decoder = build({"decoder": shape, "sizes": sizes, "method": method | {"options": {"k": 2}}}, VOCABULARY)
        found[name] = int(decoder_costs(decoder, 2, 0)["parameters"]), macs_per_token(decoder, 2, 0)
    return found


def tables(expected: Expected, measured: Measured) -> list[Document | Figure]:
    """Make the tables and figures; the first is the one to look at."""
    data = expected.experiment.data
    every = numbers.Expected(**vars(expected), texts=tuple(data.texts), **_tasks(data))
    values, shallow = values_of(measured.records), values_of(measured.records, "baseline")
    verdicts = numbers.counted(values, shallow, every)
    counting = [task for task in every.tasks if verdicts[task].verdict == "yes"]
    values = numbers.with_average(values, counting, ("accuracy",))
    tasks = layout.keys_of([*every.tasks, AVERAGE] if every.tasks else [])
    likelihood = layout.text_keys(every, ("nll", "perplexity", "bits_per_byte"))
    beside = expected.published.tables.get(expected.experiment.setting.beside)

    printed = {key: _printed(beside, layout.TASK_NAMES.get(key[0], ())) for key in tasks}
    main = every.of("main")
    table2 = numbers.summary(values, every, main, [*likelihood, *tasks], True, printed)
    documents: list[Document | Figure] = [
        Document(
            f"table{expected.experiment.setting.beside.lower()}_main",
            title(every, "likelihood and zero-shot accuracy", expected.experiment.setting.beside),
            layout.main_blocks(table2, every, verdicts, shallow),
            table2,
        )
    ]
    if every.tasks:
        keys: list[Key] = [(task, "", metric) for metric in CHOICES for task in layout.one_right(every.tasks)]
        table = numbers.summary(values, every, main, keys, False)
        documents.append(Document("calibration", title(every, "calibration of choices"), layout.calibration_blocks(table, every), table))
    if every.languages:
        documents.append(_languages(values, shallow, every, main, measured.records))
    documents += [*_routing(values, every, main), *_diversity(values, every)]
    if len(every.of("selection")) > 1:
        table3 = numbers.summary(values, every, every.of("selection"), [*likelihood, *tasks], True)
        documents.append(Document("table3_selection", title(every, "ways to select", "3"), layout.selection_blocks(table3, every), table3))
    if len(every.of("removed")) > 1:
        table1 = numbers.summary(values, every, every.of("removed"), [*likelihood, *tasks], True)
        documents.append(Document("table1_removed", title(every, "routers removed", "1"), layout.removed_blocks(table1, every), table1))
    documents += _groups(values, every, [*likelihood, *tasks])
    if any("throughput" in columns for columns in _columns(every, "4")):
        documents.append(_throughput(every))
    documents.append(Document("costs", title(every, "what pre-training cost"), layout.costs_blocks(measured.costs, every)))
    selecting = [name for name in main if every.methods[name].layer == "aoe"]
    documents += [
        Figure("load_by_depth", by_depth(values, every, main, "load_entropy", "Ent_load, nats")),
        Figure("confidence_by_depth", by_depth(values, every, main, "router_entropy", "Ent_conf, nats")),
        Figure("load", loads(values, every, [every.baseline, *selecting])),
        Figure("heat_map", *figures.heat_maps(values, every, main)),
    ]
    return [*documents, *(Figure(f"norms_{name}", figures.norms(measured.curves, every, name)) for name in selecting)]


def _tasks(data: Data) -> dict[str, Any]:
    """``tasks`` of the main table, and ``languages`` of those that are asked in others; the pivot goes by its text's name there."""
    pivot = _pivot(data)
    asked = [language_of(name) for name in data.tasks]
    several = dict.fromkeys(task for task, language in asked if language)
    languages = {task: tuple(language or pivot for one, language in asked if one == task) for task in several}
    return {"tasks": tuple(task for task, language in asked if not language), "languages": languages}


def _pivot(data: Data) -> str:
    """Name of the text in the constructed pivot language; empty: none is."""
    return next((name for name, language in data.made.items() if not language), "")


def _printed(table: Table | None, columns: Sequence[str]) -> Callable[[str | None], str]:
    """What a published table has in the first of the columns that has something, by the row's name."""
    return lambda row: next((found for column in columns if table and (found := table.cell(row, column))), "")


def _languages(values: Values, shallow: Values, every: numbers.Expected, main: list[str], records: pd.DataFrame) -> Document:
    """Accuracy by language, beside the published table whose columns are XNLI's languages."""
    verdicts = numbers.with_languages(values, shallow, every, _pivot(every.experiment.data))
    published = every.published.tables
    beside = next((name for name, table in published.items() if set() < {*table.columns} - {"average"} <= {*XNLI_LANGUAGES}), "")
    keys = [key for task in every.languages for key in layout.language_keys(every, task)]
    printed = {key: _printed(published.get(beside), ["average" if key[1] == ALL else key[1]]) for key in keys if key[0] == XNLI}
    table = numbers.summary(values, every, main, keys, True, printed)
    tested = records[(records["stage"] == "finetune") & (records["metric"] == "accuracy")]
    items = {str(task): int(n) for task, n in tested.groupby("task")["n"].min().items()}
    blocks = layout.language_blocks(table, every, verdicts, shallow, items, beside)
    return Document(
        f"table{beside}_languages" if beside else "languages", title(every, "zero-shot inference by language", beside), blocks, table
    )


def _columns(every: numbers.Expected, table: str) -> list[tuple[str, ...]]:
    """Metrics of each column of a published table; none where there is no such table."""
    published = every.published.tables.get(table)
    return list(published.columns.values()) if published else []


def _groups(values: Values, every: numbers.Expected, keys: list[Key]) -> list[Document | Figure]:
    """Tables of the methods beside the main ones, of those groups that run."""
    documents: list[Document | Figure] = []
    for name, group in layout.GROUPS.items():
        _, *mine = every.of(name)
        if mine:
            expected = replace(every, baseline=mine[0]) if group.own else every
            names = mine if group.own else every.of(name)
            table = numbers.summary(values, expected, names, keys, True)
            blocks = layout.group_blocks(table, expected, group, names)
            documents.append(Document(group.stem, title(every, group.heading, group.beside[0]), blocks, table))
    return documents


def _routing(values: Values, every: numbers.Expected, main: list[str]) -> list[Document | Figure]:
    blocks = sorted({language for task, language, metric in values if task == ROUTED and metric == "load_entropy" and language != ALL})
    over_all = numbers.summary(values, every, main, [(ROUTED, ALL, metric) for metric in USED], False)
    keys: list[Key] = [(ROUTED, block, metric) for metric in BLOCK_BY_BLOCK for block in blocks]
    table = pd.concat([over_all, numbers.summary(values, every, main, keys, False)], ignore_index=True) if keys else over_all
    return [
        Document("routing", title(every, "how experts are used"), layout.routing_blocks(over_all, every, USED), table),
        *_activation(values, every, main),
    ]


def _activation(values: Values, every: numbers.Expected, main: list[str]) -> list[Document | Figure]:
    """How many experts are in use, where that is measured, or is a claim of the paper."""
    keys: list[Key] = [(ROUTED, ALL, metric) for metric in (*ACTIVATION, *TOKEN_ACTIVATION)]
    if not every.splitting and not any(values.get(key) for key in keys):
        return []
    table = numbers.summary(values, every, main, [(ROUTED, ALL, "experts_per_token"), *keys], False)
    return [Document("activation", title(every, "how many experts are in use"), layout.activation_blocks(table, every), table)]


def _diversity(values: Values, every: numbers.Expected) -> list[Document | Figure]:
    """How many experts a token reaches, of the methods that split tokens."""
    if not every.splitting:
        return []
    classified = every.experiment.data.classified
    keys: list[Key] = [(ROUTED, text, metric) for text in every.texts for metric in DIVERSITY]
    keys += [
        (ROUTED, text, metric)
        for text in classified
        for metric in DIVERSITY_OF
        if metric != "diversity_homonym" or values.get((ROUTED, text, metric))  # not every language has any
    ]
    table = numbers.summary(values, every, every.splitting, keys, False)
    found: list[Document | Figure] = [
        Document("diversity", title(every, "experts that a token reaches"), layout.diversity_blocks(table, every), table)
    ]
    return [*found, *([Figure("diversity", figures.diversities(table, every, classified))] if classified else [])]


def _throughput(every: numbers.Expected) -> Document:
    published = every.published.tables.get("4")

    def printed(row: str, column: str) -> str:
        return published.cell(row, column) if published else ""

    base, rows = published_sizes()["MoE"][1], []
    for name, (parameters, macs) in published_sizes().items():
        row = {"published": name, "label": name, "parameters": parameters, "macs": macs, "ratio": base / macs}
        if printed(name, "throughput"):
            row["published_ratio"] = f"{float(printed(name, 'throughput')) / float(printed('MoE', 'throughput')):.3f}"
        rows.append(row)
    table = frame(rows, ("label", "parameters", "macs", "ratio", "published", "published_ratio"))
    return Document(
        "table4_throughput", title(every, "operations of the published sizes", "4"), layout.throughput_blocks(table, printed), table
    )

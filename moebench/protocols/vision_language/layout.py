"""How the tables of images and words are laid out for readers, and what is said beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from moebench.metrics.captions import ABSENT
from moebench.protocols.vision_language.config import TASKS
from moebench.protocols.vision_language.numbers import FINETUNED, SHALLOW, Expected, masked_keys
from moebench.protocols.vision_language.runs import PRETRAINED_ON
from moebench.results.grids import Grids, published_block
from moebench.results.rendering import Block
from moebench.results.statistics import LEAST_SEEDS, MARGIN, Bar, mean
from moebench.results.summaries import ALL, ROUTED, Key, Values
from moebench.results.tables import EMPTY, SPREAD, notes, number, rows_of

MEASURES = {
    "nll": ("NLL, nats", 3),
    "perplexity": ("perplexity", 2),
    "accuracy": ("accuracy, %", 1),
    "consistency": ("consistency, %", 1),
    "bleu4": ("BLEU-4", 1),
    "meteor": ("METEOR", 1),
    "cider": ("CIDEr", 1),
    "spice": ("SPICE", 1),
    "load_entropy": ("Ent_load, nats", 3),
    "router_entropy": ("Ent_conf, nats", 3),
    "rank_margin": ("rank margin", 3),
    "idle": ("idle", 3),
    "max_violation": ("MaxVio", 2),
    "experts_per_token": ("experts a token", 2),
    "macs_per_token": ("MACs a token, thousands", 1),
}
"""Measure → heading and decimals."""
SCALE = {"macs_per_token": 1e-3}
"""Measure → factor between the CSV and what readers are shown."""
TASK_NAMES = {"vqa": "questions", "nlvr": "statements", "caption": "captions"}
KINDS = {ALL: "all", "text": "text", "image": "images", "pair_text": "text of pairs", "pair_image": "images of pairs"}
"""What is masked → what tables call it."""


def heading_of(key: Key) -> str:
    """What a column is called."""
    task, language, metric = key
    if task == PRETRAINED_ON:
        return KINDS[language] if metric in ("perplexity", "accuracy") else f"{MEASURES[metric][0]}, {KINDS[language]}"
    if task == ROUTED:
        return MEASURES[metric][0]
    return f"{TASK_NAMES[task]}, `{language}`" if language else f"{TASK_NAMES[task]}, {MEASURES[metric][0]}"


GRIDS = Grids(MEASURES, heading_of, SCALE)

MASKED_MEANING = (
    "Exponential of the mean negative log-likelihood of what is masked on held-out rows: words of text alone, visual tokens of images"
    " alone, and both of pairs, where each side may help the other. `all` is over all masked tokens together: it mixes words with visual"
    " tokens, and depends on how many of each there are. Lower is better."
)
ROUTING_MEANING = (
    "Measured on the held-out rows of pre-training, where nothing is dropped; means over layers of experts, but idle, which is summed."
    " Ent_load is the entropy of the experts' shares f / K (balanced: ln E), Ent_conf the mean entropy of a token's softmax over all scores"
    " (lower: surer); the rank margin is the gap between the K-th and the next score over the deviation of a token's scores. Idle is the"
    " largest share minus the smallest. Of layers with sub-tokens, these are over sub-tokens."
)


def masked_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Masked modelling, in the pattern of the third setting of the paper's Table 1."""
    tested = masked_keys("nll")
    return [
        GRIDS.grid(table, "Perplexity of what is masked", (SPREAD, MASKED_MEANING), masked_keys("perplexity")),
        GRIDS.grid(
            table,
            "Share that is guessed",
            ("Percent of the masked tokens whose likeliest token is the right one.",),
            masked_keys("accuracy"),
        ),
        GRIDS.differences(table, expected, tested),
        *GRIDS.undecided(table, expected, tested),
        *published_block(expected, "1", expected.names),
        *notes(expected),
        *GRIDS.holes(table),
    ]


def finetuned_blocks(table: pd.DataFrame, expected: Expected, verdicts: Mapping[str, Bar], shallow: Values) -> list[Block]:
    """The fine-tuned tasks, in the pattern of the paper's Table 4."""
    tested = [key for key in FINETUNED if key[2] not in ABSENT]
    return [
        GRIDS.grid(table, "Test sets", (SPREAD, *_said(expected, verdicts)), FINETUNED, floors(shallow, FINETUNED)),
        GRIDS.differences(table, expected, tested),
        *GRIDS.undecided(table, expected, tested),
        *published_block(expected, "4", expected.names),
        *notes(expected),
        *GRIDS.holes(table[~table["metric"].isin(ABSENT)]),
    ]


def _said(expected: Expected, verdicts: Mapping[str, Bar]) -> list[str]:
    absent = "; ".join(reason for reason in ABSENT.values())
    said = [
        "Questions are answered by choosing among the answers of the training set; a statement is true or false of two images, and"
        " consistent where it is judged rightly on all its pairs; captions are generated greedily. BLEU-4 and CIDEr are times 100. Higher"
        f" is better. Not computed: {absent}."
    ]
    if not expected.made:
        return [
            *said,
            "Questions: VQA accuracy, ten people's answers each; of VQAv2 the validation questions, the test answers not being published.",
        ]
    words = {
        "yes": "count",
        "no": "are not clearly better than shallow baselines",
        "ceiling": "are within as much of 100",
        "undecided": f"are undecided (takes {LEAST_SEEDS} seeds and a shallow baseline)",
    }
    verdict = "; ".join(f"{TASK_NAMES[task]} {words[verdicts[task].verdict]}" for task in TASKS)
    return [
        *said,
        f"A task of made scenes counts where {expected.label} beats the best shallow baseline (accuracy, of captions BLEU-4) by"
        f" {MARGIN:.0f} deviations over seeds, and is as far from 100, so that methods can differ: {verdict}.",
    ]


def floors(shallow: Values, keys: Sequence[Key]) -> list[tuple[str, ...]]:
    """A row for each shallow baseline."""
    names = [name for name in SHALLOW if any(name in shallow.get(key, {}) for key in keys)]

    def cell(name: str, key: Key) -> str:
        found = shallow.get(key, {}).get(name)
        return number(mean(list(found.values())), MEASURES[key[2]][1]) if found else EMPTY

    return [(f"shallow: {SHALLOW[name]}", *(cell(name, key) for key in keys)) for name in names]


def types_blocks(table: pd.DataFrame, shallow: Values, keys: Sequence[Key]) -> list[Block]:
    """Accuracy by type of question and of statement, beside the shallow baselines."""
    text = "Accuracy in percent by type; what a type asks stands in `moebench/data/scenes.py`. Chance differs from type to type."
    return [GRIDS.grid(table, "", (SPREAD, text), keys, floors(shallow, keys)), *GRIDS.holes(table)]


def routing_blocks(table: pd.DataFrame, metrics: Sequence[str]) -> list[Block]:
    """How experts are used."""
    keys: list[Key] = [(ROUTED, ALL, metric) for metric in metrics]
    return [GRIDS.grid(table, "", (ROUTING_MEANING, SPREAD), keys), *GRIDS.holes(table)]


def costs_blocks(costs: pd.DataFrame, expected: Expected) -> list[Block]:
    """What training cost: means over seeds. Unlike the tables, seconds and memory differ from run to run."""
    rows = []
    for name in expected.names:
        mine = costs[costs["method"] == name]
        trained = mine[mine["stage"] == "pretrain"]
        tasks = [mine[(mine["stage"] == "finetune") & (mine["task"] == task)] for task in TASKS]
        sizes = [_whole(trained, column) for column in ("parameters", "active_parameters")]
        seconds = [_mean(part, "seconds") for part in (trained, *tasks)]
        rows.append((expected.methods[name].label, *sizes, *seconds, _mean(trained, "tokens_per_second"), _mean(trained, "peak_memory_mb")))
    hours = math.fsum(float(value) for value in costs["seconds"].dropna()) / 3600
    text = (
        "Mean over seeds; seconds and memory are of the machine in `provenance.csv`, runs going side by side; parameters, tokens a second"
        " and memory are those of pre-training. Active: parameters that a token's forward pass uses.",
        f"Training seconds of all runs of this paper together: {hours:.2f} hours.",
    )
    header = (
        *("method", "parameters", "active", "seconds of pre-training"),
        *(f"of {TASK_NAMES[task]}" for task in TASKS),
        *("tokens a second", "peak memory, MB"),
    )
    return [Block("", text, header, tuple(rows))]


def _mean(costs: pd.DataFrame, column: str) -> str:
    there = [float(row[column]) for row in rows_of(costs.dropna(subset=[column]))]
    return number(mean(there), 0) if there else EMPTY


def _whole(costs: pd.DataFrame, column: str) -> str:
    there = [int(row[column]) for row in rows_of(costs.dropna(subset=[column]))]
    return f"{there[0]:,}" if there else EMPTY

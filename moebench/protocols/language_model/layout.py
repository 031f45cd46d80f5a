"""How the tables of language models are laid out for readers, and what is said beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from moebench.protocols.language_model.config import (
    ACTIVATION,
    CONSTRUCTED_TASKS,
    DIVERSITY,
    DIVERSITY_OF,
    SEVERAL_RIGHT,
    TOKEN_ACTIVATION,
    XNLI,
)
from moebench.protocols.language_model.numbers import AVERAGE, TEXT, Expected
from moebench.results.grids import Grids, cells_of, published_block
from moebench.results.rendering import Block
from moebench.results.statistics import LEAST_SEEDS, MARGIN, Bar, mean
from moebench.results.summaries import ALL, ROUTED, Key, Values
from moebench.results.tables import EMPTY, SPREAD, notes, number, rows_of

MEASURES = {
    "nll": ("NLL, nats a token", 3),
    "perplexity": ("perplexity", 2),
    "bits_per_byte": ("bits a byte", 4),
    "accuracy": ("accuracy, %", 1),
    "accuracy_normalised": ("accuracy by characters, %", 1),
    "brier": ("Brier", 3),
    "ece": ("ECE", 3),
    "load_entropy": ("Ent_load, nats", 3),
    "router_entropy": ("Ent_conf, nats", 3),
    "rank_margin": ("rank margin", 3),
    "idle": ("idle", 3),
    "max_violation": ("MaxVio", 2),
    "experts_per_token": ("experts a token", 2),
    "coupling": ("coupling loss", 3),
    "macs_per_token": ("MACs a token, thousands", 1),
    "activation_0": ("chosen at all, %", 1),
    **{metric: (f"> {metric.rpartition('_')[2]} / E, %", 1) for metric in ACTIVATION[1:]},
    **{metric: (f"of tokens > {metric.rpartition('_')[2]} / E, %", 1) for metric in TOKEN_ACTIVATION},
    "diversity": ("all tokens", 2),
    "diversity_random": ("at random", 2),
    "diversity_content": ("content words", 2),
    "diversity_function": ("function words", 2),
    "diversity_homonym": ("homonyms", 2),
    "diversity_first": ("first choices", 2),
    "diversity_first_random": ("first choices at random", 2),
}
"""Measure → heading and decimals."""
SCALE = {"macs_per_token": 1e-3} | dict.fromkeys((*ACTIVATION, *TOKEN_ACTIVATION), 100)
"""Measure → factor between the CSV and what readers are shown."""
TASK_NAMES = {
    "arc_easy": ("ARC-E",),
    "piqa": ("PIQA",),
    "social_iqa": ("SIQA",),
    "winogrande": ("WINO", "WinoGrande"),
    "hellaswag": ("HELLA", "HellaSwag"),
    "mnli": ("MNLI",),
    "qnli": ("QNLI",),
    "sst2": ("SST2",),
    "arc_challenge": ("ARC-C",),
    "rte": ("RTE",),
    "openbookqa": ("OpenBookQA",),
    "boolq": ("BoolQ",),
    "truthfulqa_mc1": ("TruthfulQA mc1", "TruthfulQA"),
    "truthfulqa_mc2": ("TruthfulQA mc2", "TruthfulQA"),
    XNLI: ("XNLI",),
    AVERAGE: ("AVG", "average"),
}
"""Task → what it is called here, and by the papers' tables."""
CHANCE = {"continuation": 1 / 4, XNLI: 1 / 3}
"""Accuracy of a guess, of tasks by language with more than two choices."""
LIKELIHOOD_MEANING = (
    "Of the held-out text, all tokens but the first of each document and row; bits a byte divide by the bytes of the text, so that they"
    " compare between tokenizers. Lower is better."
)
ROUTING_MEANING = (
    "Measured on all held-out text, where nothing is dropped; means over blocks, but idle, which is summed. Ent_load is the entropy of the"
    " experts' shares f / K (balanced: ln E), Ent_conf the mean entropy of a token's softmax over all scores (lower: surer). The"
    " latter falls with the size of the scores alone; the rank margin does not: the gap between the K-th and the next score over the"
    " deviation of a token's scores. Idle is the largest share minus the smallest, a stand-in for the time that experts wait. The"
    " coupling loss"
    " (arXiv 2512.23447) without its noise, α = 1, is 0 where every expert answers its own router row most; norms have no such rows."
)
ACTIVATION_MEANING = (
    "Share of the cells (block, expert) whose selections, relative to all selections of the block (sub-tokens times K), are above a"
    " threshold; on the right relative to whole tokens, of which one has several selections. On all held-out text, where nothing is"
    " dropped. Above 0 is an expert that was chosen once, which more text makes likelier; 1 / E is an equal share."
)
DIVERSITY_MEANING = (
    "Different experts that the sub-tokens of a token reach together, mean over tokens and sparse blocks; each sub-token has K experts, and"
    " all count. At random: if each sub-token drew K different ones of all E, apart from the others. First choices: of each sub-token its"
    " best expert alone, as where K is 1."
)
CLASSES_MEANING = (
    "Content words are nouns, verbs, adjectives, adverbs and names, function words all others, numerals included. Homonyms are the content"
    " words that write two lemmas, a noun and a verb or an adjective. They stand in for the polysemous words and false cognates of the"
    " paper's figure 7, which a language model found in XNLI and which were not published: **a substitute**."
)
SHALLOW = "best shallow baseline"


def keys_of(tasks: Iterable[str], metric: str = "accuracy") -> list[Key]:
    """Keys of a metric of zero-shot tasks."""
    return [(task, "", metric) for task in tasks]


def one_right(tasks: Iterable[str]) -> list[str]:
    """Those of the tasks whose items have one right choice."""
    return [task for task in tasks if task != SEVERAL_RIGHT]


def text_keys(expected: Expected, metrics: Sequence[str]) -> list[Key]:
    """Keys of likelihood."""
    return [(TEXT, text, metric) for metric in metrics for text in expected.texts]


def heading_of(key: Key) -> str:
    """What a column is called."""
    task, language, metric = key
    if task == TEXT:
        return f"{MEASURES[metric][0]}, {language}"
    if task == ROUTED:
        return MEASURES[metric][0]
    if language:
        return "mean" if language == ALL else language
    return name_of(task)


def name_of(task: str) -> str:
    """What a task is called here."""
    return TASK_NAMES.get(task, (task,))[0]


GRIDS = Grids(MEASURES, heading_of, SCALE)
grid, difference_grid, undecided, holes = GRIDS.grid, GRIDS.differences, GRIDS.undecided, GRIDS.holes


# ------------------------------------------------------------------------------------------------------------- the tables


def main_blocks(table: pd.DataFrame, expected: Expected, verdicts: Mapping[str, Bar], shallow: Values) -> list[Block]:
    """Likelihood and zero-shot accuracy, in the pattern of the paper's Table 2."""
    likelihood, tasks = text_keys(expected, ("perplexity", "bits_per_byte")), keys_of([*expected.tasks, AVERAGE] if expected.tasks else [])
    tested = [*text_keys(expected, ("nll",)), *tasks]
    blocks = [grid(table, "Likelihood of held-out text", (SPREAD, LIKELIHOOD_MEANING), likelihood)]
    if expected.tasks:
        blocks.append(
            grid(table, "Zero-shot accuracy", (SPREAD, *_said(expected, verdicts)), tasks, _floors(keys_of(expected.tasks), shallow))
        )
    blocks.append(difference_grid(table, expected, tested))
    blocks += undecided(table, expected, tested)
    which = expected.experiment.setting.beside
    return [
        *blocks,
        *published_block(expected, which, expected.of("main")),
        *notes(expected),
        *holes(table),
    ]


VERDICTS = {
    "yes": "counts",
    "no": "is not clearly better than shallow baselines",
    "ceiling": "is within as much of 100",
    "undecided": f"is undecided (takes {LEAST_SEEDS} seeds and a shallow baseline)",
}


def _said(expected: Expected, verdicts: Mapping[str, Bar]) -> list[str]:
    made = [task for task in expected.tasks if task in CONSTRUCTED_TASKS]
    if not made:
        several = f" Of {name_of(SEVERAL_RIGHT)} it is the probability of all right choices." if SEVERAL_RIGHT in expected.tasks else ""
        return [f"The predicted choice is the likeliest by its whole log-likelihood; tasks as lm-evaluation-harness defines them.{several}"]
    verdict = "; ".join(f"`{task}` {VERDICTS[verdicts[task].verdict]}" for task in made)
    return [
        "Tasks in the constructed pivot language, with exact answers (`docs/TASKS_OF_LANGUAGE_MODELS.md`); the predicted choice is the"
        " likeliest by its whole log-likelihood, and nothing is shown before the question.",
        f"A task counts, and enters the average, where {expected.label} beats the best shallow baseline by {MARGIN:.0f} deviations over"
        f" seeds, and is as far from 100, so that methods can differ: {verdict}.",
    ]


def _floors(keys: Sequence[Key], shallow: Values) -> list[tuple[str, ...]]:
    """A row for each shallow baseline; of a mean over the keys nothing is said."""
    names = sorted({name for key in keys for name in shallow.get(key, {})})

    def cell(name: str, key: Key) -> str:
        found = shallow.get(key, {}).get(name)
        return number(mean(list(found.values())), 1) if found else EMPTY

    return [(f"shallow: {name}", *(cell(name, key) for key in keys), EMPTY) for name in names]


def language_keys(expected: Expected, task: str) -> list[Key]:
    """Keys of a task's accuracy in each language, and of the mean over them."""
    return [(task, language, "accuracy") for language in (*expected.languages[task], ALL)]


def language_blocks(
    table: pd.DataFrame, expected: Expected, verdicts: Mapping[Key, Bar], shallow: Values, items: Mapping[str, int], beside: str
) -> list[Block]:
    """Zero-shot accuracy by language, in the pattern of Table 3 of MH-MoE (arXiv 2404.15045).

    Args:
        table: accuracies of the keys of all tasks.
        expected: what there should be.
        verdicts: whether each language counts.
        shallow: accuracies of the shallow baselines.
        items: task → items of a language, the fewest.
        beside: the published table of these languages; empty: none.
    """
    blocks: list[Block] = []
    for task in expected.languages:
        keys, what = language_keys(expected, task), f", {name_of(task)}"
        text = _languages_said(expected, task, verdicts, items.get(task))
        blocks.append(grid(table, f"Zero-shot accuracy{what}", (SPREAD, *text), keys, _floors(keys[:-1], shallow)))
        blocks.append(difference_grid(table, expected, keys, what=what))
    return [*blocks, *published_block(expected, beside, expected.of("main")), *holes(table)]


def _languages_said(expected: Expected, task: str, verdicts: Mapping[Key, Bar], items: int | None) -> list[str]:
    chance = CHANCE.get(task, 1 / 2)
    spread = f", with a standard error of {100 * math.sqrt(chance * (1 - chance) / items):.1f} on {items:,} items" if items else ""
    guess = f"A guess is right in {100 * chance:.1f} %{spread}."
    if task not in CONSTRUCTED_TASKS:
        return [
            "Premise, question word, and yes, also or no before the hypothesis, in the words that lm-evaluation-harness has for each"
            f" language: the prediction is the likeliest of the three whole texts. {guess}"
        ]
    made = "; ".join(f"{key[1]} {VERDICTS[verdicts[key].verdict]}" for key in language_keys(expected, task)[:-1])
    return [
        f"The items of `{task}` (`docs/TASKS_OF_LANGUAGE_MODELS.md`) in the constructed languages of the texts, the same meanings in each."
        f" {guess}",
        f"A language counts, and enters the mean, by the rule of the main table: {made}.",
    ]


def calibration_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """How far the probabilities of choices can be trusted."""
    meaning = (
        "Probabilities are softmax over a question's choices of their whole log-likelihoods. NLL in nats a question, Brier summed over"
        " choices, ECE of the likeliest choice in 15 bins, as a fraction; accuracy by characters takes the likeliest choice a character."
    )
    blocks: list[Block] = []
    for metric in ("nll", "brier", "ece", "accuracy_normalised"):
        heading = "NLL, nats a question" if metric == "nll" else MEASURES[metric][0]
        blocks.append(grid(table, heading, (meaning, SPREAD) if not blocks else (), keys_of(one_right(expected.tasks), metric)))
    return [*blocks, *holes(table)]


def routing_blocks(table: pd.DataFrame, expected: Expected, metrics: Sequence[str]) -> list[Block]:
    """How experts are used."""
    keys: list[Key] = [(ROUTED, ALL, metric) for metric in metrics]
    return [grid(table, "", (ROUTING_MEANING, SPREAD), keys), *holes(table)]


def activation_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """How many experts are in use, beside what the paper's figure 1a says."""
    keys: list[Key] = [(ROUTED, ALL, metric) for metric in ("experts_per_token", *ACTIVATION, *TOKEN_ACTIVATION)]
    return [grid(table, "", (ACTIVATION_MEANING, SPREAD), keys), *published_block(expected, "Fig1a", expected.of("main")), *holes(table)]


def diversity_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """How many experts a token reaches, in the manner of the paper's figure 7: a row a text and method."""
    cells, labels = cells_of(table)
    measures = [metric for metric in (*DIVERSITY[:2], *DIVERSITY_OF, *DIVERSITY[2:]) if metric in set(table["metric"])]
    rows = tuple(
        (
            text,
            label,
            *(GRIDS.cell(cells[at], at[1][2]) if at in cells else EMPTY for at in ((name, (ROUTED, text, one)) for one in measures)),
        )
        for text in expected.texts
        for name, label in labels.items()
    )
    said = (DIVERSITY_MEANING, *([CLASSES_MEANING] if DIVERSITY_OF[0] in measures else []), SPREAD)
    return [Block("", said, ("text", "method", *(MEASURES[metric][0] for metric in measures)), rows), *holes(table)]


def selection_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """Other ways to select, in the pattern of the paper's Table 3."""
    tasks = keys_of([*expected.tasks, AVERAGE] if expected.tasks else [])
    tested = [*text_keys(expected, ("nll",)), *tasks]
    text = (
        "Top-p: a token takes its likeliest experts until their probabilities exceed 0.6. Expert choice: an expert takes the quarter of the"
        " batch that it scores highest; **in evaluation the group is a sequence, so that a token's experts depend on later tokens: these"
        " likelihoods are not those of a model that generates**, and the paper does not say how it measures."
    )
    blocks = [
        grid(
            table, "Likelihood of held-out text", (text, SPREAD, LIKELIHOOD_MEANING), text_keys(expected, ("perplexity", "bits_per_byte"))
        ),
        *([grid(table, "Zero-shot accuracy", (), tasks)] if tasks else []),
        difference_grid(table, expected, tested),
        *undecided(table, expected, tested),
    ]
    return [*blocks, *published_block(expected, "3", expected.of("selection")), *holes(table)]


def removed_blocks(table: pd.DataFrame, expected: Expected) -> list[Block]:
    """A trained model without its router, in the pattern of the paper's Tables 1, 6 and 7."""
    tasks = keys_of([*expected.tasks, AVERAGE] if expected.tasks else [])
    text = (
        f"The trained models of {expected.label}, seed by seed, without their routers: every expert computes a node, the K experts of"
        " largest norm there do the work, weighted by softmax over their norms. Nothing is trained. The first row is the"
        " model with its router."
    )
    keys = [*text_keys(expected, ("perplexity",)), *tasks]
    blocks = [grid(table, "", (text, SPREAD), keys), difference_grid(table, expected, [*text_keys(expected, ("nll",)), *tasks])]
    for which in ("1", "6", "7"):
        blocks += published_block(expected, which, [])
    return [*blocks, *holes(table)]


@dataclass(frozen=True)
class Group:
    """A table of some methods beside the main one.

    Attributes:
        stem: of its file.
        heading: what it shows.
        beside: published tables that it stands beside, the first in its title.
        text: what a reader has to know.
        own: whether its first method is its baseline, instead of the setting's.
    """

    stem: str
    heading: str
    beside: tuple[str, ...]
    text: str
    own: bool = False


GROUPS = {
    "heads": Group(
        "table5_heads",
        "number of heads",
        ("5",),
        "Equal operations: every sub-token takes h experts, and these are as many and as wide as the operations and parameters of the"
        " single-head experts allow, head and merge layer included (arXiv 2411.16205). Equal parameters: as many experts as there,"
        " about h times as wide, which takes about h times the operations of an expert (arXiv 2404.15045).",
    ),
    "components": Group(
        "table6_components",
        "parts of the layer",
        ("6", "7", "F4", "F5"),
        "`maps`: head and merge layer come on top of the experts, so these methods take more operations; `no maps`, `head layer only`,"
        " `merge layer only`: the experts get the operations that are saved, so that all take the same.",
    ),
    "shared": Group(
        "tablef2_shared",
        "with a shared expert",
        ("F2",),
        "One more expert of the dense network's size sees every whole token, in every method.",
        own=True,
    ),
    "one_bit": Group(
        "tablef3_one_bit",
        "weights of one bit",
        ("F3",),
        "All linear maps but embedding, head and routers have weights of one bit and inputs of eight (BitNet, arXiv 2310.11453).",
        own=True,
    ),
}
"""Tables of the multi-head layer: name of `moebench.protocols.language_model.config.Method.table` → what it is."""


def group_blocks(table: pd.DataFrame, expected: Expected, group: Group, names: Sequence[str]) -> list[Block]:
    """A table of some methods, with the published ones that it stands beside."""
    tasks = keys_of([*expected.tasks, AVERAGE] if expected.tasks else [])
    tested, likelihood = text_keys(expected, ("nll",)), text_keys(expected, ("perplexity", "bits_per_byte"))
    blocks = [
        grid(table, "Likelihood of held-out text", (group.text, SPREAD, LIKELIHOOD_MEANING), likelihood),
        *([grid(table, "Zero-shot accuracy", (), tasks)] if tasks else []),
        difference_grid(table, expected, tested),
        *undecided(table, expected, tested),
    ]
    for number_ in group.beside:
        blocks += published_block(expected, number_, names)
    return [*blocks, *holes(table)]


def throughput_blocks(table: pd.DataFrame, published: Callable[[str, str], str]) -> list[Block]:
    """Operations against the MoE, of the published sizes, in the pattern of the paper's Table 4."""
    text = (
        "Multiplications of a token's forward pass at the published size (12 blocks of width 768, 8 experts, K = 2; projections, experts,"
        " router and head, without attention's scores), counted from the architecture; the ratio is the MoE's over the method's, an upper"
        " bound of its relative throughput where nothing but multiplications costs. Published: the ratio of measured training"
        " throughput on GPUs."
    )
    rows = tuple(
        (
            row["label"],
            f"{row['parameters'] / 1e6:,.1f}",
            f"{row['macs'] / 1e6:,.1f}",
            number(row["ratio"], 3),
            published(row["published"], "throughput") or EMPTY,
            row["published_ratio"] or EMPTY,
        )
        for row in rows_of(table)
    )
    header = ("method", "parameters, M", "MACs a token, M", "MoE's MACs / its", "published, thousand tokens a second", "published ratio")
    return [Block("", (text,), header, rows)]


def costs_blocks(costs: pd.DataFrame, expected: Expected) -> list[Block]:
    """What pre-training and examination cost: means over seeds. Unlike the tables, seconds and memory differ from run to run."""
    rows = []
    for name in expected.compared:
        mine = costs[costs["method"] == name]
        trained, examined = mine[mine["stage"] == "pretrain"], mine[mine["stage"] == "finetune"]
        sizes = [f"{int(examined[column].iloc[0]):,}" for column in ("parameters", "active_parameters") if len(examined)] or [EMPTY, EMPTY]
        shown = [
            number(float(trained[column].mean()), 0) if len(trained) else EMPTY
            for column in ("seconds", "tokens_per_second", "peak_memory_mb")
        ]
        rows.append((expected.methods[name].label, *sizes, *shown))
    hours = math.fsum(float(value) for value in costs["seconds"].dropna()) / 3600
    text = (
        "Of one pre-training run, mean over seeds; seconds and memory are of the machine in `provenance.csv`, runs going side by side."
        " Active: parameters that a token's forward pass uses, at the experts that held-out text took; the embedding, which is also the"
        " head, once.",
        f"Training seconds of all runs of this paper together: {hours:.2f} hours.",
    )
    header = ("method", "parameters", "active", "seconds", "tokens a second", "peak memory, MB")
    return [Block("", text, header, tuple(rows))]

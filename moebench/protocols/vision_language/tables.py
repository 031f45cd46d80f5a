"""How it is shown: masked modelling, the fine-tuned tasks, accuracy by type, use of experts, costs; figures."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moebench.protocols.vision_language import layout, numbers
from moebench.protocols.vision_language.config import MASKED, SCORES
from moebench.protocols.vision_language.numbers import FINETUNED, masked_keys
from moebench.protocols.vision_language.runs import PRETRAINED_ON
from moebench.results.routing_figures import by_depth, loads
from moebench.results.summaries import ALL, ROUTED, Key, Values, values_of
from moebench.results.tables import Document, Expected, Figure, Measured, title

FILES = """\
| `records.csv` | every measured number in long form, a row a method, seed, task, language and metric; `n`: of how many tokens or rows |
| `provenance.csv` | of each run: hash of its configuration, fingerprint of its code, commit, versions, hardware |
| `costs.csv`, `costs.md` | of each run: seconds, tokens a second, peak memory, parameters; the second in short, for each method |
| `table1_masked.csv` `.md` `.tex` | perplexity of masked words and visual tokens, differences, published values |
| `table4_finetuned.csv` `.md` `.tex` | questions, statements and captions, differences, shallow baselines, published values |
| `types.csv` `.md` `.tex` | accuracy by type of question and of statement; where there are a few types |
| `routing.csv` `.md` `.tex` | how experts are used, over all layers of experts; the CSV also layer by layer, the data of the figures |
| `load_by_depth.svg`, `confidence_by_depth.svg` | entropy of the load and of a token's choice, layer by layer |
| `load.svg` | load of every expert, the baseline and the methods with sub-tokens |
"""
"""Rows of the list of files in the README beside the results."""
NOTES = """\
In `records.csv` the task is `masked` (pre-training on held-out rows; the language says what is masked, `all` everything), `routing` (how
experts are used on them; language `all`, a block `layer01`, or one of its experts `layer01.expert001`), or a fine-tuned task, `vqa`,
`nlvr` or `caption`; its language is empty, or a type of question or statement. Accuracies, BLEU-4 and CIDEr are times 100, all other
measures fractions or nats. A shallow baseline has the stage `baseline` and seed 0.

`records.csv`, the tables and the figures are the same byte for byte when made again from the same runs; seconds, memory, versions and
commits are not. What the measures are stands in `docs/METRICS.md`.
"""
"""What that README says about them."""
USED = ("load_entropy", "router_entropy", "rank_margin", "idle", "max_violation", "experts_per_token", "macs_per_token")
BLOCK_BY_BLOCK = ("load_entropy", "router_entropy", "rank_margin")
BESIDE: dict[Key, tuple[str, str]] = {
    (PRETRAINED_ON, ALL, "perplexity"): ("1", "8 experts"),
    ("vqa", "", "accuracy"): ("4", "VQAv2 test-dev"),
    ("nlvr", "", "accuracy"): ("4", "NLVR2 test-P"),
    ("caption", "", "bleu4"): ("4", "BLEU-4"),
    ("caption", "", "meteor"): ("4", "METEOR"),
    ("caption", "", "cider"): ("4", "CIDEr"),
    ("caption", "", "spice"): ("4", "SPICE"),
}
"""Key → the published table and its column that it stands beside."""


def tables(expected: Expected, measured: Measured) -> list[Document | Figure]:
    """Make the tables and figures; the first is the one to look at."""
    every = numbers.Expected(**vars(expected))
    trained, tested, shallow = (values_of(measured.records, stage) for stage in ("pretrain", "finetune", "baseline"))
    verdicts = numbers.counted(tested, shallow, every)

    def printed(key: Key) -> Any:
        which, column = BESIDE[key]
        table = expected.published.tables.get(which)
        return lambda row: table.cell(row, column) if table else ""

    beside = {key: printed(key) for key in BESIDE}
    table4 = numbers.summary(tested, every, [*FINETUNED, *(_nll(task) for task in SCORES if "nll" in SCORES[task])], True, beside)
    table1 = numbers.summary(trained, every, [key for metric in MASKED for key in masked_keys(metric)], True, beside)
    documents: list[Document | Figure] = [
        Document("table1_masked", title(every, "masked modelling of images and words", "1"), layout.masked_blocks(table1, every), table1),
        Document(
            "table4_finetuned", title(every, "fine-tuned tasks", "4"), layout.finetuned_blocks(table4, every, verdicts, shallow), table4
        ),
    ]
    if types := numbers.type_keys(tested):
        table = numbers.summary(tested, every, types)
        documents.append(Document("types", title(every, "accuracy by type"), layout.types_blocks(table, shallow, types), table))
    documents.append(_routing(trained, every))
    documents.append(Document("costs", title(every, "what training cost"), layout.costs_blocks(measured.costs, every)))
    shown = [name for name in every.names if name == every.baseline or every.methods[name].multi_head]
    return [
        *documents,
        Figure("load_by_depth", by_depth(trained, every, every.names, "load_entropy", "Ent_load, nats")),
        Figure("confidence_by_depth", by_depth(trained, every, every.names, "router_entropy", "Ent_conf, nats")),
        Figure("load", loads(trained, every, shown)),
    ]


def _nll(task: str) -> Key:
    return (task, "", "nll")


def _routing(trained: Values, every: numbers.Expected) -> Document:
    blocks = sorted({language for task, language, metric in trained if task == ROUTED and metric == "load_entropy" and language != ALL})
    over_all = numbers.summary(trained, every, [(ROUTED, ALL, metric) for metric in USED])
    keys: list[Key] = [(ROUTED, block, metric) for metric in BLOCK_BY_BLOCK for block in blocks]
    table = pd.concat([over_all, numbers.summary(trained, every, keys)], ignore_index=True) if keys else over_all
    return Document("routing", title(every, "how experts are used"), layout.routing_blocks(over_all, USED), table)

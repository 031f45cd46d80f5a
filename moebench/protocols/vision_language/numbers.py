"""From records of images and words to tables: pure functions, one row a measure and method. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from moebench.metrics.captions import ABSENT
from moebench.protocols.vision_language.config import MODALITIES, SCORES, TASKS, Method
from moebench.protocols.vision_language.runs import PRETRAINED_ON
from moebench.results import summaries, tables
from moebench.results.statistics import Bar, bar, mean
from moebench.results.summaries import ALL, ROUTED, Key, Values

SHALLOW = {
    "majority": "majority, or the most frequent caption",
    "text": "text alone",
    "image": "images alone, bag of visual tokens",
    "text_and_image": "same text, bag of visual tokens",
    "nearest_image": "caption of the nearest image",
}
"""Shallow baseline → how tables call it."""
MANY_TYPES = 12
"""Where there are more types of questions, there is no table of them."""
FINETUNED: list[Key] = [
    ("vqa", "", "accuracy"),
    ("nlvr", "", "accuracy"),
    ("nlvr", "", "consistency"),
    ("caption", "", "bleu4"),
    ("caption", "", "meteor"),
    ("caption", "", "cider"),
    ("caption", "", "spice"),
]
"""Scores of the fine-tuned tasks in the order of the paper's table."""


@dataclass(frozen=True, kw_only=True)
class Expected(tables.Expected):
    """What the tables should hold."""

    methods: Mapping[str, Method]

    @property
    def names(self) -> list[str]:
        """Names of the methods: the baseline, then the others in the setting's order."""
        order = self.experiment.setting.methods or tuple(self.methods)
        return [self.baseline, *(name for name in order if name != self.baseline)]

    @property
    def made(self) -> bool:
        """Whether the tasks are of made scenes, whose scores count only above the shallow baselines."""
        return bool(self.experiment.data.source == "scenes")


def masked_keys(metric: str) -> list[Key]:
    """A metric of masked modelling: over all masked tokens, and of each kind."""
    return [(PRETRAINED_ON, language, metric) for language in (ALL, *MODALITIES)]


def type_keys(values: Values) -> list[Key]:
    """Accuracies by type of question and of statement, of the tasks that have a few types."""
    found: list[Key] = []
    for task in TASKS:
        mine = sorted(key for key in values if key[0] == task and key[1] and key[2] == "accuracy")
        found += mine if len(mine) <= MANY_TYPES else []
    return found


def counted(values: Values, shallow: Values, expected: Expected) -> dict[str, Bar]:
    """Decide which tasks count, by the baseline method's first metric (`moebench.results.statistics.bar`); published ones do anyway."""
    result = {}
    for task in TASKS:
        key = (task, "", SCORES[task][0])
        floors = {name: mean(list(seeds.values())) for name, seeds in shallow.get(key, {}).items()}
        seeds = list(values.get(key, {}).get(expected.baseline, {}).values())
        result[task] = bar(seeds, floors) if expected.made else Bar("yes", None, None)
    return result


def summary(
    values: Values, expected: Expected, shown: Sequence[Key], tested: bool = False, published: Mapping[Key, Any] | None = None
) -> pd.DataFrame:
    """See `moebench.results.summaries.summary`; ``note`` says why something is empty and which command fills it."""

    def hole(key: Key, name: str) -> str:
        task, _, metric = key
        if metric in ABSENT:
            return ABSENT[metric]
        if task == ROUTED and metric != "macs_per_token" and expected.methods[name].layer == "dense":
            return "no experts"
        found = values.get(key, {}).get(name, {})
        missing = [seed for seed in expected.seeds if seed not in found]
        if not missing:
            return ""
        stage = ("finetune", task) if task in TASKS else ("pretrain", "")
        return f"missing: `{expected.make(stage[0], name, missing[0], stage[1])}`"

    return summaries.summary(values, expected, expected.names, shown, hole, tested, published)

"""From records of language models to tables: pure functions, one row a measure and method. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from moebench.protocols.language_model.config import (
    ACTIVATION,
    CONSTRUCTED_TASKS,
    DIVERSITY,
    DIVERSITY_OF,
    TOKEN_ACTIVATION,
    Method,
    shown_in,
)
from moebench.protocols.language_model.runs import EXAMINATION
from moebench.results import summaries, tables
from moebench.results.statistics import Bar, bar, mean
from moebench.results.summaries import ALL, ROUTED, Key, Values

TEXT, AVERAGE = "text", "average"
"""Tasks of records: likelihood of held-out text; the mean over tasks."""


@dataclass(frozen=True, kw_only=True)
class Expected(tables.Expected):
    """What the tables should hold.

    Attributes:
        texts: names of the texts that perplexity is measured on.
        tasks: zero-shot tasks of the main table: in the pivot, or in English.
        languages: task → its languages, of those that are asked in others too; the pivot goes by its text's name.
    """

    methods: Mapping[str, Method]
    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    languages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, table: str) -> list[str]:
        """Names of the methods of a table: the baseline, which is in every table, then the others in the setting's order."""
        order = self.experiment.setting.methods or tuple(self.methods)
        mine = shown_in(table, self.methods)
        return [self.baseline, *(name for name in order if name in mine and name != self.baseline)]

    @property
    def splitting(self) -> list[str]:
        """Names of the methods of the main table, and of that of heads, that split tokens into sub-tokens."""
        names = dict.fromkeys([*self.of("main"), *self.of("heads")])
        return [name for name in names if (layer := self.methods[name].multi_head) is not None and layer.heads > 1]


def with_average(values: Values, tasks: Sequence[str], metrics: Sequence[str]) -> Values:
    """Add the mean over ``tasks`` of each metric, of every method and seed that has all of them."""
    for metric in metrics:
        _add_mean(values, (AVERAGE, "", metric), [(task, "", metric) for task in tasks])
    return values


def with_languages(values: Values, shallow: Values, expected: Expected, pivot: str) -> dict[Key, Bar]:
    """Add the accuracies of the pivot under its text's name, and the mean over the languages that count, under `ALL`.

    Returns:
        Whether each language counts, by the rule of `counted`.
    """
    verdicts: dict[Key, Bar] = {}
    for task, languages in expected.languages.items():
        keys: list[Key] = [(task, language, "accuracy") for language in languages]
        for found in (values, shallow):
            if pivot in languages and (mine := found.get((task, "", "accuracy"))):
                found[task, pivot, "accuracy"] = mine
        verdicts |= {key: verdict(values, shallow, key, expected.baseline) for key in keys}
        _add_mean(values, (task, ALL, "accuracy"), [key for key in keys if verdicts[key].verdict == "yes"])
    return verdicts


def _add_mean(values: Values, where: Key, keys: Sequence[Key]) -> None:
    """Add the mean over keys, of every method and seed that has all of them."""
    parts = [values.get(key, {}) for key in keys]
    for method in set.intersection(*(set(part) for part in parts)) if parts else ():
        for seed in set.intersection(*(set(part[method]) for part in parts)):
            values[where][method][seed] = mean([part[method][seed] for part in parts])


def counted(values: Values, shallow: Values, expected: Expected) -> dict[str, Bar]:
    """Decide which tasks of the main table count."""
    return {task: verdict(values, shallow, (task, "", "accuracy"), expected.baseline) for task in expected.tasks}


def verdict(values: Values, shallow: Values, key: Key, baseline: str) -> Bar:
    """Decide whether a task counts, by the baseline method's accuracy (`moebench.results.statistics.bar`); the harness' do anyway."""
    if key[0] not in CONSTRUCTED_TASKS:
        return Bar("yes", None, None)
    floors = {name: mean(list(seeds.values())) for name, seeds in shallow.get(key, {}).items()}
    return bar(list(values.get(key, {}).get(baseline, {}).values()), floors)


def summary(
    values: Values, expected: Expected, names: Sequence[str], shown: Sequence[Key], tested: bool, published: Mapping[Key, Any] | None = None
) -> pd.DataFrame:
    """See `moebench.results.summaries.summary`; ``note`` says why something is empty and which command fills it."""
    return summaries.summary(values, expected, names, shown, lambda key, name: _hole(expected, values, key, name), tested, published)


def _hole(expected: Expected, values: Values, key: Key, name: str) -> str:
    method, found = expected.methods[name], values.get(key, {}).get(name, {})
    task, language, metric = key
    if task == ROUTED and metric != "macs_per_token" and method.layer == "dense":
        return "no experts"
    mixed = values.get((ROUTED, ALL, "load_entropy"), {}).get(name) and not values.get((ROUTED, ALL, "rank_margin"), {}).get(name)
    if metric in (*ACTIVATION, *TOKEN_ACTIVATION, *DIVERSITY, *DIVERSITY_OF) and not found and mixed:
        return "experts are mixed, not chosen"
    if metric == "coupling" and not found and values.get((ROUTED, ALL, "load_entropy"), {}).get(name):
        return "no router with a row an expert"
    if task == AVERAGE and not found:
        return "no task counts, or not every task is there"
    if language == ALL and task != ROUTED and not found:
        return "no language counts, or not every language is there"
    missing = [seed for seed in expected.seeds if seed not in found]
    return f"missing: `{expected.make('finetune', name, missing[0], EXAMINATION)}`" if missing else ""

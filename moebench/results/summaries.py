"""Records by task, language and metric, and their summaries over seeds: one row a key and method."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from moebench.results.statistics import deviation, mean
from moebench.results.tables import Expected, differences, frame, rows_of

ROUTED, ALL = "routing", "all"
"""Task of records on how experts are used; its language is a block, ``layer01``, one of its experts, ``layer01.expert001``, or `ALL`."""
MOST_SEEDS = 1000
"""More seeds than this are not asked for."""

Key = tuple[str, str, str]
"""(task, language, metric)."""
Values = dict[Key, dict[str, dict[int, float]]]
"""Key → method → seed → value."""


def values_of(records: pd.DataFrame, stage: str = "finetune") -> Values:
    """The records of a stage, by key, method and seed."""
    found: Values = defaultdict(lambda: defaultdict(dict))
    for row in rows_of(records[records["stage"] == stage]):
        found[row["task"], row["language"], row["metric"]][row["method"]][row["seed"]] = row["value"]
    return found


COLUMNS = (
    *("task", "language", "metric", "method", "label", "value", "sd", "n_seeds"),
    *("difference", "ci_low", "ci_high", "p", "p_holm", "seeds_needed", "published", "note"),
)


def summary(
    values: Values,
    expected: Expected,
    names: Sequence[str],
    shown: Sequence[Key],
    hole: Callable[[Key, str], str],
    tested: bool = False,
    published: Mapping[Key, Any] | None = None,
) -> pd.DataFrame:
    """Summarise over seeds: one row for each of ``shown`` and each method.

    Args:
        values: what was measured.
        expected: what should be there.
        names: the methods; Holm's family is those of one key.
        shown: the keys, in the order of the rows.
        hole: key, method → why seeds are missing there, and which command makes them; empty if none is.
        tested: whether they are compared with the baseline.
        published: key → function from a method's published row to the paper's own value as printed.

    Returns:
        Rows with `COLUMNS`: mean over ``n_seeds`` seeds, sample deviation ``sd``, the difference to the baseline as everywhere, and
        ``seeds_needed`` where its interval holds 0 (`seeds_needed`). ``note`` says why something is empty and which command fills it.
    """
    rows = []
    for key in shown:
        mine = {name: values.get(key, {}).get(name, {}) for name in names}
        compared = differences(mine, expected.baseline) if tested else {}
        for name, found in mine.items():
            seeds = [found[seed] for seed in sorted(found)]
            row: dict[str, Any] = dict(zip(("task", "language", "metric"), key, strict=True))
            row |= {"method": name, "label": expected.methods[name].label, "n_seeds": len(seeds)}
            row |= {"value": mean(seeds) if seeds else None, "sd": deviation(seeds)}
            columns, unclaimed = compared.get(name, ({}, ""))
            row |= columns
            if columns:
                row["seeds_needed"] = seeds_needed(
                    [found[one] - mine[expected.baseline][one] for one in found if one in mine[expected.baseline]]
                )
            if published and key in published:
                row["published"] = published[key](expected.methods[name].published)
            rows.append(row | {"note": "; ".join(filter(None, (hole(key, name), unclaimed if seeds else "")))})
    return frame(rows, COLUMNS)


def seeds_needed(differences: Sequence[float]) -> int | None:
    """How many seeds it takes until the 95 % t interval excludes 0, if mean and deviation stay as observed; none: it excludes 0 now.

    More than `MOST_SEEDS` are told as one more than that. With as few seeds as these the deviation is itself uncertain: an order of size.
    """
    centre, spread, n = abs(mean(differences)), deviation(differences) or 0.0, len(differences)

    def decided(seeds: int) -> bool:
        return bool(float(stats.t.ppf(0.975, seeds - 1)) * spread / math.sqrt(seeds) < centre)

    if decided(n):
        return None
    return next((seeds for seeds in range(n + 1, MOST_SEEDS + 1) if decided(seeds)), MOST_SEEDS + 1)

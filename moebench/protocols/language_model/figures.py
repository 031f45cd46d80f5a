"""Figures of language models alone, as SVG that is the same byte for byte when drawn again from the same points."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moebench.protocols.language_model.config import DIVERSITY_OF
from moebench.protocols.language_model.numbers import Expected
from moebench.results.figures import stable, svg
from moebench.results.routing_figures import drawn, subject
from moebench.results.summaries import ROUTED, Values
from moebench.results.tables import frame, rows_of

SHARES = (0, 0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4)
"""Bounds of the colours of a heat map, in equal shares."""


def norms(points: pd.DataFrame, expected: Expected, name: str) -> str:
    """Mean norm of every expert over training, the mean over seeds would hide which: the first seed's; a panel a block."""
    mine = points[(points["method"] == name) & points["curve"].str.startswith("norm.")]
    if len(mine):
        mine = mine[mine["seed"] == mine["seed"].min()]
    panels: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows_of(mine.sort_values(["curve", "point"])):
        _, layer, expert = row["curve"].split(".")
        panels[f"block {int(layer.removeprefix('layer'))}"][f"expert {int(expert.removeprefix('expert'))}"].append((row["x"], row["y"]))
    return drawn(list(panels.items()), "step", "mean norm", expected)


def heat_maps(values: Values, expected: Expected, names: Sequence[str]) -> tuple[str, pd.DataFrame]:
    """Selections of each expert of each block, as in figure 5 of arXiv 2404.15045: a panel a method, a row a block, the first on top.

    The first seed's alone: the number of an expert means nothing in another. The colour is an expert's share of its block's selections
    times E, so that panels of different E compare.

    Returns:
        The figure, and its points: shares of all selections of the block.
    """
    rows: list[dict[str, Any]] = []
    for name in names:
        for key in sorted(key for key in values if key[0] == ROUTED and key[2] == "load" and values[key].get(name)):
            layer, expert = (int(number) for number in re.findall(r"\d+", key[1]))
            seed, share = min(values[key][name].items())
            rows.append({"method": name, "seed": seed, "block": layer, "expert": expert, "share": share})
    points = frame(rows, ("method", "seed", "block", "expert", "share"))
    panels = {
        name: mine.pivot(index="block", columns="expert", values="share").astype(float)
        for name, mine in points.groupby("method", sort=False)
    }
    with stable(7.0):
        colours = BoundaryNorm(SHARES, 256, extend="max")
        heights = [0.16 * len(panel) + 0.45 for panel in panels.values()] or [1.0]
        figure = Figure(figsize=(7.5, sum(heights) + 0.5), layout="constrained")
        all_axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (method, panel) in zip(all_axes, panels.items(), strict=False):
            mesh = axes.pcolormesh(
                panel.columns.astype(int), range(len(panel)), panel * panel.shape[1], norm=colours, edgecolor="white", linewidth=0.3
            )
            axes.set(title=expected.methods[str(method)].label, ylabel="block")
            axes.set_yticks(range(len(panel)), panel.index)
            axes.invert_yaxis()
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        all_axes[-1].set(xlabel="expert")
        if panels:
            figure.colorbar(mesh, ax=list(all_axes), label="share of selections, times E", ticks=SHARES)
        figure.suptitle(subject(expected), fontsize=8)
        return svg(figure), points


def diversities(table: pd.DataFrame, expected: Expected, texts: Sequence[str]) -> str:
    """Experts that a token reaches over those at random, by class of word, in place of figure 7 of arXiv 2404.15045: a panel a text.

    Mean and deviation over seeds; relative, since methods with more choices a token reach more experts.
    """
    cells = {(row["language"], row["metric"], row["method"]): row for row in rows_of(table) if row["value"] is not None}
    names = list(dict.fromkeys(table["method"]))
    with stable(8.0):
        figure = Figure(figsize=(0.9 * len(names) * len(texts) + 2.4, 3.2), layout="constrained")
        all_axes = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
        for axes, text in zip(all_axes, texts, strict=True):
            for place, metric in enumerate(DIVERSITY_OF):
                points = [
                    (number + 0.2 * (place - 1), row["value"] / random["value"], (row["sd"] or 0.0) / random["value"])
                    for number, name in enumerate(names)
                    if (row := cells.get((text, metric, name))) and (random := cells.get((text, "diversity_random", name)))
                ]
                if points:
                    axes.errorbar(*zip(*points, strict=True), fmt="osD"[place], color=f"C{place}", markersize=4, capsize=2)
            axes.axhline(1.0, color="black", linewidth=0.9)
            axes.set_xticks(range(len(names)), [expected.methods[name].label for name in names], rotation=20, ha="right")
            axes.set(title=text)
        all_axes[0].set(ylabel="different experts a token, over those at random")
        for place, metric in enumerate(DIVERSITY_OF):
            all_axes[0].plot([], [], "osD"[place], color=f"C{place}", markersize=4, label=metric.rpartition("_")[2])
        figure.legend(loc="outside right center", fontsize=6)
        figure.suptitle(subject(expected), fontsize=8)
        return svg(figure)

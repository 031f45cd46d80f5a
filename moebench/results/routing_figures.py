"""Figures of how experts are used, from the records of task ``routing``; SVG that is the same byte for byte when drawn again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moebench.results.figures import stable, svg
from moebench.results.statistics import mean
from moebench.results.summaries import ROUTED, Values
from moebench.results.tables import Expected

LAYER = re.compile(r"layer(\d+)")


def by_depth(values: Values, expected: Expected, names: Sequence[str], metric: str, heading: str) -> str:
    """A measure of how experts are used over the depth of the model: a line a method, the mean over seeds."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        points = []
        for (task, language, measure), methods in values.items():
            if task == ROUTED and measure == metric and LAYER.fullmatch(language) and methods.get(name):
                points.append((float(language.removeprefix("layer")), mean(list(methods[name].values()))))
        if points:
            lines[expected.methods[name].label] = sorted(points)
    return drawn([("", lines)], "block", heading, expected)


def loads(values: Values, expected: Expected, names: Sequence[str]) -> str:
    """Load of each expert of each block, sorted, over all seeds: a panel a method, a line a block."""
    panels = []
    for name in names:
        shares: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for (task, language, measure), methods in values.items():
            if task == ROUTED and measure == "load":
                for seed, value in methods.get(name, {}).items():
                    shares[language.partition(".")[0]][seed].append(value)
        lines = {
            f"block {int(layer.removeprefix('layer'))}": [
                (float(place + 1), mean(column))
                for place, column in enumerate(zip(*(sorted(one, reverse=True) for one in seeds.values()), strict=True))
            ]
            for layer, seeds in sorted(shares.items())
        }
        panels.append((expected.methods[name].label, lines))
    return drawn(panels, "expert, busiest first", "share of the load", expected)


def drawn(panels: Sequence[tuple[str, dict[str, list[tuple[float, float]]]]], x: str, y: str, expected: Expected) -> str:
    """Panels side by side, each a heading and its lines, a label and its points; the legend is that of all."""
    with stable(8.0):
        count = max(len(panels), 1)
        figure = Figure(figsize=(2.4 * count + 2.8, 3.2), layout="constrained")
        all_axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
        for axes, (heading, lines) in zip(all_axes, panels, strict=False):
            for (label, found), marker in zip(lines.items(), "osD^v<>pPX*h" * 20, strict=False):
                axes.plot(*zip(*found, strict=True), marker=marker, markersize=2.5, linewidth=0.9, label=label)
            axes.set(xlabel=x, title=heading)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        all_axes[0].set(ylabel=y)
        figure.suptitle(subject(expected), fontsize=8)
        if panels and panels[-1][1]:
            handles, labels = all_axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right center", fontsize=6)
        return svg(figure)


def subject(expected: Expected) -> str:
    """What stands over a figure: paper, profile and data."""
    return f"{expected.about.name}, profile {expected.profile}, {expected.data or 'nothing measured yet'}"

"""The figures of a paper on images, as SVG that is the same byte for byte when drawn again from the same points."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moebench.protocols.vision.numbers import Expected
from moebench.results.figures import stable, svg
from moebench.results.statistics import mean
from moebench.results.tables import rows_of

DRAWN = ("dense", "e3", "deep")
"""Beside the baseline the first method, by name, of each of these variants is drawn."""


def drawn(expected: Expected) -> list[str]:
    """Names of the methods in the figures."""
    first = [next((name for name in expected.compared if expected.methods[name].variant == variant), None) for variant in DRAWN]
    return list(dict.fromkeys([expected.baseline, *(name for name in first if name is not None)]))


def reliability(points: pd.DataFrame, expected: Expected) -> str:
    """Accuracy over confidence on the test set: the images of all seeds together in each bin; on the diagonal a model is calibrated."""
    lines = {}
    for name in drawn(expected):
        bins: dict[int, list[tuple[int, float, float]]] = defaultdict(list)
        for row in _points(points, name, "reliability"):
            bins[row["point"]].append((row["n"], row["x"], row["y"]))
        lines[name] = [
            (sum(n * x for n, x, _ in found) / sum(n for n, _, _ in found), sum(n * y for n, _, y in found) / sum(n for n, _, _ in found))
            for _, found in sorted(bins.items())
        ]
    return _drawn(expected, lines, "confidence", "accuracy", diagonal=True)


def accuracy_rejection(points: pd.DataFrame, expected: Expected) -> str:
    """Accuracy over the rest, where the least confident images are rejected: the mean over seeds at each rejected share."""
    lines = {}
    for name in drawn(expected):
        shares: dict[float, list[float]] = defaultdict(list)
        for row in _points(points, name, "accuracy_rejection"):
            shares[row["x"]].append(row["y"])
        lines[name] = [(share, mean(found)) for share, found in sorted(shares.items())]
    return _drawn(expected, lines, "rejected share, least confident first", "accuracy over the rest", diagonal=False)


def _points(points: pd.DataFrame, name: str, curve: str) -> list[dict[str, Any]]:
    mine = points[(points["method"] == name) & (points["curve"] == curve)]
    return rows_of(mine.sort_values(["seed", "point"]))


def _drawn(expected: Expected, lines: dict[str, list[tuple[float, float]]], x: str, y: str, diagonal: bool) -> str:
    with stable(9.0):
        figure = Figure(figsize=(4.8, 3.6), layout="constrained")
        axes: Axes = figure.add_subplot()
        if diagonal:
            axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        for (name, found), marker in zip(lines.items(), "osD^v", strict=False):
            if found:
                axes.plot(*zip(*found, strict=True), marker=marker, markersize=3, linewidth=1, label=expected.methods[name].label)
        axes.set(xlabel=x, ylabel=y, title=f"{expected.about.name}, profile {expected.profile}, {expected.data or 'nothing measured yet'}")
        if any(lines.values()):
            axes.legend()
        return svg(figure)

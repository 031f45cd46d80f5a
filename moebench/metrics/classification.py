"""Classification accuracy."""

from __future__ import annotations

from collections.abc import Sequence


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of predictions that equal the gold label, in 0..1.

    Raises:
        ValueError: no example, or different lengths.
    """
    if not gold:
        raise ValueError("accuracy needs at least one example")
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)

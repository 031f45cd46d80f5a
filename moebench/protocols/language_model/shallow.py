"""Shallow baselines of multiple choice: what a task gives away. A decoder's accuracy counts only above the best of them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]
Scores = list[list[float]]
"""A list an item: one value a choice, the highest being the guess; log-likelihoods in `unigram` and `bigram`, mere scores elsewhere."""

ADDED = 0.1
"""Added to every count (add-k smoothing)."""
START = ""
"""What stands before the first word of a text."""


class WordCounts:
    """Unigram and bigram models of the words between white space, with add-k smoothing; words never seen share one more place.

    Args:
        texts: the training text, a document at a time.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.words: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.before: Counter[str] = Counter()
        for text in texts:
            words = [START, *text.split()]
            self.words.update(words[1:])
            self.before.update(words[:-1])
            self.pairs.update(itertools.pairwise(words))
        self.total = self.words.total()
        self.places = len(self.words) + 1

    def unigram(self, context: str, choice: str) -> float:
        """Log-probability of the words of a choice, each alone."""
        return sum(math.log((self.words[word] + ADDED) / (self.total + ADDED * self.places)) for word in choice.split())

    def bigram(self, context: str, choice: str) -> float:
        """Log-probability of the words of a choice, each given the one before it, the context's last word before the first."""
        words = [([START, *context.split()])[-1], *choice.split()]
        return sum(
            math.log((self.pairs[pair] + ADDED) / (self.before[pair[0]] + ADDED * self.places)) for pair in itertools.pairwise(words)
        )


def overlap(context: str, choice: str) -> float:
    """Share of a choice's words that stand in the context."""
    known, words = set(context.split()), choice.split()
    return sum(word in known for word in words) / max(len(words), 1)


def baselines(texts: Iterable[str], tasks: Mapping[str, list[Row]], endings: bool = False) -> dict[str, dict[str, Scores]]:
    """Score the choices of all items by every baseline.

    ``majority`` always takes the label that is most frequent among the test items themselves: the most that place alone can give.

    Args:
        texts: training text, for the word counts.
        tasks: name → items with ``context``, ``choices``, ``label``.
        endings: whether words may change their form with their role, so that what is right shares fewer forms with its context; then
            there is one more baseline, ``new_words``, `overlap` turned round.

    Returns:
        Baseline → task → scores.
    """
    counts = WordCounts(texts)
    scorers = {
        "longest": lambda context, choice: float(len(choice)),
        "shortest": lambda context, choice: -float(len(choice)),
        "overlap": overlap,
        "unigram": counts.unigram,
        "bigram": counts.bigram,
        **({"new_words": lambda context, choice: -overlap(context, choice)} if endings else {}),
    }
    found = {
        name: {task: [[score(item["context"], choice) for choice in item["choices"]] for item in items] for task, items in tasks.items()}
        for name, score in scorers.items()
    }
    return {"majority": {task: _majority(items) for task, items in tasks.items()}, **found}


def _majority(items: list[Row]) -> Scores:
    counts = Counter(item["label"] for item in items)
    return [[float(counts[place]) for place in range(len(item["choices"]))] for item in items]


def choice_rows(items: list[Row], scores: Scores) -> list[Row]:
    """Return rows in the form of ``choices/<task>.jsonl``; a baseline's tokens are its words."""
    return [
        {
            "id": item["id"],
            "label": item["label"],
            "loglikelihoods": values,
            "lengths_bytes": [len(choice.encode()) for choice in item["choices"]],
            "lengths_characters": [len(choice) for choice in item["choices"]],
            "lengths_tokens": [len(choice.split()) for choice in item["choices"]],
        }
        for item, values in zip(items, scores, strict=True)
    ]

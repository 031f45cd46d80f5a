"""Shallow baselines: what a task gives away without understanding. A model's score counts only above the best of them.

Each is fitted on the pivot's training rows and predicts test rows of any language; all are deterministic.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moebench.data.catalogue import Kind
from moebench.metrics import qa

Row = dict[str, Any]
Baseline = Callable[[list[Row], list[Row]], list[Row]]

SENTENCE_END = re.compile(r"(?<=[.!?։؟۔।॥።])\s+|(?<=[。！？])|\n+")
FITTED_ROWS = 1000
"""So many training questions settle which part of a sentence is the best guess."""


def words(text: str) -> list[str]:
    """Return lower-cased words without punctuation; a Chinese character is a word."""
    return qa.normalise(text, "mlqa", "zh").split()


def most_frequent(labels: Iterable[str]) -> str:
    """Return the most frequent label, the first in the alphabet if several are."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def _rows(test: list[Row], predictions: Iterable[Any]) -> list[Row]:
    return [{"id": row["id"], "prediction": prediction} for row, prediction in zip(test, predictions, strict=True)]


# ---------------------------------------------------------------------------------------------------------------- pair


def majority_label(train: list[Row], test: list[Row]) -> list[Row]:
    """Always the most frequent training label."""
    label = most_frequent(row["label"] for row in train)
    return _rows(test, [label] * len(test))


def overlap_features(row: Row) -> list[float]:
    """How many words the texts share: of both, of each, and whether they are the same bag or the same text."""
    a, b = words(row["text_a"]), words(row["text_b"])
    bag_a, bag_b = Counter(a), Counter(b)
    shared = (bag_a & bag_b).total()
    return [shared / max((bag_a | bag_b).total(), 1), shared / max(len(a), 1), shared / max(len(b), 1), bag_a == bag_b, a == b]


def length_features(row: Row) -> list[float]:
    """Number of words of each text, their difference and its size."""
    a, b = len(words(row["text_a"])), len(words(row["text_b"]))
    return [a, b, abs(a - b), (a - b) / max(a + b, 1)]


def _regression(features: Callable[[Row], list[float]], train: list[Row], test: list[Row]) -> list[Row]:
    labels = [row["label"] for row in train]
    if len(set(labels)) == 1 or not test:
        return majority_label(train, test)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(np.array([features(row) for row in train], dtype=np.float64), labels)
    predictions = model.predict(np.array([features(row) for row in test], dtype=np.float64))
    return _rows(test, [str(label) for label in predictions])


def word_overlap(train: list[Row], test: list[Row]) -> list[Row]:
    """Logistic regression on `overlap_features`."""
    return _regression(overlap_features, train, test)


def text_length(train: list[Row], test: list[Row]) -> list[Row]:
    """Logistic regression on `length_features`."""
    return _regression(length_features, train, test)


# ------------------------------------------------------------------------------------------------------------- tagging


def majority_tag(train: list[Row], test: list[Row]) -> list[Row]:
    """The most frequent training tag for every word: O for entities."""
    tag = most_frequent(tag for row in train for tag in row["tags"])
    return _rows(test, [[tag] * len(row["words"]) for row in test])


def tag_lookup(train: list[Row], test: list[Row]) -> list[Row]:
    """The most frequent training tag of the word form; the most frequent tag of all for a word not seen."""
    seen = defaultdict(list)
    for row in train:
        for word, tag in zip(row["words"], row["tags"], strict=True):
            seen[word].append(tag)
    known = {word: most_frequent(tags) for word, tags in seen.items()}
    other = most_frequent(tag for row in train for tag in row["tags"])
    return _rows(test, [[known.get(word, other) for word in row["words"]] for row in test])


# ------------------------------------------------------------------------------------------------------------------ qa


def first_word(train: list[Row], test: list[Row]) -> list[Row]:
    """The first word of the context."""
    return _rows(test, [next(iter(_spans(row["context"])), "") for row in test])


def sentence_overlap(train: list[Row], test: list[Row]) -> list[Row]:
    """The sentence that shares most words with the question (the first of several), or a word of it that is not in the question.

    Which word (first, last, longest) or the whole sentence: what has the best F1 + EM on the training questions.
    """
    guesses: dict[str, Callable[[list[str], str], str]] = {
        "first": lambda new, sentence: new[0],
        "last": lambda new, sentence: new[-1],
        "longest": lambda new, sentence: max(new, key=len),
        "sentence": lambda new, sentence: sentence,
    }
    fitted = train[:FITTED_ROWS]
    answers = [[answer["text"] for answer in row["answers"]] for row in fitted]
    found = [_best_sentence(row) for row in fitted]
    value = {name: sum(qa.answer_scores([guess(*place) for place in found], answers, "plain")) for name, guess in guesses.items()}
    best = guesses[max(guesses, key=lambda name: value[name])]
    return _rows(test, [best(*_best_sentence(row)) for row in test])


def _spans(text: str) -> list[str]:
    """Split at white space and drop punctuation at the edges, so that every piece is a part of the text."""
    marks = "".join(character for character in set(text) if unicodedata.category(character).startswith("P"))
    return [word for word in (piece.strip(marks) for piece in text.split()) if word]


def _best_sentence(row: Row) -> tuple[list[str], str]:
    """Return the words of the chosen sentence that are not in the question (all, if none is left), and the sentence."""
    asked = set(words(row["question"]))
    sentences = [sentence.strip() for sentence in SENTENCE_END.split(row["context"]) if sentence.strip()]
    sentence = max(sentences, key=lambda text: len(asked.intersection(words(text))), default="")
    there = _spans(sentence) or [sentence]
    return [word for word in there if not asked.issuperset(words(word))] or there, sentence


BASELINES: dict[Kind, dict[str, Baseline]] = {
    "pair": {"majority": majority_label, "overlap": word_overlap, "length": text_length},
    "tagging": {"majority": majority_tag, "tag_lookup": tag_lookup},
    "qa": {"first_word": first_word, "overlap": sentence_overlap},
}
"""Kind of task → name → function of training and test rows; `train` is at least one row, predictions come in the order of the test rows."""

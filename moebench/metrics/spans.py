"""Precision, recall and F1 over tagged spans, with the default reading of seqeval 1.2.2.

The reading is that of the CoNLL script: an ``I-`` tag after ``O`` or after another type opens a span of its own.
A tag is read as prefix = first character and type = what follows it up to and without the first ``-``. Tags without prefix,
such as parts of speech, go through the same reading, as in XTREME. Consequences worth knowing:

- equal neighbouring tags form one span (``NOUN NOUN``), so the score is not token accuracy;
- ``CCONJ`` and ``SCONJ`` both have the type ``CONJ``: one counts as the other where the span's limits agree;
- ``X`` has the same (empty) type as ``O``: its spans are found only beside another tag, and may reach back to the last span's start;
- sentences are read as one sequence with an ``O`` after each, so the state of the reading crosses sentences.

Seqeval 0.0.19, 1.0.0 and 1.2.2 read so. 0.0.12, which XTREME pins, took the whole bare tag as type: its scores of parts of speech differ
slightly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

Span = tuple[str, int, int]


class SpanScores(NamedTuple):
    """Micro-averaged scores in 0..1; a score whose denominator is 0 is 0."""

    precision: float
    recall: float
    f1: float


class SpanCounts(NamedTuple):
    """Number of spans that are right, predicted and there."""

    correct: int
    predicted: int
    gold: int


def spans(sentences: Iterable[Sequence[str]]) -> set[Span]:
    """Return (type, first, last) of every span; positions count tags over all sentences plus one after each."""
    found = set()
    begin, prefix_before, type_before = 0, "O", ""
    flat = [tag for sentence in sentences for tag in (*sentence, "O")]
    for position, tag in enumerate(flat):
        prefix, type_ = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        changed = type_ != type_before
        if prefix_before in "ES" or (prefix_before in "BI" and prefix in "BSO") or (prefix_before not in "O." and changed):
            found.add((type_before, begin, position - 1))
        if prefix in "BS" or (prefix_before in "ESO" and prefix in "EI") or (prefix not in "O." and changed):
            begin = position
        prefix_before, type_before = prefix, type_
    return found


def _checked_spans(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> tuple[set[Span], set[Span]]:
    """Return the gold and the predicted spans.

    Raises:
        ValueError: the sentences or their lengths do not match, or a tag is empty.
    """
    if [len(sentence) for sentence in gold] != [len(sentence) for sentence in predicted]:
        raise ValueError("gold and predicted tags differ in the number of sentences or in their lengths")
    if any(not tag for sentences in (gold, predicted) for sentence in sentences for tag in sentence):
        raise ValueError("a tag is empty")
    return spans(gold), spans(predicted)


def span_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, SpanCounts]:
    """Count the spans of each type, sorted by type.

    Raises:
        ValueError: the sentences or their lengths do not match, or a tag is empty.
    """
    there, said = _checked_spans(gold, predicted)
    right_of, said_of, there_of = (Counter(span[0] for span in group) for group in (there & said, said, there))
    return {type_: SpanCounts(right_of[type_], said_of[type_], there_of[type_]) for type_ in sorted(there_of | said_of)}


def sentence_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> list[SpanCounts]:
    """Count the spans of each sentence; one that the reading carries over several sentences counts where it ends.

    Raises:
        ValueError: the sentences or their lengths do not match, or a tag is empty.
    """
    there, said = _checked_spans(gold, predicted)
    sentence_at = [number for number, sentence in enumerate(gold) for _ in range(len(sentence) + 1)]
    right_in, said_in, there_in = (Counter(sentence_at[last] for _, _, last in group) for group in (there & said, said, there))
    return [SpanCounts(right_in[number], said_in[number], there_in[number]) for number in range(len(gold))]


def span_scores(counts: Collection[SpanCounts]) -> SpanScores:
    """Precision, recall and F1 of the summed counts."""
    correct = sum(count.correct for count in counts)
    precision = correct / sum(count.predicted for count in counts) if correct else 0.0
    recall = correct / sum(count.gold for count in counts) if correct else 0.0
    return SpanScores(precision, recall, 2 * precision * recall / (precision + recall) if correct else 0.0)


def entity_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> SpanScores:
    """Micro-averaged precision, recall and F1 over the spans of all sentences.

    Args:
        gold: the tags of each sentence.
        predicted: as many tags for each sentence.

    Raises:
        ValueError: the sentences or their lengths do not match, or a tag is empty.
    """
    return span_scores(span_counts(gold, predicted).values())

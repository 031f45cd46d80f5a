"""Span F1 against golden arrays and against seqeval, on entity tags and on bare part-of-speech tags."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

from moebench.data.catalogue import ENTITY_LABELS, UPOS_LABELS
from moebench.metrics.spans import entity_f1, sentence_counts, span_counts, span_scores, spans

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics_tagging.npz", allow_pickle=False)
CASES = sorted({key.split("/")[0] for key in GOLDEN if "/" in key})
ODD = ("O", "B", "I", "B-PER", "I-PER", "E-PER", "S-PER", "B-A-B", "O-PER", ".", ".-X", "X", "_", "I-", "-")


def sentences(case, which):
    ends = np.cumsum(GOLDEN[f"{case}/lengths"])[:-1]
    return [[str(GOLDEN["tag_names"][tag]) for tag in part] for part in np.split(GOLDEN[f"{case}/{which}"], ends)]


@pytest.mark.parametrize("case", CASES)
def test_golden_micro_and_macro(case):
    gold, predicted = sentences(case, "gold"), sentences(case, "pred")
    counts = span_counts(gold, predicted)
    for name, value in entity_f1(gold, predicted)._asdict().items():
        assert value == pytest.approx(float(GOLDEN[f"{case}/default_{name}_micro"]), abs=1e-12)
        macro = np.mean([getattr(span_scores([count]), name) for count in counts.values()]) if counts else np.nan
        assert macro == pytest.approx(float(GOLDEN[f"{case}/default_{name}_macro"]), abs=1e-12, nan_ok=True)
    totals = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0, 0]
    assert totals == [GOLDEN[f"{case}/n_{name}_entities"] for name in ("correct", "pred", "gold")]


def tagged(labels):
    word = st.tuples(st.sampled_from(labels), st.sampled_from(labels))
    return st.lists(st.lists(word, max_size=8), min_size=1, max_size=6)


def assert_equals_seqeval(rows):
    gold = [[word[0] for word in row] for row in rows]
    predicted = [[word[1] for word in row] for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of bare tags and of empty denominators
        there = precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)[:3]
        assert spans(gold) == set(get_entities(gold))
    assert entity_f1(gold, predicted) == pytest.approx(there, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(tagged(ENTITY_LABELS))
def test_equals_seqeval_on_entities(rows):
    assert_equals_seqeval(rows)


@settings(max_examples=150, deadline=None)
@given(tagged(UPOS_LABELS))
def test_equals_seqeval_on_parts_of_speech(rows):
    assert_equals_seqeval(rows)


@settings(max_examples=150, deadline=None)
@given(tagged(ODD))
def test_equals_seqeval_on_odd_tags(rows):
    assert_equals_seqeval(rows)


def test_part_of_speech_f1_is_not_accuracy():
    gold, predicted = [["NOUN", "NOUN", "VERB"]], [["NOUN", "VERB", "VERB"]]
    assert accuracy_score(gold, predicted) == pytest.approx(2 / 3)
    assert entity_f1(gold, predicted).f1 == 0.0


def test_conjunctions_are_one_type_and_x_is_no_type():
    assert entity_f1([["CCONJ", "NOUN"]], [["SCONJ", "NOUN"]]).f1 == 1.0
    assert spans([["NOUN"], ["X"]]) == {("OUN", 0, 0)}


@given(tagged(ENTITY_LABELS))
def test_bounds_and_symmetry(rows):
    gold, predicted = [[a for a, _ in row] for row in rows], [[b for _, b in row] for row in rows]
    there, back = entity_f1(gold, predicted), entity_f1(predicted, gold)
    assert (there.precision, there.recall, there.f1) == pytest.approx((back.recall, back.precision, back.f1))
    assert all(0 <= value <= 1 for value in there)
    assert entity_f1(gold, gold).f1 == float(bool(spans(gold)))


def test_refuses_unequal_lengths_and_empty_tags():
    with pytest.raises(ValueError, match="lengths"):
        entity_f1([["O"]], [["O", "O"]])
    with pytest.raises(ValueError, match="empty"):
        entity_f1([["O"]], [[""]])


@settings(max_examples=150, deadline=None)
@given(tagged(ODD))
def test_counts_of_sentences_add_up_to_the_whole(rows):
    gold, predicted = ([[word[which] for word in row] for row in rows] for which in (0, 1))
    counts = sentence_counts(gold, predicted)
    assert len(counts) == len(rows)
    assert span_scores(counts) == entity_f1(gold, predicted)


def test_counts_of_a_sentence_are_its_own():
    gold, predicted = [["B-PER", "O"], ["O"], ["B-LOC", "I-LOC"]], [["B-PER", "B-PER"], ["O"], ["B-LOC", "O"]]
    assert sentence_counts(gold, predicted) == [(1, 2, 1), (0, 0, 0), (0, 1, 1)]
    with pytest.raises(ValueError, match="lengths"):
        sentence_counts(gold, predicted[:2])

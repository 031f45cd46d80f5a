"""Rows become model inputs and come back as predictions, for every kind of task."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.data.catalogue import task
from moebench.protocols.transfer.config import Finetuning
from moebench.protocols.transfer.features import LONGEST_ANSWER, best_spans, collate, features, predictions


class Letters:
    """A stand-in tokenizer: a piece per character, a bare mark before words written in capitals."""

    bos, eos, pad, unk, mask, size = 0, 1, 2, 3, 4, 300

    def encode(self, text):
        places = [index for index, character in enumerate(text) if character != " "]
        return [10 + ord(text[index]) % 280 for index in places], [(index, index + 1) for index in places]

    def encode_words(self, words):
        ids, first = [], []
        for word in words:
            if word.isupper():
                ids.append(9)
            first.append(len(ids))
            ids += self.encode(word)[0]
        return ids, first


def options(**changes):
    return Finetuning(**({"steps": 1, "batch": 4, "rate": 1e-3, "max_length": 20, "stride": 4} | changes))


def test_a_pair_keeps_the_ends_of_both_texts_within_the_length():
    row = {"id": "1", "text_a": "a" * 30, "text_b": "b" * 5, "label": "neutral"}
    (feature,) = features(task("xnli"), [row], Letters(), options())
    assert len(feature.ids) == 20
    assert feature.segment.count(2) == 5
    assert feature.segment.count(1) == 11
    assert feature.label == 2


@given(st.lists(st.text("abcDE", min_size=1, max_size=30), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_word_is_predicted_once_and_in_order_however_long_the_sentence(words):
    tags = ["NOUN" if index % 2 else "VERB" for index in range(len(words))]
    kind = task("udpos")
    rows = [{"id": "s", "words": words, "tags": tags}]
    inputs = features(kind, rows, Letters(), options())
    assert all(len(feature.ids) <= 20 for feature in inputs)
    batch = collate(kind, inputs, Letters.pad)
    outputs = []
    for feature, row in zip(inputs, range(len(inputs)), strict=True):
        for word_place, tag in zip(feature.first, feature.tags, strict=True):
            assert batch["ids"][row, word_place] not in (Letters.bos, Letters.eos, Letters.pad, 9)
            assert batch["labels"][row, feature.first.index(word_place)] == tag
        outputs.append(np.eye(len(kind.labels))[[*feature.tags, 0, 0]])
    predicted, probabilities = predictions(kind, rows, inputs, outputs)
    assert predicted == [{"id": "s", "prediction": tags}]
    np.testing.assert_array_equal(probabilities, np.eye(len(kind.labels))[[kind.labels.index(tag) for tag in tags]])


@pytest.mark.parametrize("name", ["xnli", "udpos"])
def test_an_ensemble_predicts_by_the_mean_of_its_members(name):
    kind, generator = task(name), np.random.default_rng(0)
    if kind.kind == "pair":
        rows = [{"id": str(number), "text_a": "ab", "text_b": "c", "label": kind.labels[0]} for number in range(9)]
    else:
        rows = [{"id": str(number), "words": ["abcdefgh"] * 7, "tags": [kind.labels[0]] * 7} for number in range(3)]
    inputs = features(kind, rows, Letters(), options())
    shape = (4, len(kind.labels)) if kind.kind == "pair" else (4, 9, len(kind.labels))  # 9: with padding
    outputs = [generator.dirichlet(np.ones(len(kind.labels)), shape[:-1]).astype(np.float32) for _ in inputs]
    predicted, probabilities = predictions(kind, rows, inputs, outputs)
    expected = []
    for feature, output in zip(inputs, outputs, strict=True):
        for word in [()] if kind.kind == "pair" else [(place,) for place in range(len(feature.first))]:
            expected.append([member[word] for member in output])
    np.testing.assert_array_equal(probabilities, np.array(expected).transpose(1, 0, 2))
    best = [kind.labels[np.mean(members, axis=0).argmax()] for members in expected]
    assert [row["prediction"] for row in predicted] == (best if kind.kind == "pair" else [best[:7], best[7:14], best[14:]])


@given(st.integers(0, 59), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_the_gold_span_of_any_window_reads_back_as_the_answer(start, length):
    context = "".join(chr(97 + (7 * index) % 26) + (" " if index % 5 == 4 else "") for index in range(60))
    text = context[start : start + length].strip()
    start = context.index(text, max(0, start - 1)) if text else 0
    text = text or context[0]
    kind = task("xquad")
    rows = [{"id": "q", "context": context, "question": "xy", "answers": [{"text": text, "start": start}]}]
    inputs = features(kind, rows, Letters(), options(stride=10, max_length=26))
    found = [feature for feature in inputs if feature.span != (0, 0)]
    assert found
    for feature in found:
        outputs = [np.array([1.0, *feature.span]) if other is feature else np.array([-np.inf, 0, 0]) for other in inputs]
        assert predictions(kind, rows, inputs, outputs)[0][0]["prediction"] == text


def test_best_spans_equal_a_search_over_all_spans():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 50, 2, generator=generator)
    allowed = torch.rand(5, 50, generator=generator) < 0.6
    allowed[:, 0] = True
    allowed[4] = False
    for row, (score, start, end) in enumerate(best_spans(logits, allowed).tolist()):
        spans = [
            (float(logits[row, a, 0] + logits[row, b, 1]), a, b)
            for a in range(1, 50)
            for b in range(a, min(a + LONGEST_ANSWER, 50))
            if allowed[row, a] and allowed[row, b]
        ]
        assert (score, start, end) == (max(spans) if spans else (float("-inf"), 0, 0))

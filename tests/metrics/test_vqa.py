"""VQA accuracy against stored outputs of the public script, a loop over people and cases worked by hand; NLVR2's consistency."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.metrics import vqa

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics_vqa.npz", allow_pickle=False)


def test_answers_are_normalised_as_the_script_does():
    """All its contractions, and marks, numbers and articles in many combinations."""
    for text, normalised, punctuated in zip(GOLDEN["texts"], GOLDEN["normalised"], GOLDEN["punctuated"], strict=True):
        assert vqa.normalise(str(text)) == normalised
        assert vqa.without_punctuation(str(text)) == punctuated


def test_accuracies_are_those_of_the_script():
    predictions, answers = [str(text) for text in GOLDEN["predictions"]], GOLDEN["answers"].tolist()
    np.testing.assert_allclose(vqa.vqa_accuracies(predictions, answers), GOLDEN["accuracy"], atol=1e-12)
    assert vqa.vqa_accuracy(predictions, answers) == pytest.approx(GOLDEN["accuracy"].mean())


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The cat.", "cat"),
        ("Two dogs!", "2 dogs"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("12:30", "12:30"),
        ("dont", "don't"),
        ("t-shirt", "t shirt"),
        ("red, blue", "red blue"),
        ("none", "0"),
        ("a", ""),
    ],
)
def test_normalised_by_hand(text, normalised):
    assert vqa.normalise(text) == normalised


@pytest.mark.parametrize(("people", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_by_hand(people, score):
    assert vqa.vqa_accuracies(["Yes."], [["yes"] * people + ["no"] * (10 - people)]) == [pytest.approx(score)]


@given(st.lists(st.sampled_from(["yes", "no", "red", "2"]), min_size=10, max_size=10), st.sampled_from(["yes", "two", "red", "blue"]))
def test_is_the_mean_over_the_sets_of_nine(answers, said):
    wanted = {"two": "2"}.get(said, said)
    without = [answers[:left] + answers[left + 1 :] for left in range(10)]
    mean = sum(min(nine.count(wanted) / 3, 1) for nine in without) / 10
    assert vqa.vqa_accuracies([said], [answers]) == [pytest.approx(mean)]


def test_peoples_answers_keep_their_words():
    assert vqa.vqa_accuracies(["two"], [["two"] * 10]) == [0.0]
    assert vqa.vqa_accuracies(["t-shirt"], [["t-shirt"] * 9 + ["shirt"]]) == [1.0]
    assert vqa.vqa_accuracies(["t-shirt"], [["t-shirt"] * 10]) == [0.0]  # not touched where all agree


def test_consistency():
    gold = ["true", "false", "true", "false"]
    assert vqa.consistency(gold, ["true", "false", "true", "true"], ["a", "a", "b", "b"]) == 0.5
    assert vqa.consistency(gold, ["true", "false", "true", "true"], ["a", "b", "c", "d"]) == 0.75
    assert vqa.consistency(gold, ["true", "false", "true", "true"], ["a", "b", "a", "b"]) == 0.5
    assert vqa.consistency(gold, gold, ["a"] * 4) == 1.0


def test_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match="question 1 has 3 answers; should be 10"):
        vqa.vqa_accuracies(["a", "b"], [["a"] * 10, ["b"] * 3])
    with pytest.raises(ValueError, match="zip"):
        vqa.vqa_accuracies(["a", "b"], [["a"] * 10])
    with pytest.raises(ValueError, match="at least one question"):
        vqa.vqa_accuracy([], [])
    with pytest.raises(ValueError, match="at least one statement"):
        vqa.consistency([], [], [])
    with pytest.raises(ValueError, match="zip"):
        vqa.consistency(["true"], ["true"], [])

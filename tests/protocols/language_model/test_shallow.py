"""Shallow baselines of multiple choice: against counts made by hand; they solve none of the constructed tasks."""

import math

import numpy as np
import pytest

from moebench.data.choices import TASKS, ChoiceSource
from moebench.data.text_settings import Constructed
from moebench.protocols.language_model.shallow import ADDED, WordCounts, baselines, choice_rows, overlap

TEXTS = ["a b a .", "b a c ."]
ITEMS = [
    {"id": "x", "context": "a b", "choices": ["a c .", "dd c ."], "label": 1},
    {"id": "y", "context": "", "choices": ["b .", "c c"], "label": 1},
    {"id": "z", "context": "c", "choices": ["a", "bb"], "label": 0},
]


def test_unigrams_and_bigrams_by_hand():
    counts = WordCounts(TEXTS)
    places, total = 4 + 1, 8  # a, b, c, the full stop; whatever else

    def unigram(count):
        return math.log((count + ADDED) / (total + ADDED * places))

    assert counts.unigram("ignored", "a c dd") == pytest.approx(unigram(3) + unigram(1) + unigram(0))

    def bigram(count, before):
        return math.log((count + ADDED) / (before + ADDED * places))

    assert counts.bigram("a b", "a c") == pytest.approx(bigram(2, 2) + bigram(1, 3))
    assert counts.bigram("", "b dd c") == pytest.approx(bigram(1, 2) + bigram(0, 2) + bigram(0, 0))


def test_bigrams_of_a_word_sum_to_one():
    counts = WordCounts(TEXTS)
    for before in ("a", "b", "c", "never seen"):
        assert sum(math.exp(counts.bigram(before, word)) for word in ("a", "b", "c", ".", "else")) == pytest.approx(1)


def test_overlap_is_the_share_of_known_words():
    assert overlap("a b c", "a a d e") == 0.5
    assert overlap("", "a") == overlap("a", "") == 0


def test_lengths_and_the_majority():
    found = baselines(TEXTS, {"task": ITEMS})
    guesses = {name: [int(np.argmax(values)) for values in scores["task"]] for name, scores in found.items()}
    assert guesses["longest"] == [1, 0, 1]
    assert guesses["shortest"] == [0, 0, 0]
    assert guesses["majority"] == [1, 1, 1]


def test_rows_have_the_form_of_a_decoders():
    rows = choice_rows(ITEMS, baselines(TEXTS, {"task": ITEMS})["longest"]["task"])
    lengths = {"lengths_bytes": [5, 6], "lengths_characters": [5, 6], "lengths_tokens": [3, 3]}
    assert rows[0] == {"id": "x", "label": 1, "loglikelihoods": [5.0, 6.0], **lengths}


def accuracies(language, *names):
    options = Constructed(languages=3, documents=1500, test=600)
    source = ChoiceSource(options, language)
    tasks = {task: source.items(task) for task in TASKS}
    found = baselines(source.documents("train"), tasks, endings=True)
    return {
        task: [
            np.mean([np.argmax(values) == item["label"] for values, item in zip(found[name][task], items, strict=True)]) for name in names
        ]
        for task, items in tasks.items()
    }


def test_where_case_has_endings_new_words_tell_roles_and_where_question_words_stay_in_place_neighbours_tell_them():
    sond, rasu = accuracies(1, "new_words", "overlap", "bigram"), accuracies(2, "new_words", "bigram")
    assert sond["role"][0] == pytest.approx(0.75, abs=0.05)
    assert sond["role"][1] == pytest.approx(0.25, abs=0.05)
    assert sond["agreement"][2] < 0.6
    assert rasu["role"][0] == 0.5
    assert rasu["agreement"][1] > 0.8
    for found in (sond, rasu):  # neighbours have the same choices and opposite answers, which no baseline tells apart
        assert found["entailment"][0] == 0.5
        assert found["entailment"][-1] == pytest.approx(0.5, abs=0.05)


def test_no_shallow_baseline_solves_a_constructed_task():
    """Within five standard errors of chance; below it is no solution either, but would be one turned round."""
    source = ChoiceSource(Constructed(languages=2, documents=3000, test=600))
    tasks = {task: source.items(task) for task in TASKS}
    for name, scores in baselines(source.documents("train"), tasks).items():
        for task, items in tasks.items():
            right = [np.argmax(values) == item["label"] for values, item in zip(scores[task], items, strict=True)]
            chance = 1 / len(items[0]["choices"])
            assert abs(np.mean(right) - chance) < 5 * math.sqrt(chance * (1 - chance) / len(items)), (name, task)

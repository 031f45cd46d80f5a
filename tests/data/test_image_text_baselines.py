"""Shallow baselines: by hand, by loops, and on the built-in scenes, where they must stay near chance."""

import numpy as np
import pytest

from moebench.data.image_text_baselines import both, by_text, by_text_and_tokens, by_tokens, most_frequent, nearest_images
from moebench.data.scenes import captioned, questions, scenes, statements
from moebench.data.visual_tokens import encode, patches, train
from moebench.metrics.captions import caption_scores
from moebench.metrics.classification import accuracy

CODES = 64


@pytest.fixture(scope="module")
def codebook():
    return train(patches(scenes("train", 500).images, 4).reshape(-1, 16), CODES)


def test_most_frequent():
    assert most_frequent(["b", "a", "b"]) == "b"
    assert most_frequent(["b", "a"]) == "a"


def test_by_text_falls_back_from_the_text_to_its_form_to_all():
    keys = [
        ("how many cats", "count"),
        ("how many cats", "count"),
        ("how many dogs", "count"),
        ("is it red", "yes/no"),
        ("is it red", "yes/no"),
    ]
    answers = ["2", "3", "3", "yes", "yes"]
    test = [("how many cats", "count"), ("how many cows", "count"), ("is it blue", "yes/no"), ("why", "other"), ("count", "other")]
    assert by_text(keys, answers, test) == ["2", "3", "yes", "3", "3"]
    assert by_text([()] * 5, answers, [()] * 2) == ["3", "3"]
    assert by_text([key[1:] for key in keys], answers, [("count",)]) == ["3"]


def test_by_tokens_is_naive_bayes():
    """Against the formula, token by token."""
    rng = np.random.default_rng(0)
    train_NT, test_LT, answers = rng.integers(0, 5, (30, 4)), rng.integers(0, 5, (20, 4)), rng.choice(["a", "b", "c"], 30).tolist()
    expected = []
    for row in test_LT:
        scores = {}
        for answer in "abc":
            seen = train_NT[np.array(answers) == answer].ravel().tolist()
            scores[answer] = np.log(answers.count(answer) / 30) + sum(np.log((seen.count(token) + 1) / (len(seen) + 5)) for token in row)
        expected.append(max(scores, key=scores.__getitem__))
    assert by_tokens(train_NT, answers, test_LT, 5) == expected
    assert len(set(expected)) == 3


def test_tokens_of_both_images_are_apart():
    assert both(np.array([[0, 1]]), np.array([[0, 2]]), 3).tolist() == [[0, 1, 3, 5]]
    left, right = np.array([[0], [1]] * 10), np.array([[1], [0]] * 10)
    assert by_tokens(both(left, right, 2), ["a", "b"] * 10, both(right, left, 2), 4) == ["b", "a"] * 10


def test_text_and_tokens_together():
    """The token is the answer to one text, and its opposite to the other: neither side tells alone."""
    texts, tokens = ["same", "other"] * 10, np.array([[0], [0], [1], [1]] * 5)
    answers = [str(token ^ (text == "other")) for text, (token,) in zip(texts, tokens, strict=True)]
    new, shown = ["other", "same", "neither"], np.array([[1], [1], [1]])
    assert by_text_and_tokens(texts, tokens, answers, new, shown, 2) == ["0", "1", "0"]
    assert by_tokens(tokens, answers, shown, 2) == by_text([(text,) for text in texts], answers, [(text,) for text in new]) == ["0"] * 3


def test_nearest_images():
    train_images = np.array([[[[0]]], [[[10]]], [[[10]]], [[[255]]]], np.uint8)
    assert nearest_images(train_images, np.array([[[[9]]], [[[200]]], [[[5]]]], np.uint8)).tolist() == [1, 3, 0]


def test_questions_are_near_chance(codebook):
    """Of six types three have two answers: the best that knows the type and no more is right in about a third."""
    seen, test = questions("train", 800), questions("test", 400)
    answers, gold = ([row["answers"][0] for row in data.rows] for data in (seen, test))
    text = by_text(*([(row["question"], row["type"]) for row in seen.rows], answers, [(row["question"], row["type"]) for row in test.rows]))
    tokens = [encode(data.images, codebook, 4)[[row["image"] for row in data.rows]] for data in (seen, test)]
    chance = 3 / 6 / 2 + (1 / 4 + 1 / 10 + 1 / 9) / 6
    assert accuracy(gold, text) < chance + 0.04
    assert accuracy(gold, by_tokens(tokens[0], answers, tokens[1], CODES)) <= 0.25 + 0.04
    asked = [[row["question"] for row in data.rows] for data in (seen, test)]
    assert accuracy(gold, by_text_and_tokens(asked[0], tokens[0], answers, asked[1], tokens[1], CODES)) < 0.55


def test_statements_are_at_chance(codebook):
    seen, test = statements("train", 480), statements("test", 240)
    labels, gold = ([row["label"] for row in data.rows] for data in (seen, test))
    assert accuracy(gold, by_text([()] * len(seen), labels, [()] * len(test))) == 0.5
    texts = [[(row["sentence"], row["type"]) for row in data.rows] for data in (seen, test)]
    assert accuracy(gold, by_text(texts[0], labels, texts[1])) == 0.5
    pairs = []
    for data in (seen, test):
        tokens = encode(data.images, codebook, 4)
        pairs.append(both(*(tokens[[row[side] for row in data.rows]] for side in ("left", "right")), CODES))
    assert accuracy(gold, by_tokens(pairs[0], labels, pairs[1], 2 * CODES)) == 0.5


def test_captions_leave_room():
    seen, test = captioned("train", 600), captioned("test", 60)
    references = [row["captions"] for row in test.rows]
    nearest = nearest_images(seen.images, test.images)
    usual = most_frequent(row["captions"][0] for row in seen.rows)
    scores = [
        caption_scores(said, references)
        for said in ([usual] * 60, [seen.rows[at]["captions"][0] for at in nearest], [row["captions"][0] for row in test.rows])
    ]
    for name, gap in (("bleu4", 0.3), ("cider", 1)):
        majority, near, perfect = (each[name] for each in scores)
        assert majority + gap / 3 < near < perfect - gap

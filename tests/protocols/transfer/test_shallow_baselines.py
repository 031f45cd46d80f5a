"""Shallow baselines on rows whose right answer is known."""

import random

import pytest

from moebench.data.catalogue import task
from moebench.protocols.transfer.answers import score
from moebench.protocols.transfer.shallow import BASELINES, most_frequent

PAIR, TAGGING, QA = BASELINES["pair"], BASELINES["tagging"], BASELINES["qa"]


def pair(name, a, b, label):
    return {"id": str(name), "text_a": a, "text_b": b, "label": label, "group": str(name)}


def said(rows):
    return [row["prediction"] for row in rows]


def pairs(signal, count=120, seed=0):
    """Pairs whose label is told by the shared words or by the lengths alone."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % 2
        a = [f"w{rng.randrange(10**6)}" for _ in range(6)]
        if signal == "overlap":
            b = rng.sample(a, 6) if label else [f"v{rng.randrange(10**6)}" for _ in range(6)]
        else:
            b = [f"v{rng.randrange(10**6)}" for _ in range(9 if label else 3)]
        rows.append(pair(number, " ".join(a), " ".join(b) + ".", str(label)))
    return rows


@pytest.mark.parametrize("signal", ["overlap", "length"])
def test_regressions_find_their_signal_and_only_theirs(signal):
    train, test = pairs(signal), pairs(signal, seed=1)
    other = {"overlap": "length", "length": "overlap"}[signal]
    accuracy = {name: score(task("pawsx"), "en", test, PAIR[name](train, test))["accuracy"][0] for name in PAIR}
    assert accuracy[signal] == 100
    assert accuracy["majority"] == accuracy[other] == 50


def test_majority_breaks_ties_by_name():
    assert most_frequent(["b", "a", "b", "a", "c"]) == "a"
    train = [pair(n, "a", "b", label) for n, label in enumerate("1101")]
    assert said(PAIR["majority"](train, train[:2])) == ["1", "1"]
    assert said(PAIR["overlap"](train[:2], train)) == ["1"] * 4  # one label alone is no regression


def test_tagging():
    train = [
        {"id": "0", "words": ["the", "run", "the"], "tags": ["DET", "NOUN", "DET"]},
        {"id": "1", "words": ["run", "run"], "tags": ["VERB", "VERB"]},
        {"id": "2", "words": ["cats", "dogs"], "tags": ["NOUN", "NOUN"]},
    ]
    test = [{"id": "9", "words": ["the", "new", "run"], "tags": ["DET", "NOUN", "VERB"]}, {"id": "8", "words": [], "tags": []}]
    assert said(TAGGING["majority"](train, test)) == [["NOUN"] * 3, []]
    assert said(TAGGING["tag_lookup"](train, test)) == [["DET", "NOUN", "VERB"], []]


def question(name, context, text, answer):
    return {"id": name, "context": context, "question": text, "answers": [{"text": answer, "start": context.index(answer)}]}


def test_question_overlap_reads_the_right_sentence_and_learns_which_word():
    train = [
        question("0", "Rain fell all day. Anna often lives in Paris.", "Where does Anna lives in?", "Paris"),
        question("1", "Bo plays the flute. Rain fell.", "What plays Bo the?", "flute"),
    ]
    test = [
        question("2", "« Zoe likes red kites ». Snow fell on all the hills around the town.", "What likes Zoe?", "kites"),
        question("3", "वह सोता है। राम की राजधानी दिल्ली।", "राम की राजधानी", "दिल्ली"),
        question("4", "今天下雨。他住在 北京。", "他住在哪里", "北京"),
    ]
    assert said(QA["overlap"](train, test)) == ["kites", "दिल्ली", "北京"]
    assert said(QA["first_word"](train, test)) == ["Zoe", "वह", "今天下雨。他住在"]
    first = [question("0", "Paris is where Anna lives. Rain fell.", "Where is Anna?", "Paris")]
    assert said(QA["overlap"](first, test))[0] == "red"


@pytest.mark.parametrize("name", QA)
def test_an_answer_is_part_of_the_context(name):
    rng = random.Random(0)
    rows = []
    for number in range(50):
        context = "".join(rng.choice("abc .!?«»'\n。") for _ in range(rng.randrange(40)))
        rows.append({"id": str(number), "context": context, "question": "a b", "answers": [{"text": "x", "start": 0}]})
    answers = QA[name](rows, rows)
    assert [row["id"] for row in answers] == [row["id"] for row in rows]
    assert all(answer["prediction"] in row["context"] for answer, row in zip(answers, rows, strict=True))

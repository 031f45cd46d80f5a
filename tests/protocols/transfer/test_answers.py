"""Scoring of prediction rows, a task's value and the average of a suite, the published averages of X-MoE's Table 1 among them."""

import random

import numpy as np
import pytest
from seqeval.metrics import f1_score

from moebench.data.catalogue import TASKS, task
from moebench.errors import MoebenchError
from moebench.metrics import bootstrap
from moebench.protocols.transfer.answers import averaged_languages, score, score_with_errors, suite_average, task_value

NLI = task("xnli")
NLI_GOLD = [{"id": name, "label": label} for name, label in zip("abcd", ("neutral", "entailment", "neutral", "contradiction"), strict=True)]
NLI_SAID = [{"id": name, "prediction": "neutral"} for name in "abcd"]
NER_GOLD = [{"id": "a", "words": ["x", "y"], "tags": ["B-PER", "I-PER"]}, {"id": "b", "words": ["z"], "tags": ["O"]}]

# POS, NER, XQuAD, MLQA, TyDiQA, XNLI, PAWS-X, average as printed
TABLE_1 = {
    "dense": (70.0, 61.1, (67.3, 51.1), (58.7, 41.1), (42.1, 28.3), 70.1, 84.1, 61.4),
    "SMoE softmax": (70.1, 60.9, (71.3, 55.2), (62.8, 44.8), (50.9, 34.5), 71.5, 84.6, 63.8),
    "X-MoE softmax": (70.8, 63.2, (72.4, 56.2), (64.5, 46.3), (53.7, 38.1), 72.0, 85.2, 65.3),
    "SMoE sigmoid": (70.6, 61.2, (71.5, 55.7), (63.2, 45.3), (50.1, 35.1), 71.2, 85.1, 64.1),
    "X-MoE sigmoid": (71.1, 62.7, (72.3, 56.3), (64.3, 46.0), (51.5, 36.6), 72.2, 85.2, 65.0),
}


@pytest.mark.parametrize("row", TABLE_1.values(), ids=TABLE_1)
def test_published_averages(row):
    names = [name for name, entry in TASKS.items() if not entry.constructed]
    values = {}
    for name, cell in zip(names, row[:-1], strict=True):
        metrics = dict(zip(task(name).metrics, cell if isinstance(cell, tuple) else (cell,), strict=True))
        values[name] = task_value(task(name), {"en": metrics}, ["en"])
    assert round(suite_average(values, names), 1) == row[-1]


def test_order_of_predictions_does_not_matter():
    shuffled = random.Random(0).sample(NLI_SAID, 4)
    assert score(NLI, "de", NLI_GOLD, shuffled) == score(NLI, "de", NLI_GOLD, NLI_SAID) == {"accuracy": (50.0, 4)}


def test_tagging_equals_seqeval():
    gold, said = [row["tags"] for row in NER_GOLD], [["B-PER", "I-PER"], ["B-LOC"]]
    rows = [{"id": row["id"], "prediction": tags} for row, tags in zip(NER_GOLD, said, strict=True)]
    assert score(task("panx"), "en", NER_GOLD, rows)["f1"] == (pytest.approx(100 * f1_score(gold, said)), 2)


@pytest.mark.parametrize(
    ("name", "language", "answer", "prediction", "em"),
    [
        ("xquad", "de", "der Vertrag", "Vertrag", 0),  # English rule: German articles stay
        ("mlqa", "de", "der Vertrag", "Vertrag", 100),
        ("mlqa", "de-en", "der Vertrag", "Vertrag", 100),  # the context's language decides
        ("mlqa", "en-de", "der Vertrag", "Vertrag", 0),
        ("constructed_qa_parallel", "aru", "a tor", "tor", 0),  # no articles are known
        ("constructed_qa_cross", "aru-en", "«tor».", "TOR", 100),
        ("xquad", "de", "Vertrag", None, 0),
    ],
)
def test_question_answering_rule(name, language, answer, prediction, em):
    gold = [{"id": "q", "answers": [{"text": answer, "start": 0}]}]
    assert score(task(name), language, gold, [{"id": "q", "prediction": prediction}])["em"] == (em, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:2], r"fr\.jsonl: no prediction for id 'c', one of 2 missing of 4"),
        (lambda rows: [*rows, {"id": "z", "prediction": "neutral"}], r"fr\.jsonl: id 'z' is not among the 4"),
        (lambda rows: [*rows, rows[1]], r"fr\.jsonl: id 'b' is there 2 times"),
        (lambda rows: [*rows[:3], {"id": "d", "prediction": "maybe"}], r"fr\.jsonl: id 'd': 'maybe' is no label of task 'xnli'"),
        (lambda rows: [*rows[:3], {"id": "d"}], r"fr\.jsonl: row 4 should have the keys id and prediction"),
    ],
)
def test_predictions_that_do_not_fit(change, message):
    with pytest.raises(MoebenchError, match=message):
        score(NLI, "fr", NLI_GOLD, change(NLI_SAID), where="fr.jsonl")


@pytest.mark.parametrize(
    ("tags", "message"), [(["O"], "'a': 1 tags for 2 words"), ("O", "'a': 'O' tags"), (["O", "NOUN"], "'a': 'NOUN' is no label")]
)
def test_tags_that_do_not_fit(tags, message):
    with pytest.raises(MoebenchError, match=message):
        score(task("panx"), "en", NER_GOLD, [{"id": "a", "prediction": tags}, {"id": "b", "prediction": ["O"]}])


def test_no_test_rows():
    with pytest.raises(MoebenchError, match="no test rows"):
        score(NLI, "fr", [], [])


def test_stripped_answers_are_not_scored():
    gold = [{"id": "q", "answers": [{"text": "", "start": 0}]}]
    with pytest.raises(MoebenchError, match="'q' of task 'tydiqa'"):
        score(task("tydiqa"), "sw", gold, [{"id": "q", "prediction": ""}])


def test_only_same_language_pairs_enter_mlqa():
    values = {"de": {"f1": 60.0, "em": 40.0}, "en": {"f1": 80.0, "em": 60.0}, "de-en": {"f1": 0.0, "em": 0.0}}
    assert task_value(task("mlqa"), values, values) == 60.0
    assert task_value(task("constructed_qa_cross"), values, values) == 40.0
    assert averaged_languages(task("mlqa"), values) == ["de", "en"]


def test_incomplete_sets_are_refused():
    with pytest.raises(MoebenchError, match=r"'xnli'.* language fr, sw;"):
        task_value(NLI, {"en": {"accuracy": 1.0}, "fr": {"accuracy": float("nan")}}, ["en", "fr", "sw"])
    with pytest.raises(MoebenchError, match="language en;"):
        task_value(task("xquad"), {"en": {"f1": 1.0}}, ["en"])
    with pytest.raises(MoebenchError, match="none is expected"):
        task_value(task("mlqa"), {"de-en": {"f1": 1.0, "em": 1.0}}, ["de-en"])
    with pytest.raises(MoebenchError, match="task panx;"):
        suite_average({"xnli": 1.0}, ["xnli", "panx"])


def example(kind, number, draw):
    """A test row and a prediction; pairs come in threes, questions in fives."""
    if kind == "pair":
        labels = ("neutral", "entailment", "contradiction")
        return {"label": draw.choice(labels), "group": f"premise {number // 3}"}, draw.choice(labels)
    if kind == "tagging":
        tags = [draw.choice(("B-PER", "I-PER", "O")) for _ in range(draw.randint(1, 9))]
        return {"tags": tags}, [tag if draw.random() < 0.7 else "O" for tag in tags]
    answers = [{"text": draw.choice(("red green", "blue")), "start": 0}]
    return {"context": f"context {number // 5}", "answers": answers}, draw.choice(("red", "blue", "green red", None))


@pytest.mark.parametrize(("name", "size"), [("xnli", 3), ("panx", 1), ("mlqa", 5)])
def test_errors_are_those_of_the_groups_and_the_scores_stay(monkeypatch, name, size):
    draw = random.Random(3)
    pairs = [example(task(name).kind, number, draw) for number in range(90)]
    gold = [row | {"id": str(number)} for number, (row, _) in enumerate(pairs)]
    said = [{"id": str(number), "prediction": one} for number, (_, one) in enumerate(pairs)]
    seen = []
    original = bootstrap.standard_error
    monkeypatch.setattr(bootstrap, "standard_error", lambda sums_G2: seen.append(sums_G2) or original(sums_G2))
    found, alone = score_with_errors(task(name), "de", gold, said), score(task(name), "de", gold, said)
    assert {metric: found[metric] for metric in alone} == alone
    assert set(found) == {*alone, *(f"{metric}_bootstrap_se" for metric in alone)}
    for metric, sums_G2 in zip(task(name).metrics, seen, strict=True):
        assert 100 * bootstrap.ratio(sums_G2.sum(axis=0)) == pytest.approx(found[metric][0], abs=1e-9)  # the statistic is the score
        error, n = found[f"{metric}_bootstrap_se"]
        assert n == 90 / size
        draws, values = np.random.default_rng(1), []
        for _ in range(500):  # by scoring resampled groups of rows, ids and all, over and over
            drawn = [size * group + one for group in draws.integers(n, size=n) for one in range(size)]
            again = [gold[row] | {"id": str(place)} for place, row in enumerate(drawn)]
            values.append(score(task(name), "de", again, [said[row] | {"id": str(place)} for place, row in enumerate(drawn)])[metric][0])
        assert error == pytest.approx(np.std(values, ddof=1), rel=0.12)


def test_one_group_has_no_error():
    gold = [{"id": name, "context": "the same", "answers": [{"text": "x", "start": 0}]} for name in "ab"]
    said = [{"id": "a", "prediction": "x"}, {"id": "b", "prediction": "y"}]
    assert score_with_errors(task("xquad"), "en", gold, said) == {"f1": (50.0, 2), "em": (50.0, 2)}

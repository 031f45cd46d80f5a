"""Predictions become scores: hand-made ones, perfect ones, shallow ones, damaged ones."""

import math

import pytest
from sklearn.metrics import accuracy_score, log_loss

from moebench.errors import MoebenchError
from moebench.experiment import Run
from moebench.files import read_jsonl, write_jsonl
from moebench.metrics.vqa import vqa_accuracy
from moebench.protocols.vision_language.baselines import baselines
from moebench.protocols.vision_language.config import METRICS, TASKS
from moebench.protocols.vision_language.scoring import score, scores

QUESTIONS = [
    {"id": "0", "answers": ["two"], "type": "count"},
    {"id": "1", "answers": ["one"], "type": "count"},
    {"id": "2", "answers": ["yes"], "type": "exists"},
]
STATEMENTS = [
    {"id": "0", "label": "true", "group": "a", "type": "more"},
    {"id": "1", "label": "false", "group": "a", "type": "more"},
    {"id": "2", "label": "true", "group": "b", "type": "same"},
    {"id": "3", "label": "false", "group": "b", "type": "same"},
]


@pytest.fixture
def judged(tmp_path):
    """Function that scores predictions: (language, metric) → value, n."""

    def judged(task, rows, predictions):
        write_jsonl(tmp_path / f"{task}.jsonl", predictions)
        return {(row["language"], row["metric"]): (row["value"], row["n"]) for row in scores(task, tmp_path / f"{task}.jsonl", rows)}

    return judged


def test_questions_with_one_answer(judged):
    said = [
        {"id": "0", "answer": "two", "probability": 0.5, "nll": 0.5},
        {"id": "1", "answer": "two", "probability": 0.5, "nll": 1.5},
        {"id": "2", "answer": "yes", "probability": 0.5, "nll": None},
    ]
    found = judged("vqa", QUESTIONS, said)
    right = 100 * accuracy_score([row["answers"][0] for row in QUESTIONS], [row["answer"] for row in said])
    assert found == {
        ("", "accuracy"): (pytest.approx(right), 3),
        ("", "nll"): (1.0, 2),
        ("count", "accuracy"): (50.0, 2),
        ("exists", "accuracy"): (100.0, 1),
    }


def test_questions_with_ten_answers_are_scored_as_vqa_does(judged):
    rows = [
        {"id": "0", "answers": ["net"] * 2 + ["netting"] * 8, "type": ""},
        {"id": "1", "answers": ["2"] * 10, "type": ""},
    ]
    said = ["net", "two"]
    found = judged("vqa", rows, [{"id": str(at), "answer": answer} for at, answer in enumerate(said)])
    assert found == {("", "accuracy"): (pytest.approx(100 * vqa_accuracy(said, [row["answers"] for row in rows])), 2)}
    assert found["", "accuracy"][0] == pytest.approx(80)  # 0.6 and 1: "two" is "2"


def test_statements(judged):
    probabilities = [0.9, 0.2, 0.6, 0.7]
    said = [{"id": str(at), "label": "true" if p > 0.5 else "false", "probability_true": p} for at, p in enumerate(probabilities)]
    found = judged("nlvr", STATEMENTS, said)
    truth = [row["label"] == "true" for row in STATEMENTS]
    assert found["", "accuracy"] == (75.0, 4)
    assert found["", "consistency"] == (50.0, 2)  # both rows of sentence a
    assert found["", "nll"][0] == pytest.approx(log_loss(truth, probabilities))
    assert found["more", "accuracy"] == (100.0, 2)
    assert found["same", "accuracy"] == (50.0, 2)


def test_a_certain_and_wrong_statement_has_a_finite_loss(judged):
    found = judged("nlvr", STATEMENTS[:1], [{"id": "0", "label": "false", "probability_true": 0.0}])
    assert math.isfinite(found["", "nll"][0])


def test_captions(judged):
    rows = [
        {"id": str(at), "captions": [f"a {digit} above a six", f"a six below a {digit}"]} for at, digit in enumerate(("one", "two", "nine"))
    ]
    perfect = judged("caption", rows, [{"id": row["id"], "caption": row["captions"][0]} for row in rows])
    assert perfect.keys() == {("", "bleu4"), ("", "cider")}
    assert perfect["", "bleu4"] == (pytest.approx(100), 3)
    wrong = judged("caption", rows, [{"id": row["id"], "caption": "nothing at all"} for row in rows])
    assert wrong["", "bleu4"] == (0.0, 3)
    assert wrong["", "cider"][0] < perfect["", "cider"][0]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], r"vqa\.jsonl: 0 predictions of 1 test rows"),
        ([{"id": "1", "answer": "x"}], r"vqa\.jsonl:1: key 'id' has the value '1'; should be '0', as in the test set"),
        ([{"id": "0", "answer": 2}], r"vqa\.jsonl:1: key 'answer' has the value 2; should be a text"),
        ([{"id": "0"}], "key 'answer' has the value None; should be a text"),
        ([{"id": "0", "answer": "x", "probability": 1.5}], "key 'probability' has the value 1.5; should be a number from 0 to 1"),
        ([{"id": "0", "answer": "x", "nll": float("nan")}], "key 'nll' has the value nan; should be a number from 0 to inf"),
    ],
)
def test_damaged_predictions_are_named(judged, predictions, message):
    with pytest.raises(MoebenchError, match=message):
        judged("vqa", QUESTIONS[:1], predictions)


def right_predictions(task, rows):
    """What a model says that knows everything."""
    said = {
        "vqa": lambda row: {"answer": row["answers"][0], "probability": 1.0, "nll": 0.0},
        "nlvr": lambda row: {"label": row["label"], "probability_true": float(row["label"] == "true")},
        "caption": lambda row: {"caption": row["captions"][0]},
    }[task]
    return [{"id": row["id"]} | said(row) for row in rows]


@pytest.fixture(scope="module")
def shallow(prepared_paper):
    """The paper with predictions of the shallow baselines."""
    baselines(prepared_paper, prepared_paper.baselines_folder)
    return prepared_paper


def test_perfect_predictions_score_a_hundred_and_shallow_ones_are_scored_alike(shallow):
    finished = [run for run in shallow.runs if run.method == "moe"]
    for run in finished:
        if run.stage == "finetune":
            rows = read_jsonl(shallow.prepared / run.training_set / "test/rows.jsonl")
            path = shallow.folder(run) / "predictions" / f"{run.training_set}.jsonl"
            write_jsonl(path, right_predictions(run.training_set, rows))
    scored = score(shallow, ["moe", "dense"], finished)
    assert not scored.missing
    assert not scored.curves
    found = {(row["method"], row["task"], row["language"], row["metric"]): row["value"] for row in scored.records}
    for task, metrics in (("vqa", ("accuracy",)), ("nlvr", ("accuracy", "consistency")), ("caption", ("bleu4",))):
        for metric in metrics:
            assert found["moe", task, "", metric] == pytest.approx(100)
    assert found["moe", "vqa", "", "nll"] == found["moe", "nlvr", "", "nll"] == 0
    assert {row["metric"] for row in scored.records} <= set(METRICS)
    baseline = {(row["method"], row["task"]) for row in scored.records if row["stage"] == "baseline"}
    assert baseline == {
        *((name, task) for name in ("majority", "text", "image", "text_and_image") for task in ("vqa", "nlvr")),
        ("majority", "caption"),
        ("nearest_image", "caption"),
    }
    assert found["majority", "nlvr", "", "accuracy"] == 50
    assert {row["seed"] for row in scored.records if row["stage"] == "baseline"} == {0}


def test_missing_predictions_are_listed_with_their_run(shallow, tmp_path):
    run = Run("finetune", "dense", 0, "vqa")
    scored = score(shallow, ["dense"], [run])
    assert [(path.name, one) for path, one in scored.missing] == [("vqa.jsonl", run)]


def test_a_scene_is_described_by_its_nearest_training_image(shallow):
    train, test = (read_jsonl(shallow.prepared / f"caption/{split}/rows.jsonl") for split in ("train", "test"))
    said = read_jsonl(shallow.baselines_folder / "nearest_image/predictions/caption.jsonl")
    assert [row["id"] for row in said] == [row["id"] for row in test]
    assert {row["caption"] for row in said} <= {row["captions"][0] for row in train}


def test_there_may_be_no_shallow_baselines(write, tmp_path):
    baselines(write(("setting", "shallow", 0)), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert TASKS

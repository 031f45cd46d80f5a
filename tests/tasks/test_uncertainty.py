"""Uncertainty of fine-tuned models: the labels that probabilities are held against, the measures against plain formulas, the refusals."""

import math

import numpy as np
import pytest

from moebench.catalogue import TASKS
from moebench.errors import MoebenchError
from moebench.tasks import uncertainty

PAIR, TAGGING = TASKS["constructed_paraphrase"], TASKS["constructed_pos"]
PAIRS = [{"id": str(number), "label": label} for number, label in enumerate("0110")]
TAGGED = [{"id": "a", "words": ["x", "y"], "tags": ["X", "ADJ"]}, {"id": "b", "words": ["z"], "tags": ["NOUN"]}]
PROBS = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]], dtype=np.float32)  # right, right, wrong, wrong
RIGHT = [0.9, 0.6, 0.3, 0.2]


def saved(tmp_path, array):
    np.save(tmp_path / "en.npy", array)
    return tmp_path / "en.npy"


def test_labels_are_those_of_pairs_or_of_words_in_order():
    assert list(uncertainty.labels(PAIR, PAIRS)) == [0, 1, 1, 0]
    assert list(uncertainty.labels(TAGGING, TAGGED)) == [TAGGING.labels.index(tag) for tag in ("X", "ADJ", "NOUN")]
    with pytest.raises(MoebenchError, match="'2' is no label of task 'constructed_paraphrase'; labels are: 0, 1"):
        uncertainty.labels(PAIR, [*PAIRS, {"id": "4", "label": "2"}])


def test_measures_are_the_formulas():
    temperature = 2.0
    found = uncertainty.measures(PROBS, uncertainty.labels(PAIR, PAIRS), temperature)
    assert set(found) == set(uncertainty.MEASURES)
    assert found["nll"] == pytest.approx(-sum(map(math.log, RIGHT)) / 4)
    assert found["brier"] == pytest.approx(sum(2 * (1 - p) ** 2 for p in RIGHT) / 4)
    confidences, right = [0.9, 0.6, 0.7, 0.8], [1, 1, 0, 0]
    # every confidence has a bin of its own
    assert found["ece"] == pytest.approx(sum(abs(c - hit) for c, hit in zip(confidences, right, strict=True)) / 4)
    assert found["adaptive_ece"] == pytest.approx(found["ece"])
    assert found["signed_ece"] == pytest.approx(sum(confidences) / 4 - 0.5)
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 2 / 3 + 2 / 4) / 4)  # by falling confidence: right, wrong, wrong, right
    softened = [math.sqrt(p) / (math.sqrt(p) + math.sqrt(1 - p)) for p in RIGHT]
    assert found["nll_scaled"] == pytest.approx(-sum(map(math.log, softened)) / 4)
    tops = [max(p, 1 - p) for p in softened]
    assert found["ece_scaled"] == pytest.approx(sum(abs(c - hit) for c, hit in zip(tops, right, strict=True)) / 4)


def test_the_temperature_undoes_a_known_sharpening():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), size=4000)
    labels = np.array([rng.choice(3, p=row) for row in probs])
    sharp = probs**3 / (probs**3).sum(axis=1, keepdims=True)
    temperature = uncertainty.fit_temperature(sharp, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    found = uncertainty.measures(sharp, labels, temperature)
    assert found["ece_scaled"] < 0.03 < found["ece"]
    assert found["nll_scaled"] < found["nll"]


def test_a_probability_of_zero_costs_a_finite_amount():
    found = uncertainty.measures(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1]), 1.0)
    assert found["nll"] == pytest.approx(-math.log(np.finfo(np.float32).tiny) / 2)
    assert found["nll_scaled"] == pytest.approx(found["nll"])
    assert 0 < uncertainty.fit_temperature(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1])) < math.inf


def test_differing_members():
    same = uncertainty.differing(np.stack([PROBS, PROBS, PROBS]))
    assert same == {"disagreement": 0.0, "mutual_information": pytest.approx(0, abs=1e-12)}
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = uncertainty.differing(np.stack([certain, certain[[0, 0]]]))  # they part on the second example alone
    assert found == {"disagreement": 0.5, "mutual_information": pytest.approx(math.log(2) / 2)}


def test_predictions_are_the_most_probable_labels():
    assert [row["prediction"] for row in uncertainty.predictions(PAIR, PAIRS, PROBS)] == ["0", "1", "0", "1"]
    words = np.eye(len(TAGGING.labels))[[3, 4, 5]]
    assert uncertainty.predictions(TAGGING, TAGGED, words) == [
        {"id": "a", "prediction": [TAGGING.labels[3], TAGGING.labels[4]]},
        {"id": "b", "prediction": [TAGGING.labels[5]]},
    ]


def test_probabilities_are_read_back(tmp_path):
    assert np.array_equal(uncertainty.read(saved(tmp_path, PROBS), PAIR, PAIRS), [PROBS])
    members = np.stack([PROBS, PROBS[:, ::-1], PROBS])
    assert np.array_equal(uncertainty.read(saved(tmp_path, members), PAIR, PAIRS), members)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PROBS[:3], r"en\.npy: has the shape \(3, 2\); should be \(4, 2\), the pairs of the data"),
        (np.full((4, 3), 1 / 3), r"en\.npy: has the shape \(4, 3\); should be \(4, 2\)"),
        (PROBS[0], r"en\.npy: has the shape \(2,\); should be \(4, 2\)"),
        (np.stack([PROBS[:3]] * 2), r"en\.npy: has the shape \(2, 3, 2\); should be \(4, 2\), .* behind the members"),
        (np.stack([PROBS, PROBS / 2]), r"en\.npy: the probabilities at \(1, 0\) sum to 0\.5"),
        (PROBS * 2, r"en\.npy: the probability at \(0, 0\) is 1\.79"),
        (PROBS / 2, r"en\.npy: the probabilities at \(0,\) sum to 0\.5"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, array, message):
    with pytest.raises(MoebenchError, match=message):
        uncertainty.read(saved(tmp_path, array), PAIR, PAIRS)


def test_words_are_counted_not_sentences(tmp_path):
    with pytest.raises(MoebenchError, match=r"has the shape \(2, 17\); should be \(3, 17\), the words of the data"):
        uncertainty.read(saved(tmp_path, np.full((2, 17), 1 / 17)), TAGGING, TAGGED)


def test_a_damaged_array_is_named(tmp_path):
    (tmp_path / "en.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(MoebenchError, match=r"en\.npy: not a readable array"):
        uncertainty.read(tmp_path / "en.npy", PAIR, PAIRS)

"""Probabilities of fine-tuned models: the labels that they are held against, reading, the refusals."""

import numpy as np
import pytest

from moebench.data.catalogue import TASKS
from moebench.errors import MoebenchError
from moebench.protocols.transfer import probabilities

PAIR, TAGGING = TASKS["constructed_paraphrase"], TASKS["constructed_pos"]
PAIRS = [{"id": str(number), "label": label} for number, label in enumerate("0110")]
TAGGED = [{"id": "a", "words": ["x", "y"], "tags": ["X", "ADJ"]}, {"id": "b", "words": ["z"], "tags": ["NOUN"]}]
PROBS = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]], dtype=np.float32)


def saved(tmp_path, array):
    np.save(tmp_path / "en.npy", array)
    return tmp_path / "en.npy"


def test_labels_are_those_of_pairs_or_of_words_in_order():
    assert list(probabilities.labels(PAIR, PAIRS)) == [0, 1, 1, 0]
    assert list(probabilities.labels(TAGGING, TAGGED)) == [TAGGING.labels.index(tag) for tag in ("X", "ADJ", "NOUN")]
    with pytest.raises(MoebenchError, match="'2' is no label of task 'constructed_paraphrase'; labels are: 0, 1"):
        probabilities.labels(PAIR, [*PAIRS, {"id": "4", "label": "2"}])


def test_predictions_are_the_most_probable_labels():
    assert [row["prediction"] for row in probabilities.predictions(PAIR, PAIRS, PROBS)] == ["0", "1", "0", "1"]
    words = np.eye(len(TAGGING.labels))[[3, 4, 5]]
    assert probabilities.predictions(TAGGING, TAGGED, words) == [
        {"id": "a", "prediction": [TAGGING.labels[3], TAGGING.labels[4]]},
        {"id": "b", "prediction": [TAGGING.labels[5]]},
    ]


def test_probabilities_are_read_back(tmp_path):
    assert np.array_equal(probabilities.read(saved(tmp_path, PROBS), PAIR, PAIRS), [PROBS])
    members = np.stack([PROBS, PROBS[:, ::-1], PROBS])
    assert np.array_equal(probabilities.read(saved(tmp_path, members), PAIR, PAIRS), members)


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
        probabilities.read(saved(tmp_path, array), PAIR, PAIRS)


def test_words_are_counted_not_sentences(tmp_path):
    with pytest.raises(MoebenchError, match=r"has the shape \(2, 17\); should be \(3, 17\), the words of the data"):
        probabilities.read(saved(tmp_path, np.full((2, 17), 1 / 17)), TAGGING, TAGGED)


def test_a_damaged_array_is_named(tmp_path):
    (tmp_path / "en.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(MoebenchError, match=r"en\.npy: not a readable array"):
        probabilities.read(tmp_path / "en.npy", PAIR, PAIRS)

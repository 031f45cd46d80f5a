"""Row schemas: good rows pass, each kind of bad row is named."""

import pytest

from moebench.data.schema import check, content
from moebench.errors import MoebenchError

PAIR = {"id": "1", "text_a": "a b", "text_b": "c", "label": "x", "group": "g"}
TAGGING = {"id": "1", "words": ["a", "b"], "tags": ["x", "y"]}
QA = {"id": "1", "context": "the cat 😀 sat", "question": "who?", "answers": [{"text": "cat 😀", "start": 4}]}
LABELS = ("x", "y")


@pytest.mark.parametrize(("kind", "row"), [("pair", PAIR), ("tagging", TAGGING), ("qa", QA)])
def test_good_rows_pass(kind, row):
    check(kind, row, LABELS)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("pair", PAIR | {"label": "z"}, "'label' has the value 'z'; should be one of x, y"),
        ("pair", PAIR | {"label": None}, "'label'"),
        ("pair", PAIR | {"text_b": " "}, "'text_b'"),
        ("pair", PAIR | {"id": 1}, "'id'"),
        ("pair", PAIR | {"extra": 1}, "keys are extra, group"),
        ("pair", {key: value for key, value in PAIR.items() if key != "group"}, "should be group, id"),
        ("pair", TAGGING, "keys are id, tags, words"),
        ("tagging", TAGGING | {"tags": ["x"]}, "a list of 2 tags"),
        ("tagging", TAGGING | {"tags": ["x", "z"]}, "'tags'.*out of x, y"),
        ("tagging", TAGGING | {"words": [], "tags": []}, "'words'"),
        ("tagging", TAGGING | {"words": ["a", ""]}, "'words'"),
        ("tagging", TAGGING | {"words": "ab"}, "'words'"),
        ("qa", QA | {"answers": []}, "at least one answer"),
        ("qa", QA | {"answers": [{"text": "cat", "start": 5}]}, "at 5 it has 'at ', not 'cat'"),
        ("qa", QA | {"answers": [{"text": "sat", "start": -3}]}, "'answers'"),
        ("qa", QA | {"answers": [{"text": "", "start": 0}]}, "'answers'"),
        ("qa", QA | {"answers": [{"text": "cat", "start": "4"}]}, "'answers'"),
        ("qa", QA | {"answers": [{"text": "cat"}]}, "'answers'"),
        ("qa", QA | {"question": ""}, "'question'"),
    ],
)
def test_bad_rows_are_named(kind, row, message):
    with pytest.raises(MoebenchError, match=message):
        check(kind, row, LABELS)


def test_content_ignores_everything_a_model_does_not_read():
    assert (
        content("pair", PAIR) == content("pair", PAIR | {"id": "2", "label": "y", "group": "h"}) != content("pair", PAIR | {"text_a": "z"})
    )
    assert (
        content("tagging", TAGGING)
        == content("tagging", TAGGING | {"tags": ["y", "y"]})
        != content("tagging", TAGGING | {"words": ["a b"]})
    )
    assert content("qa", QA) == content("qa", QA | {"answers": []}) != content("qa", QA | {"question": "z"})

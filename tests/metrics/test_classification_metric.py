"""Accuracy against scikit-learn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from moebench.metrics.classification import accuracy

pairs = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)


@given(pairs)
def test_equals_scikit_learn(rows):
    gold, predicted = map(list, zip(*rows, strict=True))
    assert accuracy(gold, predicted) == pytest.approx(accuracy_score(gold, predicted), abs=1e-15)


def test_refuses_nothing_and_unequal_lengths():
    with pytest.raises(ValueError, match="at least one"):
        accuracy([], [])
    with pytest.raises(ValueError, match="shorter"):
        accuracy(["a", "b"], ["a"])

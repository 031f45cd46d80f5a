"""Draws: how many, from where, and that they never change."""

from hypothesis import given
from hypothesis import strategies as st

from moebench.data.sampling import permutation, sampled


@given(st.integers(0, 50), st.integers(1, 60), st.text(max_size=5))
def test_a_sample_is_a_part_in_order_and_as_large_as_it_can_be(count, limit, name):
    few = list(sampled(range(count), limit, name))
    assert len(few) == min(count, limit)
    assert few == sorted(set(few))
    assert list(sampled(range(count), None, name)) == list(range(count))


def test_a_sample_reaches_the_whole_file():
    few = list(sampled(range(3000), 60, "xnli"))
    assert {row % 3 for row in few} == {0, 1, 2}  # files that list labels in turn
    assert few[0] < 300
    assert few[-1] > 2700


def test_draws_are_fixed():
    assert permutation(0, "xnli", 5).tolist() == [4, 3, 2, 0, 1]
    assert permutation(1, "xnli", 5).tolist() != permutation(0, "xnli", 5).tolist()

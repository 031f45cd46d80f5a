"""Draws: how many, from where, and that they never change."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moebench.data.sampling import Draws, permutation, sampled


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


def test_draws_below_a_limit_are_uniform_and_broadcast():
    draws = Draws(0, "a").below(np.array([1, 3, 10]), 30000, 3)
    assert draws.min(0).tolist() == [0, 0, 0]
    assert draws.max(0).tolist() == [0, 2, 9]
    for column, limit in ((1, 3), (2, 10)):
        assert np.abs(np.bincount(draws[:, column]) - 30000 / limit).max() < 5 * np.sqrt(30000 / limit)
    assert Draws(0, "a").below(100, 4).tolist() == [51, 7, 61, 1]


def test_orders_are_permutations():
    orders = Draws(0, "a").orders(2000, 5)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(5), (2000, 1)))
    assert len(np.unique(orders, axis=0)) == 120
    assert Draws(0, "xnli").orders(1, 5)[0].tolist() == permutation(0, "xnli", 5).tolist()

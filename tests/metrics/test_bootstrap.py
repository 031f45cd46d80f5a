"""The cluster bootstrap against exhaustive enumeration, analytic values, scipy and a plain loop."""

import itertools
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moebench.metrics.bootstrap import group_sums, ratio, standard_error

RNG = np.random.default_rng(5)
COUNTS = np.stack([RNG.poisson(3, 60), RNG.poisson(9, 60)], axis=1)


def of_mean(values):
    return np.stack([values, np.ones_like(values)], axis=1)


@pytest.mark.parametrize("sums", [COUNTS[:5], of_mean(np.array([0.0, 1.0, 1.0, 0.25])), [[0, 0], [1, 2], [0, 4]]])
def test_equals_the_deviation_over_all_possible_resamples(sums):
    sums = [[float(a), float(b)] for a, b in sums]
    ratios = []
    for drawn in itertools.product(sums, repeat=len(sums)):
        above, below = sum(a for a, _ in drawn), sum(b for _, b in drawn)
        ratios.append(above / below if below else 0.0)
    assert standard_error(sums, resamples=100_000) == pytest.approx(statistics.pstdev(ratios), rel=0.015)


def test_of_a_mean_it_is_s_over_the_root_of_n():
    values = RNG.normal(size=400)
    expected = statistics.stdev(values.tolist()) / 400**0.5
    assert standard_error(of_mean(values), resamples=10_000) == pytest.approx(expected, rel=0.03)
    assert standard_error(of_mean(values)) == pytest.approx(expected, rel=0.1)


def test_equals_scipy():
    def micro(above, below, axis):
        return above.sum(axis=axis) / below.sum(axis=axis)

    data = (COUNTS[:, 0].astype(float), COUNTS[:, 1].astype(float))
    there = stats.bootstrap(data, micro, paired=True, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    assert standard_error(COUNTS, resamples=20_000) == pytest.approx(float(there.standard_error), rel=0.03)


def test_equals_a_plain_loop():
    draw, ratios = random.Random(2), []
    for _ in range(4000):
        drawn = draw.choices(COUNTS.tolist(), k=len(COUNTS))
        ratios.append(sum(a for a, _ in drawn) / sum(b for _, b in drawn))
    assert standard_error(COUNTS, resamples=20_000) == pytest.approx(statistics.stdev(ratios), rel=0.05)


def test_groups_of_identical_rows_have_an_error_larger_by_the_root_of_their_size():
    one_each = of_mean(RNG.normal(size=200))
    copies = np.repeat(one_each, 4, axis=0)  # each row four times: 800 rows that tell as much as 200
    grouped = standard_error(group_sums(copies, np.repeat(np.arange(200), 4).tolist()), resamples=10_000)
    alone = standard_error(group_sums(copies, range(800)), resamples=10_000)
    assert grouped == pytest.approx(2 * alone, rel=0.05)
    assert grouped == pytest.approx(standard_error(one_each, resamples=10_000), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_group_sums_equal_a_loop_and_keep_the_ratio(rows):
    groups, sums = [f"g{group}" for group, _, _ in rows], [(a, b) for _, a, b in rows]
    found = group_sums(sums, groups)
    for place, group in enumerate(dict.fromkeys(groups)):
        mine = [one for name, one in zip(groups, sums, strict=True) if name == group]
        assert found[place].tolist() == [sum(a for a, _ in mine), sum(b for _, b in mine)]
    assert len(found) == len(set(groups))
    assert ratio(found.sum(axis=0)) == ratio(np.array(sums, dtype=float).sum(axis=0))


def test_the_same_seed_gives_the_same_error_and_another_one_another():
    assert standard_error(COUNTS) == standard_error(COUNTS) == standard_error(COUNTS.tolist(), 1000, 0)
    assert standard_error(COUNTS) != standard_error(COUNTS, seed=1)
    assert standard_error(COUNTS) == pytest.approx(standard_error(COUNTS, seed=1), rel=0.15)


def test_what_does_not_vary_has_no_error():
    assert standard_error([[1, 1]] * 10) == 0.0
    assert standard_error([[0, 0]] * 10) == 0.0


def test_one_group_is_not_a_number():
    assert np.isnan(standard_error([[3, 4]]))


@pytest.mark.parametrize(
    ("sums", "resamples", "message"),
    [
        (np.zeros((0, 2)), 1000, "at least one group"),
        ([[1, 2, 3]], 1000, "shape"),
        ([1.0, 2.0], 1000, "shape"),
        ([[np.nan, 1], [1, 1]], 1000, "finite"),
        ([[1, -1], [1, 1]], 1000, "not negative"),
        (COUNTS, 1, "at least 2"),
    ],
)
def test_what_is_refused(sums, resamples, message):
    with pytest.raises(ValueError, match=message):
        standard_error(sums, resamples)


def test_every_example_needs_a_group():
    with pytest.raises(ValueError, match="2 examples and the groups of 3"):
        group_sums([[1, 1], [1, 1]], "abc")

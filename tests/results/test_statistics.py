"""Statistics over seeds against the standard library, scipy and worked examples."""

import math
import statistics as stdlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moebench.results.statistics import deviation, holm, mean, paired_difference

NUMBERS = st.lists(st.floats(0, 100), min_size=3, max_size=8)


@given(NUMBERS)
def test_mean_and_deviation_agree_with_the_standard_library(values):
    assert mean(values) == pytest.approx(stdlib.fmean(values), abs=1e-9)
    assert deviation(values) == pytest.approx(stdlib.stdev(values), abs=1e-6)


def test_deviation_divides_by_n_minus_1_and_needs_two_values():
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert deviation([1.0]) is None
    assert deviation([]) is None


def test_paired_difference_on_a_worked_example():
    # differences 1, 2, 3: mean 2, standard error 1/sqrt(3); t with 2 degrees of freedom at 97.5 % is 4.302653
    found = paired_difference({0: 11.0, 1: 22.0, 2: 33.0}, {2: 30.0, 1: 20.0, 0: 10.0})
    assert (found.mean, found.n) == (pytest.approx(2.0), 3)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    t = 2 * math.sqrt(3)  # with two degrees of freedom the p-value has a closed form
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=3, max_size=10))
def test_paired_difference_agrees_with_scipy(pairs):
    ours = [a / 10 for a, _ in pairs]
    theirs = [b / 10 for _, b in pairs]
    found = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    if len({a - b for a, b in pairs}) == 1:
        assert found is None
        return
    reference = stats.ttest_rel(ours, theirs)
    interval = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue, abs=1e-9)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=1e-6), pytest.approx(interval.high, abs=1e-6))


def test_only_shared_seeds_count():
    found = paired_difference({0: 1.0, 1: 3.0, 2: 2.0, 7: 90.0}, {0: 0.0, 1: 1.0, 2: 1.5, 8: -50.0})
    assert found.n == 3
    assert found.mean == pytest.approx(3.5 / 3)


@pytest.mark.parametrize(
    ("values", "baseline"),
    [
        ({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.5}),  # two seeds
        ({0: 1.0, 1: 2.0, 2: 4.0}, {0: 0.0, 1: 0.5, 3: 1.0}),  # two shared
        ({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 2.0, 2: 3.0}),  # tied
        ({0: 1.1, 1: 2.1, 2: 3.1}, {0: 1.0, 1: 2.0, 2: 3.0}),  # the same difference but for rounding
        ({}, {}),
    ],
)
def test_nothing_is_claimed_without_three_seeds_or_spread(values, baseline):
    assert paired_difference(values, baseline) is None


def test_holm_on_a_worked_example():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last is lifted to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.randoms())
def test_holm_rejects_as_the_stepwise_procedure_does(p_values, random):
    level = 0.05
    rejected, ordered = set(), sorted(range(len(p_values)), key=lambda index: p_values[index])
    for step, index in enumerate(ordered):  # Holm, 1979: go on while p(i) <= level / (m - i + 1)
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(index)
    adjusted = holm(p_values)
    assert {index for index, p in enumerate(adjusted) if p <= level} == rejected
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert holm([p_values[index] for index in order]) == [adjusted[index] for index in order]

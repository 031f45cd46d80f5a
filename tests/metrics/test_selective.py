"""Selective prediction against golden arrays, all orders of ties, loops and properties."""

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.metrics import selective

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics_uncertainty.npz", allow_pickle=False)
CASES = [key.split("/")[0] for key in GOLDEN if key.endswith("/aurc")]
examples = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=25)


def columns(rows):
    return np.array([row[0] for row in rows], dtype=float), np.array([row[1] for row in rows])


def loop_risks(correct):
    return [sum(not right for right in correct[: i + 1]) / (i + 1) for i in range(len(correct))]


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    probs, labels = GOLDEN[f"{name}/probs"], GOLDEN[f"{name}/labels"]
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    curve = selective.risk_coverage(confidence, correct)
    np.testing.assert_allclose(curve.risk_N, GOLDEN[f"{name}/risk_coverage_curve"], atol=1e-9)
    assert curve.is_threshold_N.all()
    assert selective.aurc(confidence, correct) == pytest.approx(float(GOLDEN[f"{name}/aurc_mean_of_risks"]), abs=1e-9)
    trapezoid = np.trapezoid(curve.risk_N, curve.coverage_N) / (1 - 1 / len(correct))
    assert trapezoid == pytest.approx(float(GOLDEN[f"{name}/aurc"]), abs=1e-6)
    for percent in (5, 20):
        value = selective.coverage_at_risk(confidence, correct, percent / 100)
        assert value == pytest.approx(float(GOLDEN[f"{name}/cov_at_{percent}risk"]), abs=1e-9, nan_ok=True)
    at_80 = math.ceil(0.8 * len(correct)) - 1
    assert curve.risk_N[at_80] == pytest.approx(float(GOLDEN[f"{name}/risk_at_80cov"]), abs=1e-6)


def test_ties_are_the_mean_over_all_their_orders():
    confidence, correct = np.array([3, 2, 2, 2, 1, 1.0]), np.array([True, True, False, False, True, False])
    curves = [loop_risks(correct[[0, *middle, *last]]) for middle in permutations([1, 2, 3]) for last in permutations([4, 5])]
    curve = selective.risk_coverage(confidence, correct)
    np.testing.assert_allclose(curve.risk_N, np.mean(curves, axis=0))
    assert curve.is_threshold_N.tolist() == [True, False, False, True, False, True]
    assert selective.aurc(confidence, correct) == pytest.approx(np.mean(curves))
    # 1/3 is the risk at coverage 1/3 and 4/9 at 1/2, but only 1, 4 and 6 answers can be had
    assert selective.coverage_at_risk(confidence, correct, 0.45) == pytest.approx(1 / 6)


@settings(deadline=None)
@given(examples)
def test_properties(rows):
    confidence, correct = columns(rows)
    curve, area = selective.risk_coverage(confidence, correct), selective.aurc(confidence, correct)
    assert curve.coverage_N[-1] == 1
    assert curve.is_threshold_N[-1]
    assert curve.risk_N[-1] == pytest.approx(1 - correct.mean())
    for value, count in zip(*np.unique(confidence, return_counts=True), strict=True):
        answered = (confidence >= value).sum()
        assert curve.risk_N[answered - 1] == pytest.approx((~correct[confidence >= value]).mean())
        assert not curve.is_threshold_N[answered - count : answered - 1].any()
    order = np.random.default_rng(0).permutation(len(rows))
    assert selective.aurc(np.exp(confidence[order]), correct[order]) == pytest.approx(area, abs=1e-12)
    best, worst = selective.aurc(correct, correct), selective.aurc(~correct, correct)
    assert best - 1e-12 <= area <= worst + 1e-12
    assert selective.excess_aurc(confidence, correct) == pytest.approx(area - best, abs=1e-12)
    accuracy = selective.accuracy_rejection(confidence, correct)
    np.testing.assert_allclose(accuracy.accuracy_N[::-1] + curve.risk_N, 1)
    np.testing.assert_allclose(accuracy.rejected_N[::-1] + curve.coverage_N, 1)


def test_extremes():
    correct = np.array([True] * 8 + [False] * 2)
    perfect = np.arange(10.0)[::-1]
    assert selective.aurc(perfect, correct) == pytest.approx((1 / 9 + 2 / 10) / 10)
    assert selective.excess_aurc(perfect, correct) == 0
    assert selective.aurc(np.zeros(10), correct) == pytest.approx(0.2)  # an uninformed order has the error everywhere
    assert selective.excess_aurc(-perfect, correct) > selective.excess_aurc(np.zeros(10), correct) > 0
    assert selective.coverage_at_risk(perfect, correct, 0.0) == 0.8
    assert selective.coverage_at_risk(perfect, correct, 0.2) == 1
    assert math.isnan(selective.coverage_at_risk(-perfect, correct, 0.05))
    curve = selective.accuracy_rejection(perfect, correct)
    assert curve.rejected_N[[0, -1]] == pytest.approx([0, 0.9])
    assert curve.accuracy_N[[0, -1]] == pytest.approx([0.8, 1])


def test_excess_is_near_the_published_approximation():
    correct = np.random.default_rng(0).random(20000) < 0.7
    confidence, risk = np.random.default_rng(1).random(20000), 1 - correct.mean()
    approximation = selective.aurc(confidence, correct) - (risk + (1 - risk) * math.log(1 - risk))
    assert selective.excess_aurc(confidence, correct) == pytest.approx(approximation, abs=1e-4)


@pytest.mark.parametrize("metric", [selective.risk_coverage, selective.aurc, selective.excess_aurc, selective.accuracy_rejection])
def test_refuses(metric):
    for confidence, correct, message in [
        ([], np.empty(0, bool), "N >= 1"),
        ([[1.0]], [[True]], r"must both be \(N,\)"),
        ([1.0, 2.0], [True], r"are \(2,\) and \(1,\)"),
        ([1.0, 2.0], [1, 0], "int64; should be bool"),
        ([1.0, math.nan], [True, False], "example 1 is NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(confidence, correct)


def test_refuses_a_risk_in_percent():
    with pytest.raises(ValueError, match="risk has the value 5; should be a fraction"):
        selective.coverage_at_risk([1.0], [True], 5)

"""Calibration metrics against golden arrays, torchmetrics, scikit-learn, closed forms and properties."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from moebench.metrics import calibration

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics_uncertainty.npz", allow_pickle=False)
CASES = sorted({key.split("/")[0] for key in GOLDEN})
ALL = [
    calibration.error,
    calibration.nll,
    calibration.brier,
    calibration.ece,
    calibration.signed_ece,
    calibration.adaptive_ece,
    calibration.classwise_ece,
]
seeds = st.integers(0, 2**31)


def case(name):
    return GOLDEN[f"{name}/probs"], GOLDEN[f"{name}/labels"]


def expected(name, key):
    return pytest.approx(float(GOLDEN[f"{name}/{key}"]), abs=1e-9)


def drawn(seed, examples=50, classes=4):
    """Probabilities on a grid of 1/20, with ties, zeros, ones and confidences on the edges of bins."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(20, np.full(classes, 1 / classes), size=examples) / 20, rng.integers(0, classes, examples)


def loop_ece(values, hits, bins):
    total = 0.0
    for b in range(bins):
        rows = [n for n, v in enumerate(values) if b / bins <= v and (v < (b + 1) / bins or b == bins - 1)]
        if rows:
            total += len(rows) / len(values) * abs(np.mean([values[n] for n in rows]) - np.mean([hits[n] for n in rows]))
    return total


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    probs, labels = case(name)
    assert 1 - calibration.error(probs, labels) == expected(name, "accuracy")
    assert calibration.nll(probs, labels) == expected(name, "nll")
    assert calibration.nll(probs, labels, floor=np.finfo(np.float64).eps) == expected(name, "log_loss_sklearn_clipped")
    assert calibration.brier(probs, labels) == expected(name, "brier_sum_over_classes")
    assert calibration.entropy(probs).mean() == expected(name, "entropy_mean")
    np.testing.assert_allclose(calibration.entropy(probs), GOLDEN[f"{name}/entropy_per_example"], atol=1e-9)
    for bins in (10, 15, 16):
        if f"{name}/ece{bins}_left_closed_one_in_last_bin" in GOLDEN:
            assert calibration.ece(probs, labels, bins) == expected(name, f"ece{bins}_left_closed_one_in_last_bin")
            assert calibration.signed_ece(probs, labels) == expected(name, f"ece{bins}_signed_conf_minus_acc")
    # where a probability is exactly 1, that library opens a bin of its own
    if not (probs == 1).any():
        assert calibration.classwise_ece(probs, labels) == expected(name, "sce15_uncertainty_metrics")
    if f"{name}/ace15_torch_uncertainty" in GOLDEN:  # float32 inside
        assert calibration.adaptive_ece(probs, labels) == pytest.approx(float(GOLDEN[f"{name}/ace15_torch_uncertainty"]), abs=1e-6)


def test_binary_brier_is_twice_scikit_learns():
    probs, labels = case("case04")
    assert calibration.brier(probs, labels) == pytest.approx(2 * brier_score_loss(labels, probs[:, 1]), abs=1e-12)


@pytest.mark.parametrize("bins", [5, 15, 40])
def test_other_libraries_on_probabilities_inside_the_bins(bins):
    rng = np.random.default_rng(bins)
    probs, labels = rng.dirichlet(np.ones(6), size=500), rng.integers(0, 6, 500)
    there = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), num_classes=6, n_bins=bins)
    assert calibration.ece(probs, labels, bins) == pytest.approx(float(there), abs=1e-6)
    assert calibration.nll(probs, labels) == pytest.approx(log_loss(labels, probs), abs=1e-12)
    np.testing.assert_allclose(calibration.entropy(probs), scipy_entropy(probs, axis=1), atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(seeds, st.sampled_from([1, 10, 15, 20]))
def test_loops_bounds_and_order(seed, bins):
    probs, labels = drawn(seed)
    top, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    ece, signed = calibration.ece(probs, labels, bins), calibration.signed_ece(probs, labels)
    assert ece == pytest.approx(loop_ece(top, right, bins), abs=1e-12)
    classwise = np.mean([loop_ece(probs[:, c], labels == c, bins) for c in range(4)])
    assert calibration.classwise_ece(probs, labels, bins) == pytest.approx(classwise, abs=1e-12)
    assert abs(signed) <= ece + 1e-12
    assert calibration.ece(probs, labels, 1) == pytest.approx(abs(signed), abs=1e-12)
    assert 0 <= calibration.brier(probs, labels) <= 2
    assert abs(signed) - 1e-12 <= calibration.adaptive_ece(probs, labels, bins) <= 1
    order = np.random.default_rng(seed).permutation(len(labels))
    for metric in ALL:
        assert metric(probs[order], labels[order]) == pytest.approx(metric(probs, labels), abs=1e-12)


def test_sign_and_extremes():
    sure, labels = np.array([[1.0, 0], [1, 0], [1, 0], [1, 0]]), np.array([0, 1, 1, 1])
    assert calibration.signed_ece(sure, labels) == pytest.approx(0.75)  # says 1, is right a quarter of the time: over-confident
    assert calibration.ece(sure, labels) == pytest.approx(0.75)
    assert calibration.brier(sure, 1 - np.zeros(4, int)) == 2
    assert calibration.nll(sure, labels) == math.inf
    assert calibration.nll(sure, labels, floor=1e-7) == pytest.approx(-0.75 * math.log(1e-7))
    shy = np.full((4, 2), 0.5)
    assert calibration.signed_ece(shy, np.zeros(4, int)) == pytest.approx(-0.5)
    assert calibration.entropy(shy) == pytest.approx(math.log(2))
    assert (calibration.entropy(sure) == 0).all()
    assert calibration.error(shy, np.zeros(4, int)) == 0  # ties go to the lowest class
    for metric in ALL:
        assert metric(sure, np.zeros(4, int)) == 0


def test_reliability_edges():
    top = np.array([0.6, 0.7, 0.75, 1.0, 1.0])
    table = calibration.reliability(np.stack([top, 1 - top], axis=1), np.array([0, 0, 1, 0, 1]), bins=10)
    assert table.count_B.tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 0, 2]  # 0.6 and 0.7 open their bins, 1 is in the last one
    assert table.confidence_B[7] == pytest.approx(0.725)
    assert table.accuracy_B[[6, 7, 9]].tolist() == [1, 0.5, 0.5]
    assert np.isnan(table.confidence_B[8])
    assert table.upper_B[-1] == 1
    one_percent = calibration.reliability([[0.71, 0.29]] * 2, [0, 1], bins=100)
    assert one_percent.count_B[71] == 2


def test_adaptive_bins_and_their_ties():
    top = np.array([0.9, 0.6, 0.8, 0.7, 0.95])
    probs, labels = np.stack([top, 1 - top], axis=1), np.array([0, 1, 0, 0, 1])
    table = calibration.adaptive_reliability(probs, labels, bins=2)
    assert table.count_B.tolist() == [3, 2]
    assert table.lower_B.tolist() == [0.6, 0.9]
    assert table.upper_B.tolist() == [0.8, 0.95]
    assert calibration.adaptive_ece(probs, labels, bins=2) == pytest.approx((abs(2.1 - 2) + abs(1.85 - 1)) / 5)
    tied = calibration.adaptive_reliability([[0.75, 0.25]] * 4, [0, 0, 0, 1], bins=2)
    assert tied.count_B.tolist() == [4, 0]
    assert np.isnan(tied.upper_B[1])
    few = calibration.adaptive_reliability(probs, labels, bins=8)
    assert few.count_B.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(0.2, 5))
def test_temperature_undoes_a_scale_and_never_worsens_the_nll(seed, scale):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(80, 3)), rng.integers(0, 3, 80)
    logits[np.arange(80), labels] += 1
    temperature = calibration.fit_temperature(logits, labels)
    assert calibration.fit_temperature(scale * logits, labels) == pytest.approx(scale * temperature, rel=1e-4)
    best = calibration.nll(calibration.at_temperature(logits, temperature), labels)
    for other in (0.9 * temperature, 1.1 * temperature, 1.0):
        assert best <= calibration.nll(calibration.at_temperature(logits, other), labels) + 1e-12


def test_temperature_closed_form():
    # three of four right at logit difference 2: p = 3/4 where 2 / T = ln 3
    logits, labels = np.array([[2.0, 0]] * 4), np.array([0, 0, 0, 1])
    temperature = calibration.fit_temperature(logits, labels)
    assert temperature == pytest.approx(2 / math.log(3), rel=1e-5)
    assert calibration.at_temperature(logits, temperature)[0] == pytest.approx([0.75, 0.25], abs=1e-6)
    assert calibration.ece(calibration.at_temperature(logits, temperature), labels) == pytest.approx(0, abs=1e-6)
    low, high = calibration.TEMPERATURE_BOUNDS
    assert calibration.fit_temperature(logits / 100, labels) == pytest.approx(0.02 / math.log(3), rel=1e-4)
    assert calibration.fit_temperature(logits, np.ones(4, int)) == high
    assert calibration.fit_temperature(logits, np.zeros(4, int)) == low


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_where_all_are_right_the_temperature_is_the_lower_bound_whatever_the_scale(seed, exponent):
    logits = 10**exponent * np.random.default_rng(seed).standard_normal((50, 4))
    right = logits.argmax(axis=1)
    assert calibration.fit_temperature(logits, right) == calibration.TEMPERATURE_BOUNDS[0]


@pytest.mark.parametrize("metric", ALL)
def test_refuses_what_is_no_probability_or_label(metric):
    good, labels = np.full((3, 2), 0.5), np.array([0, 1, 0])
    for probs, message in [
        (good[0], r"must be \(N, C\)"),
        (np.empty((0, 2)), r"must be \(N, C\)"),
        (np.ones((3, 1)), "two classes"),
        (good * 1.01, r"at \(0,\) sum to 1.01"),
        (np.array([[0.5, 0.5], [np.nan, 1], [0.5, 0.5]]), r"at \(1, 0\) is nan"),
        (np.array([[0.5, 0.5], [0.5, 0.5], [-0.1, 1.1]]), r"at \(2, 0\) is -0.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(probs, labels)
    for wrong, message in [
        (labels[:2], "N = 3"),
        (labels * 0.5, "float64; should be integers"),
        (labels + 1, "example 1 is 2; should be in 0..1"),
        (labels - 1, "example 0 is -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(good, wrong)


def test_refuses_settings_out_of_range():
    good, labels = np.full((3, 2), 0.5), np.array([0, 1, 0])
    for metric in (calibration.ece, calibration.adaptive_ece, calibration.classwise_ece):
        with pytest.raises(ValueError, match="bins has the value 0"):
            metric(good, labels, bins=0)
    with pytest.raises(ValueError, match="floor has the value -1"):
        calibration.nll(good, labels, floor=-1)
    with pytest.raises(ValueError, match="temperature has the value 0"):
        calibration.at_temperature(good, 0)
    with pytest.raises(ValueError, match=r"logit at \(0, 1\) is -inf"):
        calibration.fit_temperature([[0.0, -math.inf]], [0])
    with pytest.raises(ValueError, match=r"logits must be \(N, C\)"):
        calibration.fit_temperature([0.0, 1.0], [0])


def test_rounding_of_single_precision_is_no_mistake():
    logits = np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)
    probs = torch.softmax(torch.tensor(logits), dim=1).numpy()
    assert calibration.nll(probs, np.zeros(64, int)) > 0

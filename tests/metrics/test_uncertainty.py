"""Measures of uncertainty against plain formulas."""

import math

import numpy as np
import pytest

from moebench.metrics import uncertainty

PROBS = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]], dtype=np.float32)  # right, right, wrong, wrong
RIGHT = [0.9, 0.6, 0.3, 0.2]
LABELS = np.array([0, 1, 1, 0])


def test_measures_are_the_formulas():
    temperature = 2.0
    found = uncertainty.measures(PROBS, LABELS, temperature)
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


def test_a_temperature_at_a_bound_is_said():
    right = PROBS.argmax(axis=1)
    assert uncertainty.fitted(PROBS, right) == {"temperature": 0.01, "temperature_at_bound": 1}
    assert uncertainty.fitted(PROBS, 1 - right) == {"temperature": 100, "temperature_at_bound": 1}
    assert set(uncertainty.fitted(PROBS, np.array([0, 1, 0, 0]))) == {"temperature"}


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

"""Diversity of members against golden arrays, scipy, closed forms and properties."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine, jensenshannon
from scipy.stats import entropy

from moebench.metrics import calibration, diversity

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics_ensemble.npz", allow_pickle=False)
CASES = sorted({key.split("/")[0] for key in GOLDEN})
PAIRWISE = [diversity.disagreement, diversity.pairwise_kl, diversity.cosine_diversity]


def drawn(seed, members=3, examples=12, classes=4):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), size=(members, examples))


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    probs, labels = GOLDEN[f"{name}/probs"].transpose(1, 0, 2), GOLDEN[f"{name}/labels"]  # stored examples first
    mean = diversity.ensemble_mean(probs)

    def value(key):
        return pytest.approx(float(GOLDEN[f"{name}/{key}"]), abs=1e-6)

    np.testing.assert_allclose(mean, GOLDEN[f"{name}/mean_probs"], atol=1e-9)
    np.testing.assert_allclose(diversity.mutual_information(probs), GOLDEN[f"{name}/mutual_information_per_example"], atol=1e-6)
    assert diversity.mutual_information(probs).mean() == value("mutual_information_mean")
    assert diversity.disagreement(probs) == value("disagreement_mean")
    assert diversity.disagreement(probs) == value("pairwise_disagreement")
    assert 1 - diversity.cosine_diversity(probs) == value("pairwise_cosine_similarity")
    if f"{name}/pairwise_kl_i_lt_j" in GOLDEN:
        assert diversity.pairwise_kl(probs) == value("pairwise_kl_i_lt_j")
    else:
        assert math.isfinite(diversity.pairwise_kl(probs))
    assert calibration.nll(mean, labels) == value("ensemble_nll")
    assert calibration.error(mean, labels) == pytest.approx(1 - float(GOLDEN[f"{name}/ensemble_accuracy"]))
    assert calibration.brier(mean, labels) == value("ensemble_brier")
    assert calibration.ece(mean, labels) == value("ensemble_ece15_left_closed")
    assert calibration.entropy(mean).mean() == value("predictive_entropy")
    ratio = float(GOLDEN[f"{name}/pairwise_disagreement"]) / (1 - float(GOLDEN[f"{name}/ensemble_accuracy"]) + 1e-7)
    assert diversity.normalised_disagreement(probs, labels) == pytest.approx(ratio, rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 4))
def test_scipy_and_bounds(seed, members):
    probs = drawn(seed, members)
    pairs = [(a, b) for i, j in combinations(range(members), 2) for a, b in zip(probs[i], probs[j], strict=True)]
    assert diversity.pairwise_kl(probs) == pytest.approx(np.mean([entropy(a, b) for a, b in pairs]), rel=1e-9)
    assert diversity.cosine_diversity(probs) == pytest.approx(np.mean([cosine(a, b) for a, b in pairs]), abs=1e-12)
    assert diversity.disagreement(probs) == pytest.approx(np.mean([a.argmax() != b.argmax() for a, b in pairs]), abs=1e-12)
    information = diversity.mutual_information(probs)
    assert (information >= 0).all()
    assert (information <= min(math.log(members), math.log(4)) + 1e-12).all()
    np.testing.assert_allclose(diversity.mutual_information(probs[:2]), jensenshannon(probs[0], probs[1], axis=1) ** 2, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_order_of_members_and_jensen(seed):
    probs, labels = drawn(seed), np.random.default_rng(seed).integers(0, 4, 12)
    for measure in (diversity.disagreement, diversity.cosine_diversity):
        assert measure(probs[::-1]) == pytest.approx(measure(probs), abs=1e-12)
    mean = diversity.ensemble_mean(probs)
    assert calibration.nll(mean, labels) <= np.mean([calibration.nll(member, labels) for member in probs]) + 1e-12
    assert calibration.brier(mean, labels) <= np.mean([calibration.brier(member, labels) for member in probs]) + 1e-12


def test_extremes():
    one = drawn(0)[:1]
    same = np.repeat(one, 3, axis=0)
    for measure in PAIRWISE:
        assert measure(same) == pytest.approx(0, abs=1e-12)
        assert math.isnan(measure(one))
    assert diversity.mutual_information(same) == pytest.approx(0, abs=1e-12)
    assert (diversity.mutual_information(one) == 0).all()
    opposite = np.eye(3)[:, None, :].repeat(5, axis=1)  # each of three members is sure of a class of its own
    assert diversity.disagreement(opposite) == 1
    assert diversity.cosine_diversity(opposite) == 1
    assert diversity.mutual_information(opposite) == pytest.approx(math.log(3))
    assert diversity.pairwise_kl(opposite) == pytest.approx(-math.log(diversity.KL_FLOOR))
    assert diversity.normalised_disagreement(opposite, np.full(5, 1)) == 1  # the mean is a tie, so class 0, so all are wrong
    assert math.isnan(diversity.normalised_disagreement(opposite, np.zeros(5, int)))
    assert math.isnan(diversity.normalised_disagreement(one, np.zeros(12, int)))


@pytest.mark.parametrize("measure", [*PAIRWISE, diversity.mutual_information, diversity.ensemble_mean])
def test_refuses(measure):
    probs = drawn(0)
    with pytest.raises(ValueError, match=r"must be \(M, N, C\)"):
        measure(probs[0])
    with pytest.raises(ValueError, match=r"must be \(M, N, C\)"):
        measure(probs[:0])
    with pytest.raises(ValueError, match=r"at \(0, 0\) sum to"):
        measure(0.9 * probs)
    with pytest.raises(ValueError, match="is nan"):
        measure(np.where(probs == probs[1, 2, 3], np.nan, probs))


def test_normalised_disagreement_refuses_wrong_labels():
    with pytest.raises(ValueError, match=r"example 0 is 4; should be in 0\.\.3"):
        diversity.normalised_disagreement(drawn(0), np.full(12, 4))

"""Detection of strange examples against golden arrays, scikit-learn, scipy, loops and properties."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import multivariate_normal
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from moebench.metrics import calibration, diversity, ood

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics_ood.npz", allow_pickle=False)
CASES = sorted({key.split("/")[0] for key in GOLDEN})
MEASURES = [ood.auroc, ood.aupr_out, ood.aupr_in, ood.fpr_at_95_tpr]
some_scores = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


def test_every_golden_case_is_there():
    assert CASES == ["all_equal", "coarse_ties", "continuous", "inverted", "separated", "ties", "tiny"]


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    scores = GOLDEN[f"{name}/score_id"], GOLDEN[f"{name}/score_ood"]
    keys = ("auroc", "aupr_average_precision", "aupr_in_average_precision", "fpr95_first_tpr_at_least_95")
    assert [measure(*scores) for measure in MEASURES] == pytest.approx([float(GOLDEN[f"{name}/{key}"]) for key in keys], abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(some_scores, some_scores)
def test_scikit_learn_on_tied_scores(score_id, score_ood):
    label, score = np.array([0] * len(score_id) + [1] * len(score_ood)), np.array(score_id + score_ood)
    assert ood.auroc(score_id, score_ood) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert ood.aupr_out(score_id, score_ood) == pytest.approx(average_precision_score(label, score), abs=1e-12)
    assert ood.aupr_in(score_id, score_ood) == pytest.approx(average_precision_score(1 - label, -score), abs=1e-12)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    assert ood.fpr_at_95_tpr(score_id, score_ood) == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(some_scores, some_scores)
def test_pairs_symmetry_and_monotone_maps(score_id, score_ood):
    wins = np.mean([(b > a) + (b == a) / 2 for a in score_id for b in score_ood])
    assert ood.auroc(score_id, score_ood) == pytest.approx(wins, abs=1e-12)
    assert ood.auroc(score_ood, score_id) == pytest.approx(1 - wins, abs=1e-12)
    for measure in MEASURES:
        value = measure(score_id, score_ood)
        assert 0 <= value <= 1 + 1e-12
        assert measure(np.exp(score_id), np.exp(score_ood)) == pytest.approx(value, abs=1e-12)


def test_larger_is_stranger():
    low, high = np.arange(20.0), np.arange(20.0) + 20
    assert [measure(low, high) for measure in MEASURES] == pytest.approx([1, 1, 1, 0])
    assert ood.auroc(high, low) == 0
    assert ood.fpr_at_95_tpr(high, low) == 1
    # 19 of 20 is exactly 95 %: the one OOD example among the ID ones may be missed
    assert ood.fpr_at_95_tpr(low + 1, np.append(high[1:], 0) + 1) == 0


def test_scores_of_probabilities_and_logits():
    logits = np.random.default_rng(0).normal(size=(7, 5))
    probs = softmax(logits, axis=1)
    np.testing.assert_allclose(ood.max_probability(probs), [1 - max(row) for row in probs])
    np.testing.assert_allclose(ood.max_logit(logits), [-max(row) for row in logits])
    np.testing.assert_allclose(ood.energy(logits), [-math.log(sum(math.exp(v) for v in row)) for row in logits])
    np.testing.assert_allclose(ood.energy(logits + 3), ood.energy(logits) - 3)
    # the largest logit less the log-sum is the logarithm of the largest probability
    np.testing.assert_allclose(np.log(1 - ood.max_probability(probs)), ood.energy(logits) - ood.max_logit(logits))
    assert ood.entropy is calibration.entropy
    assert ood.mutual_information is diversity.mutual_information


def test_every_score_finds_flat_predictions_and_far_features():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    centre = 6 * np.eye(3)
    train, near = (centre[labels] + rng.normal(size=(300, 3)) for _ in range(2))
    far = rng.normal(size=(300, 3)) - 5
    gaussians = ood.fit_gaussians(train, labels)
    for score in (ood.max_logit, ood.energy):
        assert ood.auroc(score(near), score(far)) > 0.95
    assert ood.auroc(ood.max_probability(softmax(near, axis=1)), ood.max_probability(softmax(far, axis=1))) > 0.95
    for distance in (ood.mahalanobis, ood.relative_mahalanobis):
        assert ood.auroc(distance(near, gaussians), distance(far, gaussians)) > 0.95


@pytest.mark.parametrize("width", [2, 6])
def test_mahalanobis_equals_scikit_learn_and_log_densities(width):
    rng = np.random.default_rng(width)
    train, labels, test = rng.normal(size=(60, width)) @ rng.normal(size=(width, width)), np.arange(60) % 3, rng.normal(size=(9, width))
    mean = {k: train[labels == k].mean(axis=0) for k in range(3)}
    gaussians = ood.fit_gaussians(train, labels * 5)  # gaps in the labels are classes without an example
    shared = EmpiricalCovariance(assume_centered=True).fit(train - np.stack([mean[k] for k in labels]))
    nearest = np.min([shared.mahalanobis(test - mean[k]) for k in range(3)], axis=0)
    np.testing.assert_allclose(ood.mahalanobis(test, gaussians), nearest, rtol=1e-9)
    relative = nearest - EmpiricalCovariance().fit(train).mahalanobis(test)
    np.testing.assert_allclose(ood.relative_mahalanobis(test, gaussians), relative, rtol=1e-9)
    background = multivariate_normal(train.mean(axis=0), np.cov(train.T, bias=True))
    log_ratio = [-2 * (multivariate_normal(mean[k], shared.covariance_).logpdf(test) - background.logpdf(test)) for k in range(3)]
    determinants = np.linalg.slogdet(shared.covariance_)[1] - np.linalg.slogdet(background.cov)[1]
    np.testing.assert_allclose(ood.relative_mahalanobis(test, gaussians), np.min(log_ratio, axis=0) - determinants, rtol=1e-6)


def test_mahalanobis_ignores_dead_features_and_any_invertible_map():
    rng = np.random.default_rng(3)
    train, labels, test = rng.normal(size=(40, 4)), np.arange(40) % 2, rng.normal(size=(8, 4))
    mix = rng.normal(size=(4, 4))
    for distance in (ood.mahalanobis, ood.relative_mahalanobis):
        plain = distance(test, ood.fit_gaussians(train, labels))
        np.testing.assert_allclose(distance(test @ mix, ood.fit_gaussians(train @ mix, labels)), plain, rtol=1e-8)
        dead = [np.pad(part, ((0, 0), (0, 1)), constant_values=2.0) for part in (train, test)]
        np.testing.assert_allclose(distance(dead[1], ood.fit_gaussians(dead[0], labels)), plain, rtol=1e-8)


def test_refuses():
    for measure in MEASURES:
        with pytest.raises(ValueError, match="OOD scores must be"):
            measure([1.0], [])
        with pytest.raises(ValueError, match="ID score of example 1 is NaN"):
            measure([0, np.nan], [1])
        with pytest.raises(ValueError, match="ID scores must be"):
            measure([[1.0]], [1.0])
    with pytest.raises(ValueError, match="sum to"):
        ood.max_probability([[0.3, 0.3]])
    for score in (ood.max_logit, ood.energy):
        with pytest.raises(ValueError, match="should be finite"):
            score([[0.0, np.nan]])
    features, labels = np.random.default_rng(0).normal(size=(6, 2)), np.array([0, 0, 0, 1, 1, 1])
    gaussians = ood.fit_gaussians(features, labels)
    for distance in (ood.mahalanobis, ood.relative_mahalanobis):
        with pytest.raises(ValueError, match="D = 2"):
            distance(np.ones((3, 5)), gaussians)
        with pytest.raises(ValueError, match="example 0 is not finite"):
            distance([[np.nan, 0]], gaussians)
    with pytest.raises(ValueError, match="N = 6"):
        ood.fit_gaussians(features, labels[:4])
    with pytest.raises(ValueError, match="do not vary"):
        ood.fit_gaussians(features, np.arange(6))

"""Few-shot evaluation against scikit-learn's ridge regression, the normal equations and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from moebench.metrics import fewshot


def blobs(seed, examples=40, width=6, classes=3, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    return 3 * np.eye(classes, width)[labels] + spread * rng.normal(size=(examples, width)) + 2, labels


def normal_equations(support, labels, test, test_labels, l2, classes):
    """The authors' steps with an inverse in place of the decomposition."""
    mean, std = support.mean(axis=0), support.std(axis=0) + 1e-5
    x, z = (np.c_[(part - mean) / std, np.full(len(part), 100.0)] for part in (support, test))
    y = np.where(np.arange(classes) == labels[:, None], 1.0, -1.0)
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    return np.mean((z @ weights).argmax(axis=1) == test_labels)


@pytest.mark.parametrize("width", [4, 60])  # fewer and more features than examples
def test_normal_equations_and_scikit_learn(width):
    train, labels = blobs(0, width=width, spread=2)
    test, test_labels = blobs(1, examples=200, width=width, spread=2)
    l2 = (0.5, 8.0, 4096.0)
    ours = fewshot.few_shot(train, labels, test, test_labels, shots=(2, 13), l2=l2, seed=5)
    rng = np.random.default_rng(5)
    order = [rng.permutation(np.flatnonzero(labels == c)) for c in range(3)]
    for row, k in zip(ours, (2, 13), strict=True):
        chosen = np.concatenate([indices[:k] for indices in order])
        expected = [normal_equations(train[chosen], labels[chosen], test, test_labels, value, 3) for value in l2]
        assert row.tolist() == pytest.approx(expected, abs=1e-12)
        mean, std = train[chosen].mean(axis=0), train[chosen].std(axis=0) + 1e-5
        for value, accuracy in zip(l2, row, strict=True):
            model = Ridge(alpha=value, fit_intercept=False, solver="svd")
            model.fit(np.c_[(train[chosen] - mean) / std, np.full(len(chosen), 100.0)], 2 * np.eye(3)[labels[chosen]] - 1)
            predicted = model.predict(np.c_[(test - mean) / std, np.full(len(test), 100.0)]).argmax(axis=1)
            assert accuracy == pytest.approx((predicted == test_labels).mean(), abs=1e-12)


def test_protocol_of_the_authors():
    assert fewshot.SHOTS == (1, 5, 10, 25)
    assert fewshot.BIAS == 100
    assert len(fewshot.L2) == 30
    assert (fewshot.L2[0], fewshot.L2[-1]) == (2**-10, 2**19)
    train, labels = blobs(0, examples=90)
    assert fewshot.few_shot(train, labels, *blobs(1)).shape == (4, 30)


def test_separable_classes_are_learnt_from_one_example_and_noise_is_chance():
    # every feature tells classes apart: one that does not is noise blown up by the standardisation
    train, labels = blobs(0, width=3, spread=0.01)
    test, test_labels = blobs(1, examples=300, width=3, spread=0.01)
    assert (fewshot.few_shot(train, labels, test, test_labels, shots=(1, 5), l2=(1.0,)) == 1).all()
    noise = np.random.default_rng(2).normal(size=(3000, 6))
    chance = fewshot.few_shot(noise[:60], np.arange(60) % 3, noise[60:], np.arange(2940) % 3, shots=(10,), l2=(1.0,))
    assert chance[0, 0] == pytest.approx(1 / 3, abs=0.05)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_and_place_of_features_do_not_matter(seed, scale, shift):
    train, labels = blobs(seed, spread=2)
    test, test_labels = blobs(seed + 1, spread=2)
    arguments = {"shots": (5,), "l2": (1.0, 64.0), "seed": seed}
    plain = fewshot.few_shot(train, labels, test, test_labels, **arguments)
    moved = fewshot.few_shot(scale * train + shift, labels, scale * test + shift, test_labels, **arguments)
    assert abs(plain - moved).max() <= 1 / len(test) + 1e-12  # 1e-5 on the deviation may turn an example that is nearly a tie


def test_seed_decides_and_shots_are_nested():
    train, labels = blobs(0, spread=3)
    test = blobs(1, examples=300, spread=3)
    both = fewshot.few_shot(train, labels, *test, shots=(1, 5), seed=0)
    np.testing.assert_array_equal(both, fewshot.few_shot(train, labels, *test, shots=(1, 5), seed=0))
    np.testing.assert_array_equal(both[1:], fewshot.few_shot(train, labels, *test, shots=(5,), seed=0))
    assert (both != fewshot.few_shot(train, labels, *test, shots=(1, 5), seed=1)).any()


def test_best_penalty_is_best_on_average_over_sets():
    a, b = [[0.1, 0.9, 0.8]], [[0.1, 0.2, 0.7]]
    assert fewshot.best_l2({"a": a}).tolist() == [1]
    assert fewshot.best_l2({"b": b}).tolist() == [2]
    assert fewshot.best_l2({"a": a, "b": b}).tolist() == [1]  # ranks 0 2 1 and 0 1 2: means 0, 1.5, 1.5; the first wins
    assert fewshot.best_l2({"a": a, "b": b, "c": b}).tolist() == [2]
    assert fewshot.best_l2({"a": [[0.5, 0.5, 0.4], [0.1, 0.1, 0.2]]}).tolist() == [1, 2]  # among equals the larger penalty ranks higher


def test_refuses():
    train, labels = blobs(0)
    test, test_labels = blobs(1)
    for arguments, message in [
        ((train[0], labels, test, test_labels), "training features must be"),
        ((train, labels, np.empty((0, 6)), test_labels), "test features must be"),
        ((train, labels, test[:, :2], test_labels), "2 wide; should be 6"),
        ((np.where(train == train[3, 0], np.nan, train), labels, test, test_labels), "training feature of example 3 is not finite"),
        ((train, labels[:5], test, test_labels), "training labels must be 40 integers"),
        ((train, labels * 1.0, test, test_labels), "type float64"),
        ((train, labels, test, test_labels + 1), "test labels reach 3; should be in 0..2"),
        ((train, labels, test, test_labels), "class 1 has 13 training examples; should be 25 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            fewshot.few_shot(*arguments)
    with pytest.raises(ValueError, match="shots has the value"):
        fewshot.few_shot(train, labels, test, test_labels, shots=(0,))
    with pytest.raises(ValueError, match="l2 has the value"):
        fewshot.few_shot(train, labels, test, test_labels, shots=(1,), l2=(0.0,))
    for accuracies in ({}, {"a": [0.5]}, {"a": [[0.5]], "b": [[0.5, 0.5]]}):
        with pytest.raises(ValueError, match="accuracies must be"):
            fewshot.best_l2(accuracies)

"""Few-shot linear evaluation of frozen features: ridge regression on k examples a class, in closed form.

N training examples, T test examples, D features, C classes, S numbers of shots, L regularisations, K support examples (k a class).
The protocol is that of V-MoE's code (`vmoe/evaluate/fewshot.py`), which E^3 (arXiv 2110.03360) shares; ours is in float64.
For an ensemble the features are those of its members side by side, (N, M * D), as in uncertainty-baselines; V-MoE's code leaves it open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

SHOTS = (1, 5, 10, 25)
"""Examples a class."""

L2 = tuple(2.0**exponent for exponent in range(-10, 20))
"""Ridge penalties of the authors: 2^-10 .. 2^19."""

BIAS = 100.0
"""The constant feature that stands for the bias: so large that the penalty hardly reaches its weight."""

STD_FLOOR = 1e-5
"""Added to each feature's standard deviation."""


def few_shot(
    train_ND: ArrayLike,
    train_labels_N: ArrayLike,
    test_TD: ArrayLike,
    test_labels_T: ArrayLike,
    shots: Sequence[int] = SHOTS,
    l2: Sequence[float] = L2,
    seed: int = 0,
) -> np.ndarray:
    """Test accuracy of ridge regression for each number of shots and each penalty, (S, L), in 0..1; higher is better.

    1. The support set is the first k of a random permutation of each class's examples; so 1 shot is part of 5 shots of the same seed.
    2. Features are standardised by the mean and the population standard deviation (+ 1e-5) of the *support set*, not of all training data.
    3. The constant 100 is appended as bias; the targets are +1 for the label and -1 for every other class.
    4. W = argmin |X W - Y|^2 + l2 |W|^2, sums and not means; the prediction is the class of largest output, the lowest index among equals.

    Which penalty to report is `best_l2`'s matter.

    Args:
        train_ND: features to draw the support sets from.
        train_labels_N: labels 0..C - 1; C is the largest of them plus 1.
        test_TD: features to predict.
        test_labels_T: their labels.
        shots: examples a class.
        l2: penalties, each above 0.
        seed: of `numpy.random.default_rng`, which permutes the classes in turn.

    Returns:
        Accuracies (S, L).

    Raises:
        ValueError: features not finite, empty, not matrices or of different widths; labels not integers in range, one an example; a class
            with fewer examples than shots (the authors' code then takes what there is); shots below 1; penalties not above 0.
    """
    train_ND, test_TD = _features(train_ND, "training"), _features(test_TD, "test")
    if train_ND.shape[1] != test_TD.shape[1]:
        raise ValueError(f"test features are {test_TD.shape[1]} wide; should be {train_ND.shape[1]}, as in training")
    train_labels_N = _labels(train_labels_N, len(train_ND), "training")
    classes = int(train_labels_N.max()) + 1
    test_labels_T = _labels(test_labels_T, len(test_TD), "test")
    if test_labels_T.max() >= classes:
        raise ValueError(f"test labels reach {test_labels_T.max()}; should be in 0..{classes - 1}, the classes of training")
    if not shots or min(shots) < 1:
        raise ValueError(f"shots has the value {tuple(shots)}; should be numbers of examples, 1 or more")
    if not l2 or not all(0 < value < np.inf for value in l2):
        raise ValueError(f"l2 has the value {tuple(l2)}; should be finite numbers above 0")
    count_C = np.bincount(train_labels_N)
    if count_C.min() < max(shots):
        raise ValueError(
            f"class {count_C.argmin()} has {count_C.min()} training examples; should be {max(shots)} or more for shots {tuple(shots)}"
        )

    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(np.flatnonzero(train_labels_N == c)) for c in range(classes)]
    support = [np.concatenate([examples[:k] for examples in shuffled]) for k in shots]
    return np.stack([_accuracies(train_ND[some], train_labels_N[some], test_TD, test_labels_T, l2) for some in support])


def best_l2(accuracies: Mapping[str, ArrayLike]) -> np.ndarray:
    """For each number of shots, the position of the penalty whose rank, averaged over data sets, is best, (S,).

    The authors choose one penalty a number of shots for all data sets, **by test accuracy**: slightly optimistic, and dependent on which
    sets take part. To report a set without having chosen on it, leave it out of `accuracies`. Among equal accuracies the larger penalty
    ranks higher, as a stable sort has it; among equal mean ranks the smaller penalty wins.

    Args:
        accuracies: what `few_shot` returned for each data set (and seed), with the same shots and penalties.

    Raises:
        ValueError: no data set, or shapes that differ or are not (S, L).
    """
    table = {name: np.asarray(value, dtype=np.float64) for name, value in accuracies.items()}
    shapes = {name: value.shape for name, value in table.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        raise ValueError(f"accuracies must be (S, L), the same for every data set, and of one data set at least; their shapes are {shapes}")
    rank_SL = np.mean([value.argsort(axis=1, kind="stable").argsort(axis=1) for value in table.values()], axis=0)
    return rank_SL.argmax(axis=1)


def _accuracies(support_KD: np.ndarray, labels_K: np.ndarray, test_TD: np.ndarray, labels_T: np.ndarray, l2: Sequence[float]) -> np.ndarray:
    mean_D, std_D = support_KD.mean(axis=0), support_KD.std(axis=0) + STD_FLOOR

    def standardised(features: np.ndarray) -> np.ndarray:
        return np.pad((features - mean_D) / std_D, ((0, 0), (0, 1)), constant_values=BIAS)

    target_KC = 2 * np.eye(labels_K.max() + 1)[labels_K] - 1
    # X = U s V^T, so W = V diag(s / (s^2 + l2)) U^T Y: one decomposition for all penalties
    left_KR, s_R, right_RD = np.linalg.svd(standardised(support_KD), full_matrices=False)
    test_TR, target_RC = standardised(test_TD) @ right_RD.T, left_KR.T @ target_KC
    return np.array([((test_TR * (s_R / (s_R**2 + value))) @ target_RC).argmax(axis=1) == labels_T for value in l2]).mean(axis=1)


def _features(features: ArrayLike, of: str) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{of} features must be (examples, width), none of them 0; their shape is {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"a {of} feature of example {int(np.argwhere(~np.isfinite(features))[0][0])} is not finite")
    return features


def _labels(labels: ArrayLike, examples: int, of: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (examples,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"{of} labels must be {examples} integers >= 0, one an example; their shape is {labels.shape}, type {labels.dtype}"
        )
    return labels

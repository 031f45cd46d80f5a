"""Shallow baselines of image classification: what scikit-learn makes of the pixels of the same training images.

N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from moebench.data.images import ImageSet


def logistic_regression(train: ImageSet, test: ImageSet) -> dict[str, np.ndarray]:
    """Multinomial logistic regression on pixels in 0..1, scikit-learn's L2 penalty (C = 1): ``probabilities`` (N, C)."""
    model = LogisticRegression(max_iter=2000).fit(_pixels(train), train.labels)
    probs_NC = np.zeros((len(test), len(test.classes)))
    probs_NC[:, model.classes_] = model.predict_proba(_pixels(test))
    return {"probabilities": probs_NC}


def svm(train: ImageSet, test: ImageSet) -> dict[str, np.ndarray]:
    """Support vectors with a Gaussian kernel on pixels in 0..1, scikit-learn's width and C = 1: ``predictions`` (N,), no probabilities."""
    return {"predictions": SVC().fit(_pixels(train), train.labels).predict(_pixels(test))}


BASELINES: dict[str, Callable[[ImageSet, ImageSet], dict[str, np.ndarray]]] = {"logistic_regression": logistic_regression, "svm": svm}


def _pixels(images: ImageSet) -> np.ndarray:
    return images.images[:].reshape(len(images), -1) / 255

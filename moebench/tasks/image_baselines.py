"""Shallow baselines of image classification: what scikit-learn makes of the pixels of the same training images.

N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from moebench.data.images import ImageSet
from moebench.metrics import calibration
from moebench.tasks import uncertainty


def logistic_regression(train: ImageSet, test: ImageSet) -> dict[str, float]:
    """Multinomial logistic regression on pixels in 0..1, scikit-learn's L2 penalty (C = 1): accuracy in percent, NLL, Brier and ECE."""
    model = LogisticRegression(max_iter=2000).fit(_pixels(train), train.labels)
    probs_NC = np.zeros((len(test), len(test.classes)))
    probs_NC[:, model.classes_] = model.predict_proba(_pixels(test))
    return {
        "accuracy": 100 * (1 - calibration.error(probs_NC, test.labels)),
        "nll": calibration.nll(probs_NC, test.labels, uncertainty.FLOOR),
        "brier": calibration.brier(probs_NC, test.labels),
        "ece": calibration.ece(probs_NC, test.labels),
    }


def svm(train: ImageSet, test: ImageSet) -> dict[str, float]:
    """Support vectors with a Gaussian kernel on pixels in 0..1, scikit-learn's width and C = 1: accuracy in percent; no probabilities."""
    model = SVC().fit(_pixels(train), train.labels)
    return {"accuracy": 100 * float((model.predict(_pixels(test)) == test.labels).mean())}


BASELINES: dict[str, Callable[[ImageSet, ImageSet], dict[str, float]]] = {"logistic_regression": logistic_regression, "svm": svm}


def _pixels(images: ImageSet) -> np.ndarray:
    return images.images[:].reshape(len(images), -1) / 255

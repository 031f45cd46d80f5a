"""Shallow baselines of images on sets whose answer is known."""

import numpy as np
import pytest

from moebench.data.images import ImageSet
from moebench.protocols.vision.scoring import quality
from moebench.protocols.vision.shallow import BASELINES


def pictures(count, seed, label_of=lambda bright: bright):
    """Noise with one bright quarter of four."""
    rng = np.random.default_rng(seed)
    bright = rng.integers(4, size=count)
    images = rng.integers(0, 60, size=(count, 4, 4, 1))
    for image, at in zip(images, bright, strict=True):
        image[at] += 180
    return ImageSet(images.astype(np.uint8), np.array([label_of(at) for at in bright], np.int64), tuple("abcd"))


def accuracy(name, train, test):
    """In percent."""
    found = BASELINES[name](train, test)
    predictions = found["predictions"] if "predictions" in found else found["probabilities"].argmax(1)
    return 100 * (predictions == test.labels).mean()


@pytest.mark.parametrize("name", BASELINES)
def test_what_pixels_tell_is_learned_and_what_they_do_not_is_not(name):
    assert accuracy(name, pictures(200, 0), pictures(100, 1)) == 100
    rng = np.random.default_rng(2)
    assert 10 < accuracy(name, pictures(200, 0, lambda at: rng.integers(4)), pictures(400, 1)) < 40


def test_a_class_without_training_images_gets_no_probability():
    test = pictures(100, 1)
    probs = BASELINES["logistic_regression"](pictures(200, 0, lambda at: min(at, 2)), test)["probabilities"]
    assert probs.shape == (100, 4)
    assert (probs[:, 3] == 0).all()
    measured = quality(probs[None], test.labels)
    share = 100 * np.mean(test.labels == 3)
    assert measured["accuracy"] == pytest.approx(100 - share)
    assert measured["nll"] == pytest.approx(share / 100 * 87.34, abs=0.5)  # the floor of probabilities, ln of the smallest float32

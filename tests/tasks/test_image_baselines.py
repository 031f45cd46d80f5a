"""Shallow baselines of images on sets whose answer is known."""

import numpy as np
import pytest

from moebench.data.images import ImageSet
from moebench.tasks.image_baselines import BASELINES


def pictures(count, seed, label_of=lambda bright: bright):
    """Noise with one bright quarter of four."""
    rng = np.random.default_rng(seed)
    bright = rng.integers(4, size=count)
    images = rng.integers(0, 60, size=(count, 4, 4, 1))
    for image, at in zip(images, bright, strict=True):
        image[at] += 180
    return ImageSet(images.astype(np.uint8), np.array([label_of(at) for at in bright], np.int64), tuple("abcd"))


@pytest.mark.parametrize("name", BASELINES)
def test_what_pixels_tell_is_learned_and_what_they_do_not_is_not(name):
    assert BASELINES[name](pictures(200, 0), pictures(100, 1))["accuracy"] == 100
    rng = np.random.default_rng(2)
    chance = BASELINES[name](pictures(200, 0, lambda at: rng.integers(4)), pictures(400, 1))["accuracy"]
    assert 10 < chance < 40


def test_a_class_without_training_images_gets_no_probability():
    measured = BASELINES["logistic_regression"](pictures(200, 0, lambda at: min(at, 2)), pictures(100, 1))
    share = 100 * np.mean(pictures(100, 1).labels == 3)
    assert measured["accuracy"] == pytest.approx(100 - share)
    assert measured["nll"] == pytest.approx(share / 100 * 87.34, abs=0.5)  # the floor of probabilities, ln of the smallest float32

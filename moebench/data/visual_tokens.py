"""Discrete visual tokens: k-means on patches of images.

N images, H height, W width, C channels, P side of a patch, T = (H / P) (W / P) patches of an image, D = P P C pixels of a patch, M patches,
U different ones, K entries of the codebook.

BEiT-3 masks the tokens of BEiT v2's VQ-KD tokenizer, which was distilled from CLIP and is not to be had here. K-means is what a vector
quantiser without an encoder comes to, and needs no training schedule of its own: seconds on a CPU, deterministic, and its tokens can be
looked at. They say what a patch looks like and nothing of what it means, which VQ-KD's are meant to.

Grey levels are integers and so are the entries, rounded means. Every sum below is therefore exact in float64 whatever its order, so the
same patches and seed give the same bytes on any machine, with any number of threads, and in any order of the patches.
"""

from __future__ import annotations

import numpy as np

from moebench.data.images import AT_ONCE, Images
from moebench.data.sampling import Draws
from moebench.errors import MoebenchError

ITERATIONS = 100
"""At most so many; rounded means may go round in circles."""
DISTANCES = 1 << 22
"""So many are in memory together."""


def patches(images: np.ndarray, side: int) -> np.ndarray:
    """Cut images (N, H, W, C) into patches, row by row, (N, T, D) uint8; a pixel's channels are neighbours.

    Raises:
        MoebenchError: the images cannot be cut into such patches.
    """
    count, height, width, channels = images.shape
    if side < 1 or height % side or width % side:
        raise MoebenchError(f"patches of {side} x {side} pixels; should divide the images' {height} x {width}")
    cut = images.reshape(count, height // side, side, width // side, side, channels)
    return cut.swapaxes(2, 3).reshape(count, (height // side) * (width // side), side * side * channels)


def nearest(points_MD: np.ndarray, codebook_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest entry to each point, the first of equals, (M,) int64, and the squared distance to it, (M,) int64.

    Both are whole numbers from 0 to 255; distances are exact.
    """
    entries_DK = codebook_KD.T.astype(np.float64)
    square_K = (entries_DK**2).sum(axis=0)
    ids_M, distance_M = np.empty(len(points_MD), np.int64), np.empty(len(points_MD), np.int64)
    step = max(1, DISTANCES // len(codebook_KD))
    for begin in range(0, len(points_MD), step):
        some_MD = points_MD[begin : begin + step].astype(np.float64)
        distance_MK = square_K - 2 * (some_MD @ entries_DK)
        ids_M[begin : begin + step] = ids = distance_MK.argmin(axis=1)
        distance_M[begin : begin + step] = distance_MK[np.arange(len(ids)), ids] + (some_MD**2).sum(axis=1)
    return ids_M, distance_M


def train(patches_MD: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Lloyd's iterations from a k-means++ start, until nothing changes; an entry that nothing is nearest to becomes the farthest patch.

    Args:
        patches_MD: uint8, as `patches` cuts them, without the axis of images.
        size: K.
        seed: of the start.

    Returns:
        The codebook (K, D) uint8.

    Raises:
        MoebenchError: fewer different patches than entries.
    """
    points_UD, weight_U = np.unique(patches_MD, axis=0, return_counts=True)
    if not 1 <= size <= len(points_UD):
        raise MoebenchError(f"a codebook of {size} entries; should be 1 to {len(points_UD)}, the number of different patches")
    codebook_KD = _start(points_UD, weight_U, size, Draws(seed, "visual tokens"))
    for _ in range(ITERATIONS):
        ids_U, distance_U = nearest(points_UD, codebook_KD)
        count_K = np.bincount(ids_U, weights=weight_U, minlength=size).astype(np.int64)
        sum_KD = np.stack(
            [np.bincount(ids_U, weights=weight_U * pixel_U, minlength=size) for pixel_U in points_UD.T.astype(np.int64)], axis=1
        )
        times_K1 = np.maximum(count_K, 1)[:, None]
        new_KD = ((2 * sum_KD.astype(np.int64) + times_K1) // (2 * times_K1)).astype(np.uint8)
        empty = np.flatnonzero(count_K == 0)
        new_KD[empty] = points_UD[np.argsort(-distance_U, kind="stable")[: len(empty)]]
        if np.array_equal(new_KD, codebook_KD):
            break
        codebook_KD = new_KD
    return codebook_KD


def _start(points_UD: np.ndarray, weight_U: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii, 2007): each entry is a patch, drawn in proportion to its squared distance to those before."""
    chosen: list[int] = []
    distance_U = np.ones(len(points_UD), np.int64)
    for _ in range(size):
        ends_U = (weight_U * distance_U).cumsum()
        chosen.append(int(np.searchsorted(ends_U, int(draws.below(1 << 31, 1)[0]) * int(ends_U[-1]) >> 31, side="right")))
        apart_U = nearest(points_UD, points_UD[chosen[-1:]])[1]
        distance_U = apart_U if len(chosen) == 1 else np.minimum(distance_U, apart_U)
    return points_UD[chosen]


def encode(images: Images, codebook_KD: np.ndarray, patch: int) -> np.ndarray:
    """Tokens of images, (N, T) int64: the nearest entry of the codebook to each patch, the first of equals.

    Args:
        images: (N, H, W, C) uint8.
        codebook_KD: uint8, of patches with as many channels.
        patch: P.

    Raises:
        MoebenchError: the images cannot be cut into such patches, or the codebook's are of another size.
    """
    ids = []
    for begin in range(0, len(images), AT_ONCE):
        cut_NTD = patches(images[begin : begin + AT_ONCE], patch)
        if cut_NTD.shape[2] != codebook_KD.shape[1]:
            raise MoebenchError(f"patches of {cut_NTD.shape[2]} pixels; should have {codebook_KD.shape[1]}, as the codebook's")
        ids.append(nearest(cut_NTD.reshape(-1, cut_NTD.shape[2]), codebook_KD)[0].reshape(cut_NTD.shape[:2]))
    return np.concatenate(ids)


def reconstruct(ids_NT: np.ndarray, codebook_KD: np.ndarray, patch: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Images (N, H, W, C) uint8 of the tokens' entries; ``shape`` is (H, W, C)."""
    height, width, channels = shape
    tiles = codebook_KD[ids_NT].reshape(-1, height // patch, width // patch, patch, patch, channels)
    return tiles.swapaxes(2, 3).reshape(-1, height, width, channels)

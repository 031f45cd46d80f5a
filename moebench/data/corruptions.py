"""Nine corruptions of images at severities 1 to 5, with constants of our own: not CIFAR-10-C's, nor comparable with it.

N images, H height, W width, C channels; grey values are 0 to 255. Lengths are pixels of a 28 x 28 image: larger images suffer less.

The kinds are those of Hendrycks and Dietterich (arXiv 1903.12261) that make sense for small grey images. The same input, severity and seed
give the same bytes on any machine: draws are PCG64's raw output, noise is read off tables of quantiles, and what is summed is exact in
float64 or has no ties to round.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from scipy import ndimage, special

from moebench.data.image_settings import OURS
from moebench.errors import MoebenchError, nearest

SEVERITIES = range(1, 6)
UNIFORM = 1 << 16
"""Random numbers are integers below this."""

GAUSSIAN_DEVIATION = (20, 36, 54, 76, 102)
SHOT_PHOTONS = (20, 10, 5, 3, 2)
"""Expected number of photons of a white pixel."""
IMPULSE_SHARE = (0.03, 0.07, 0.12, 0.19, 0.28)
"""Share of pixels that turn black or white."""
DEFOCUS_RADIUS = (1.0, 1.5, 2.0, 2.6, 3.3)
MOTION_LENGTH = (3, 5, 7, 9, 11)
"""Odd, so that nothing is shifted."""
PIXEL_SIDE = (2, 3, 4, 5, 7)
ELASTIC_SHIFT = (0.6, 0.9, 1.2, 1.6, 2.0)
"""Standard deviation of the shift, in each direction."""
ELASTIC_SMOOTHNESS = 4.0
CONTRAST_KEPT = (0.6, 0.45, 0.35, 0.25, 0.18)
BRIGHTNESS_ADDED = (25, 50, 75, 100, 125)

Uniform = Callable[..., np.ndarray]
"""Shape → integers below `UNIFORM`; a next call gives others."""


def corrupt(images: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Return ``images`` corrupted: (N, H, W, C) uint8, as given.

    Args:
        images: (N, H, W, C) uint8, black 0.
        name: a key of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: together with name and severity decides every draw; the first images get the same draws whether or not others follow.

    Raises:
        MoebenchError: unknown name or severity, or images of another type or shape.
    """
    if name not in CORRUPTIONS:
        raise MoebenchError(f"unknown corruption {name!r}{nearest(name, CORRUPTIONS)}; corruptions are: {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise MoebenchError(f"corruption {name!r}: severity {severity!r}; should be 1 to 5")
    if images.ndim != 4 or images.dtype != np.uint8:
        raise MoebenchError(f"images are {images.dtype} of shape {images.shape}; should be uint8 (N, H, W, C)")
    if not images.size:
        return images.copy()
    bits = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode()), severity]))

    def uniform(*shape: int) -> np.ndarray:
        return (bits.random_raw(int(np.prod(shape))) >> 48).astype(np.int64).reshape(shape)

    values = CORRUPTIONS[name](images.astype(np.float64), severity - 1, uniform)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def gaussian_noise(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Normal noise of the same deviation everywhere."""
    return images + GAUSSIAN_DEVIATION[level] * _normal(uniform(*images.shape))


def shot_noise(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Poisson noise: a pixel is the number of its photons; black stays black."""
    photons = SHOT_PHOTONS[level]
    draws, noisy = uniform(*images.shape), np.empty_like(images)
    counts = np.arange(photons * 5 + 20)
    for value in np.unique(images):
        mine = images == value
        below = np.rint(special.pdtr(counts, value / 255 * photons) * UNIFORM)
        noisy[mine] = np.searchsorted(below, draws[mine], side="right") * 255 / photons
    return noisy


def impulse_noise(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Salt and pepper, alike in all channels of a pixel."""
    draws = uniform(*images.shape[:3], 1)
    hit = round(IMPULSE_SHARE[level] * UNIFORM)
    return np.where(draws < hit, np.where(draws < hit // 2, 0.0, 255.0), images)


def defocus_blur(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Mean over a disk, whose edge counts a pixel by the part that it covers (in 64ths)."""
    radius, fine = DEFOCUS_RADIUS[level], 8
    reach = int(np.ceil(radius))
    at = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = at[:, None] ** 2 + at**2 <= radius**2
    return _mean(images, inside.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).sum((1, 3)))


def motion_blur(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Mean along a diagonal, from top left to bottom right."""
    return _mean(images, np.eye(MOTION_LENGTH[level]))


def pixelate(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Every square takes its mean; squares at the right and bottom edge may be cut off."""
    side = PIXEL_SIDE[level]
    (_, height, width, _), counts = images.shape, np.ones_like(images[:1])
    for axis, length in ((1, height), (2, width)):
        starts = np.arange(0, length, side)
        images, counts = np.add.reduceat(images, starts, axis), np.add.reduceat(counts, starts, axis)
    means = images / counts
    return means.repeat(side, 1)[:, :height].repeat(side, 2)[:, :, :width]


def elastic(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Every image is bent by a smooth random field of its own; beyond its edge lies its edge."""
    count, height, width, _ = images.shape
    rough = _normal(uniform(count, 2, height, width))
    # Smoothing white noise by a Gaussian of deviation s leaves 1 / (2 s sqrt(pi)) of its deviation.
    scale = ELASTIC_SHIFT[level] * 2 * ELASTIC_SMOOTHNESS * np.sqrt(np.pi)
    field = scale * ndimage.gaussian_filter(rough, ELASTIC_SMOOTHNESS, axes=(2, 3), mode="wrap")
    # To 256ths of a pixel, so that what follows is exact.
    field = np.rint(field * 256) / 256
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    bent = np.empty_like(images)
    for image, (down, right), out in zip(images, field, bent, strict=True):
        for channel in range(image.shape[-1]):
            out[..., channel] = ndimage.map_coordinates(image[..., channel], (rows + down, columns + right), order=1, mode="nearest")
    return bent


def contrast(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Grey values move towards the image's mean, taken as a whole number."""
    mean = np.rint(images.mean(axis=(1, 2, 3), keepdims=True))
    return mean + CONTRAST_KEPT[level] * (images - mean)


def brightness(images: np.ndarray, level: int, uniform: Uniform) -> np.ndarray:
    """Every pixel is lighter by the same amount, up to white."""
    return images + BRIGHTNESS_ADDED[level]


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, Uniform], np.ndarray]] = {name: globals()[name] for name in OURS}
"""Name → function of images (N, H, W, C) float64, severity - 1 and a source of draws; `corrupt` rounds and clips what it returns."""


def _normal(draws: np.ndarray) -> np.ndarray:
    """Standard normal numbers in 1024ths, by their quantiles."""
    return (np.rint(special.ndtri((np.arange(UNIFORM) + 0.5) / UNIFORM) * 1024) / 1024)[draws]


def _mean(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over a neighbourhood, by whole-number weights (h, w); the image is mirrored at its edge."""
    total = ndimage.correlate(images, weights[None, :, :, None].astype(np.float64), mode="reflect")
    return total / weights.sum()

"""Fifteen common corruptions of images: Hendrycks & Dietterich 2019 (arXiv 1903.12261), appendix B.

Each maps pixel values (S, S, 3) float32 in 0 .. 1, given its strength parameters c and a generator, to the same shape
and range. Strengths are the paper's, for five severities, in two sets: for images of 32 and of 224 pixels; for other
sizes see `strength`. This is an independent implementation; docstrings name all deviations from the paper.
"""

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.float32]
Corruption = Callable[[Pixels, Sequence[float], np.random.Generator], Pixels]

SMALL, LARGE = 32, 224
"""Image sides, in pixels, for which the two sets of strengths are meant."""


def gaussian_noise(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Normal noise of standard deviation c0."""
    return _clipped(x + rng.normal(scale=c[0], size=x.shape))


def shot_noise(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Poisson noise of a sensor that counts c0 photons at full brightness."""
    return _clipped(rng.poisson(x * c[0]) / c[0])


def impulse_noise(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """A share c0 of all values becomes 0 or 1."""
    drawn = rng.random(x.shape)
    return _clipped(np.where(drawn < c[0] / 2, 0.0, np.where(drawn < c[0], 1.0, x)))


def defocus_blur(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Convolution with a disk of radius c0 pixels, whose edge is blurred with standard deviation c1."""
    reach = max(2, math.ceil(c[0] + 3 * c[1]))
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # Antialiased: the value falls from 1 to 0 over one pixel at the radius.
    disk = np.clip(c[0] + 0.5 - np.hypot(down, right), 0, 1)
    return _convolved(x, ndimage.gaussian_filter(disk, c[1]))


def glass_blur(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Gaussian blur of c0; then c2 times, all pixels move by up to c1; then the same blur again.

    The paper swaps neighbours one after the other; here all pixels move at once, which looks the same.
    """
    side, glass = x.shape[0], ndimage.gaussian_filter(x, (c[0], c[0], 0))
    for _ in range(max(1, round(c[2]))):
        moved = np.indices((side, side)) + np.rint(rng.uniform(-c[1], c[1], (2, side, side))).astype(int)
        down, right = np.clip(moved, 0, side - 1)
        glass = glass[down, right]
    return _clipped(ndimage.gaussian_filter(glass, (c[0], c[0], 0)))


def motion_blur(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Mean along a line of c0 pixels, within 45 degrees of horizontal; Gaussian weights of standard deviation c1."""
    return _clipped(_streaked(x, c[0], c[1], rng.uniform(-45, 45)))


def zoom_blur(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """The mean of the image and eleven enlarged views, with factors from 1 to c0."""
    views = [x.astype(np.float64)]
    for factor in np.linspace(1, c[0], 11):
        views.append(_enlarged(x, float(factor)))
    return _clipped(np.mean(views, axis=0))


def snow(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Flakes over the image, which is whitened by 1 - c5.

    Flakes are normal noise of mean c0 and standard deviation c1, enlarged c2 times, set to 0 below c3, and blurred
    along a falling line of c4 pixels.
    """
    side = x.shape[0]
    coarse = rng.normal(c[0], c[1], [math.ceil(side / c[2]) + 1] * 2)
    flakes = ndimage.zoom(coarse, c[2], order=1)[:side, :side]
    flakes = np.clip(np.where(flakes < c[3], 0, flakes), 0, 1)[..., None]
    flakes = _streaked(flakes, c[4], c[4] / 2, rng.uniform(-135, -45))
    grey = x @ np.array([0.299, 0.587, 0.114])  # luma weights of ITU-R BT.601
    whitened = c[5] * x + (1 - c[5]) * np.maximum(x, (1.5 * grey + 0.5)[..., None])
    return _clipped(whitened + flakes + flakes[::-1, ::-1])


def frost(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """c0 times the image plus c1 times ice.

    The paper overlays photographs of frost; here the ice is generated: bluish white ridges of cloud noise.
    """
    side = x.shape[0]
    # The level lines of a cloud at its mid value are thin and branched: |2 cloud - 1| is 0 along them.
    ridges = np.zeros((side, side))
    for decay, weight in ((1.0, 0.5), (1.4, 0.5)):
        cloud = _cloud(side, decay, rng)
        ridges += weight * (1 - np.abs(2 * cloud - 1)) ** 4
    cover = np.clip(0.35 + ridges - 0.5 * _cloud(side, 2.0, rng), 0, 1)
    ice = cover[..., None] * np.array([0.86, 0.93, 1.0])
    return _clipped(c[0] * x + c[1] * ice)


def fog(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """The image plus c0 times a cloud, rescaled to the same maximum; the cloud is smoother for larger c1.

    The cloud is noise whose amplitude falls with frequency; the paper uses the diamond-square algorithm.
    """
    top = float(x.max())
    foggy = x + c[0] * _cloud(x.shape[0], c[1], rng)[..., None]
    return _clipped(foggy * top / (top + c[0]))


def brightness(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """The largest channel of each pixel raised by c0; hue and saturation are unchanged."""
    # Scaling all channels by one factor changes only V of HSV.
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + c[0], 1)
    return _clipped(np.where(value > 0, x * raised / np.maximum(value, 1e-6), raised))


def contrast(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Differences from each channel's mean, multiplied by c0."""
    mean = x.mean(axis=(0, 1), keepdims=True, dtype=np.float64)
    return _clipped(mean + c[0] * (x - mean))


def elastic_transform(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """A smooth displacement field: root mean square c0 times the side, smoothed over c1 times the side.

    The strengths are ours: the paper's change the form of the distortion and do not grow with severity.
    """
    side = x.shape[0]
    moved = rng.uniform(-1, 1, (2, side, side))
    moved = np.stack([ndimage.gaussian_filter(axis, c[1] * side, mode="reflect") for axis in moved])
    # Smoothing shrinks the random field; scale it back to the stated root mean square.
    moved *= c[0] * side / max(float(np.sqrt((moved**2).mean())), 1e-12)
    places = np.indices((side, side)) + moved
    channels = [ndimage.map_coordinates(x[..., channel], places, order=1, mode="reflect") for channel in range(3)]
    return _clipped(np.stack(channels, axis=2))


def pixelate(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Shrunk to c0 times its side, and enlarged again."""
    side = x.shape[0]
    small = max(1, round(side * c[0]))
    shrunk = _picture(x).resize((small, small), Image.Resampling.BOX)
    return _pixels(shrunk.resize((side, side), Image.Resampling.NEAREST))


def jpeg_compression(x: Pixels, c: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Saved as a JPEG file of quality c0, and decoded again."""
    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=round(c[0]))
    return _pixels(Image.open(file))


Strengths = Sequence[Sequence[float]]
"""Parameters c for the severities 1 to 5."""

CORRUPTIONS: dict[str, tuple[Corruption, Strengths, Strengths]] = {
    "gaussian_noise": (
        gaussian_noise,
        [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)],
        [(0.08,), (0.12,), (0.18,), (0.26,), (0.38,)],
    ),
    "shot_noise": (
        shot_noise,
        [(500,), (250,), (100,), (75,), (50,)],
        [(60,), (25,), (12,), (5,), (3,)],
    ),
    "impulse_noise": (
        impulse_noise,
        [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)],
        [(0.03,), (0.06,), (0.09,), (0.17,), (0.27,)],
    ),
    "defocus_blur": (
        defocus_blur,
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.6), (1.5, 0.6)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    "glass_blur": (
        glass_blur,
        [(0.05, 0.55, 1), (0.15, 0.7, 1), (0.3, 0.9, 1), (0.4, 1, 2), (0.4, 1.4, 3)],
        [(0.7, 1, 2), (0.9, 2, 2), (1, 2, 3), (1.1, 3, 3), (1.5, 4, 3)],
    ),
    "motion_blur": (
        motion_blur,
        [(3, 1), (4, 1.5), (5, 2), (6, 2.2), (7, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    "zoom_blur": (
        zoom_blur,
        [(1.06,), (1.11,), (1.16,), (1.21,), (1.26,)],
        [(1.11,), (1.16,), (1.21,), (1.26,), (1.33,)],
    ),
    "snow": (
        snow,
        [
            (0.1, 0.2, 1, 0.6, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 5, 0.85),
            (0.3, 0.3, 1.25, 0.65, 6, 0.8),
        ],
        [
            (0.1, 0.3, 3, 0.5, 10, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 0.55),
        ],
    ),
    "frost": (
        frost,
        [(1, 0.2), (0.95, 0.3), (0.9, 0.4), (0.85, 0.45), (0.75, 0.5)],
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.75), (0.6, 0.8)],
    ),
    "fog": (
        fog,
        [(0.2, 1.5), (0.5, 1.5), (0.75, 1.4), (1, 1.4), (1.5, 1.3)],
        [(1.5, 1.5), (2, 1.5), (2.5, 1.4), (2.75, 1.4), (3, 1.3)],
    ),
    "brightness": (
        brightness,
        [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)],
        [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)],
    ),
    "contrast": (
        contrast,
        [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)],
        [(0.4,), (0.3,), (0.2,), (0.1,), (0.05,)],
    ),
    "elastic_transform": (
        elastic_transform,
        [(0.01, 0.06), (0.015, 0.06), (0.02, 0.06), (0.025, 0.06), (0.03, 0.06)],
        [(0.01, 0.03), (0.015, 0.03), (0.02, 0.03), (0.025, 0.03), (0.03, 0.03)],
    ),
    "pixelate": (
        pixelate,
        [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)],
        [(0.6,), (0.5,), (0.4,), (0.3,), (0.25,)],
    ),
    "jpeg_compression": (
        jpeg_compression,
        [(80,), (65,), (58,), (50,), (40,)],
        [(25,), (18,), (15,), (10,), (7,)],
    ),
}
"""By name: the function, and its strengths for images of SMALL and of LARGE pixels. Add a line for a new corruption."""


def corrupted(x: Pixels, name: str, severity: int, rng: np.random.Generator) -> Pixels:
    """The image with corruption `name` of severity 1 to 5."""
    corruption, small, large = CORRUPTIONS[name]
    image: Pixels = corruption(x, strength(small[severity - 1], large[severity - 1], x.shape[0]), rng)
    return image


def strength(small: Sequence[float], large: Sequence[float], side: int) -> tuple[float, ...]:
    """Interpolates between the two sets, linearly in the log of the side; outside them, the nearer set applies."""
    share = min(1.0, max(0.0, math.log(side / SMALL) / math.log(LARGE / SMALL)))
    return tuple(a + share * (b - a) for a, b in zip(small, large, strict=True))


def _clipped(x: NDArray[np.floating]) -> Pixels:
    return np.asarray(np.clip(x, 0, 1), dtype=np.float32)


def _convolved(x: Pixels, kernel: NDArray[np.floating]) -> Pixels:
    weight = (kernel / kernel.sum()).astype(np.float32)
    channels = [ndimage.convolve(x[..., channel], weight, mode="nearest") for channel in range(x.shape[2])]
    return _clipped(np.stack(channels, axis=2))


def _streaked(x: NDArray[np.floating], length: float, spread: float, angle: float) -> NDArray[np.float64]:
    """Each pixel becomes the weighted mean along a line of `length` pixels at `angle` degrees; x (S, S, channels)."""
    steps = np.arange(round(length) + 1)
    weight = np.exp(-(steps**2) / (2 * spread**2))
    down, right = (np.rint(steps * turn(math.radians(angle))).astype(int) for turn in (math.sin, math.cos))
    margin = len(steps)
    padded = np.pad(x, [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    total, side = np.zeros(x.shape), x.shape[0]
    # Shift the whole image once per step of the line, instead of visiting pixels.
    for share, top, left in zip(weight / weight.sum(), down + margin, right + margin, strict=True):
        total += share * padded[top : top + side, left : left + side]
    return total


def _enlarged(x: Pixels, factor: float) -> NDArray[np.float64]:
    """The central part of an image (S, S, 3), enlarged `factor` times to (S, S, 3) by linear interpolation.

    Avoids matrix products: NumPy would run each on threads of its own, which compete with ours.
    """
    side = x.shape[0]
    middle = (side - 1) / 2
    # For each output pixel, its place in the input, and the two neighbours to interpolate between.
    places = np.clip((np.arange(side) - middle) / factor + middle, 0, side - 1)
    below = np.minimum(places.astype(int), side - 2)
    above = (places - below)[:, None]
    tall = x[below] * (1 - above[..., None]) + x[below + 1] * above[..., None]
    return np.asarray(tall[:, below] * (1 - above) + tall[:, below + 1] * above)


def _cloud(side: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise (S, S) in 0 .. 1, whose amplitude is proportional to frequency ** -decay."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf  # removes the mean, and avoids division by 0
    waves = np.fft.rfft2(rng.normal(size=(side, side))) / frequency**decay
    drawn = np.fft.irfft2(waves, s=(side, side))
    return np.asarray((drawn - drawn.min()) / max(float(np.ptp(drawn)), 1e-12))


def _picture(x: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(255 * x).astype(np.uint8))


def _pixels(picture: Image.Image) -> Pixels:
    return _clipped(np.asarray(picture, dtype=np.float32) / 255)

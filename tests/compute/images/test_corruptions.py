"""Fifteen corruptions: each has its stated effect, grows with severity, and does not depend on a row's position."""

import io
from itertools import pairwise
from threading import Lock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from privacy_gate.checks.corruption import CORRUPTIONS as KNOWN
from privacy_gate.compute.images.corruptions import CORRUPTIONS, _enlarged, corrupted, strength
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.spread import Tally
from privacy_gate.compute.runners.corruption import predict_corrupted
from privacy_gate.jobs.kinds import Corrupt
from privacy_gate.progress import silent

SIDES = (32, 64, 160, 224)


@pytest.fixture(scope="module")
def photos() -> dict[int, list[NDArray[np.float32]]]:
    """Photos of a temple and a flower, by image side."""
    found = {}
    for side in SIDES:
        pictures = [Image.fromarray(each).resize((side, side)) for each in load_sample_images().images]
        found[side] = [np.asarray(each, dtype=np.float32) / 255 for each in pictures]
    return found


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_check_knows_them_all() -> None:
    assert tuple(CORRUPTIONS) == KNOWN
    assert all(len(strengths) == 5 for _, *sets in CORRUPTIONS.values() for strengths in sets)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_is_an_image_again_and_farther_from_the_first_the_more_severe(
    name: str, side: int, photos: dict[int, list[NDArray[np.float32]]]
) -> None:
    away = []
    for severity in range(1, 6):
        found = [corrupted(x, name, severity, rng()) for x in photos[side]]
        for x, y in zip(photos[side], found, strict=True):
            assert (y.shape, y.dtype) == (x.shape, np.float32)
            assert 0 <= y.min() <= y.max() <= 1
        away.append(np.mean([np.sqrt(((y - x) ** 2).mean()) for x, y in zip(photos[side], found, strict=True)]))
    assert away[0] > 0.005
    assert all(later > 0.97 * earlier for earlier, later in pairwise(away)), away
    assert away[4] > away[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_draw_gives_the_same_image_and_the_first_is_left_alone(
    name: str, photos: dict[int, list[NDArray[np.float32]]]
) -> None:
    x = photos[32][0]
    kept = x.copy()
    assert np.array_equal(corrupted(x, name, 3, rng()), corrupted(x, name, 3, rng()))
    assert np.array_equal(x, kept)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate", "contrast"])
def test_uniform_images_are_unchanged_by_blurs(name: str) -> None:
    flat = np.full((64, 64, 3), 0.4, dtype=np.float32)
    np.testing.assert_allclose(corrupted(flat, name, 5, rng()), flat, atol=2 / 255)


def test_noises_have_their_strength_in_the_middle_of_the_range() -> None:
    flat = np.full((224, 224, 3), 0.5, dtype=np.float32)
    assert (corrupted(flat, "gaussian_noise", 1, rng()) - flat).std() == pytest.approx(0.08, rel=0.02)
    assert (corrupted(flat, "shot_noise", 1, rng()) - flat).std() == pytest.approx((0.5 / 60) ** 0.5, rel=0.03)
    impulse = corrupted(flat, "impulse_noise", 5, rng())
    assert (impulse == 0).mean() == pytest.approx(0.135, abs=0.005)
    assert (impulse == 1).mean() == pytest.approx(0.135, abs=0.005)


def test_contrast_brightness_and_jpeg_are_those_of_the_naive_twins(
    photos: dict[int, list[NDArray[np.float32]]],
) -> None:
    x = photos[224][0]
    for channel in range(3):
        mean = x[..., channel].mean()
        np.testing.assert_allclose(
            corrupted(x, "contrast", 1, rng())[..., channel], mean + 0.4 * (x[..., channel] - mean), atol=1e-5
        )
    brighter = corrupted(x, "brightness", 3, rng())
    np.testing.assert_allclose(brighter.max(2), np.minimum(x.max(2) + 0.3, 1), atol=1e-5)
    seen = x.max(2) > 0.2  # hue and saturation are kept if all channels change by one factor
    factor = brighter[seen] / x[seen]
    np.testing.assert_allclose(factor[:, :2][x[seen][:, :2] > 0.05], np.broadcast_to(
        factor.max(1, keepdims=True), (len(factor), 2))[x[seen][:, :2] > 0.05], rtol=1e-3)  # fmt: skip
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * x).astype(np.uint8)).save(file, "JPEG", quality=15)
    assert np.array_equal(corrupted(x, "jpeg_compression", 3, rng()), np.asarray(Image.open(file), np.float32) / 255)


def test_an_averaging_disk_spreads_a_point_over_its_area() -> None:
    point = np.zeros((64, 64, 3), dtype=np.float32)
    point[32, 32] = 1
    corruption, _, large = CORRUPTIONS["defocus_blur"]
    spread = corruption(point, large[2], rng())
    assert spread.sum() == pytest.approx(3, rel=1e-4)
    assert spread.max() == pytest.approx(1 / (np.pi * 6**2), rel=0.1)
    np.testing.assert_allclose(spread, spread[::-1, ::-1][np.ix_(*[np.roll(np.arange(64), 1)] * 2)], atol=1e-6)


def test_enlarging_equals_two_products_with_interpolation_matrices(
    photos: dict[int, list[NDArray[np.float32]]],
) -> None:
    for factor in (1.0, 1.06, 1.33):
        for x in photos[32]:
            weight = np.zeros((32, 32))
            for place in range(32):
                asked = (place - 15.5) / factor + 15.5
                below = min(int(asked), 30)
                weight[place, below : below + 2] = below + 1 - asked, asked - below
            expected = np.stack([weight @ x[..., channel] @ weight.T for channel in range(3)], axis=2)
            np.testing.assert_allclose(_enlarged(x, factor), expected, atol=1e-12)


def test_strengths_between_the_two_sets_grow_with_the_logarithm_of_the_side() -> None:
    assert strength((1, 10), (3, 20), 32) == (1, 10)
    assert strength((1, 10), (3, 20), 16) == (1, 10)
    assert strength((1, 10), (3, 20), 224) == strength((1, 10), (3, 20), 500) == (3, 20)
    assert strength((1, 10), (3, 20), round(32 * 7**0.5)) == pytest.approx((2, 15), rel=0.01)


def test_a_rows_corruption_depends_on_the_row_alone(photos: dict[int, list[NDArray[np.float32]]]) -> None:
    images = torch.from_numpy(np.stack([*photos[32]] * 8)).permute(0, 3, 1, 2).contiguous()
    shown: list[torch.Tensor] = []
    lock = Lock()

    def model(batch: torch.Tensor) -> torch.Tensor:
        """Predicts each image's position in `shown` as its class, whatever the order of threads."""
        with lock:
            before = len(shown)
            shown.extend(batch.clone())
            return torch.eye(16)[before : len(shown)]

    def seen(rows: range, batch: int, threads: int) -> torch.Tensor:
        shown.clear()
        job = Corrupt("a" * 64, None, "d" * 64, tuple(rows), "snow", 3)  # type: ignore[arg-type]
        machine, tally = Machine(device="cpu", threads=threads, batch=batch), Tally("", 0, silent)
        found = predict_corrupted(model, images[list(rows)], job, machine, tally)
        return torch.stack([shown[place] for place in found["predicted"]])

    whole = seen(range(16), 16, 1)
    assert torch.equal(whole, seen(range(16), 3, 2))
    assert torch.equal(whole[5:9], seen(range(5, 9), 16, 1))
    assert not torch.equal(whole[0], whole[2])  # the same photo in another row

"""Moments over models, and with each model left out."""

import numpy as np
import pytest

from privacy_gate.attacks.moments import BLOCK_VALUES, medians, moments, row_blocks


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_are_those_of_the_chosen_models(offset: float) -> None:
    rng = np.random.default_rng(0)
    values, chosen = rng.normal(size=(9, 40)) + offset, rng.random((9, 40)) < 0.7
    found = moments(values, chosen)
    for row in range(40):
        mine = values[chosen[:, row], row]
        assert found.count[row] == len(mine)
        assert found.mean[row] == pytest.approx(np.mean(mine), rel=1e-14)
        assert found.squares[row] == pytest.approx(np.var(mine) * len(mine), rel=1e-8)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_leaving_a_model_out_equals_never_having_had_it(offset: float) -> None:
    rng = np.random.default_rng(1)
    values, chosen = rng.normal(size=(7, 30)) + offset, rng.random((7, 30)) < 0.6
    chosen[:2], chosen[2:, 0] = True, False
    found = moments(values, chosen).without(values, chosen)
    for model in range(7):
        others = np.arange(7) != model
        expected = moments(values[others], chosen[others])
        np.testing.assert_array_equal(found.count[model], expected.count)
        np.testing.assert_allclose(found.mean[model], expected.mean, rtol=1e-13)
        np.testing.assert_allclose(found.squares[model], expected.squares, rtol=1e-7, atol=1e-12)


def test_no_chosen_model_has_no_mean_and_leaves_none() -> None:
    one = np.array([[True], [False]])
    found = moments(np.array([[2.0], [5.0]]), one)
    assert (found.count[0], found.mean[0], found.squares[0]) == (1, 2.0, 0.0)
    left = found.without(np.array([[2.0], [5.0]]), one)
    assert np.isnan(left.mean[0, 0])
    assert left.mean[1, 0] == 2.0
    assert np.isnan(medians(np.zeros((2, 1)), np.zeros((2, 1), dtype=bool))[0])


def test_medians_are_those_of_the_chosen_models() -> None:
    rng = np.random.default_rng(2)
    values, chosen = rng.normal(size=(8, 50)), rng.random((8, 50)) < 0.6
    chosen[0] = True
    expected = [np.median(values[chosen[:, row], row]) for row in range(50)]
    np.testing.assert_allclose(medians(values, chosen), expected)


@pytest.mark.parametrize(("models", "rows"), [(1, 10), (300, 10_001), (BLOCK_VALUES * 2, 3), (0, 5)])
def test_blocks_cover_every_row_once_within_their_size(models: int, rows: int) -> None:
    blocks = list(row_blocks(models, rows))
    assert np.concatenate([np.arange(rows)[block] for block in blocks]).tolist() == list(range(rows))
    assert max((block.stop - block.start) * models for block in blocks) <= max(BLOCK_VALUES, models)

"""Both implementations of the products equal a naive sum, whatever the remainder of the tiles."""

import numpy as np
import pytest
import torch

from privacy_gate.compute.training.products import LEAST_WIDTH, Compiled, Gathered, Products, products
from privacy_gate.native.compiler import has_numba

needs_numba = pytest.mark.skipif(not has_numba(), reason="Numba is not installed")
WAYS = [Gathered, pytest.param(Compiled, marks=needs_numba)]
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-12}


def stack(classes: int, size: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """A table (30, 37), rows (3, size) with repetitions, parameters (3, classes, 37)."""
    draw = torch.Generator().manual_seed(classes * 100 + size)
    table = torch.randn(30, 37, generator=draw, dtype=dtype)
    rows = torch.randint(0, 30, (3, size), generator=draw)
    return table, rows, torch.randn(3, classes, 37, generator=draw, dtype=dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("classes", [2, 4, 5, 6, 11])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 16])
def test_products_equal_sums_over_the_given_rows(
    way: type[Products], dtype: torch.dtype, classes: int, size: int
) -> None:
    table, rows, parameters = stack(classes, size, dtype)
    ours = way(table)  # type: ignore[call-arg]
    said = ours.logits(parameters, rows)
    assert said.numpy() == pytest.approx(np.einsum("mcw,mbw->mcb", parameters, table[rows]), abs=ROUNDING[dtype])
    slope = torch.full_like(parameters, 7.0)
    ours.gradient(said, rows, slope)
    expected = np.einsum("mcb,mbw->mcw", said, table[rows])
    assert slope.numpy() == pytest.approx(expected, abs=100 * ROUNDING[dtype])


@pytest.mark.parametrize("way", WAYS)
def test_a_non_finite_value_affects_only_its_own_results(way: type[Products]) -> None:
    table, _, parameters = stack(6, 5)
    table[2, 3] = torch.nan
    rows = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 2]])
    spoiled = (rows == 2).unsqueeze(1).expand(-1, 6, -1)
    assert torch.equal(way(table).logits(parameters, rows).isnan(), spoiled)  # type: ignore[call-arg]


@needs_numba
@pytest.mark.parametrize("width", [LEAST_WIDTH - 1, LEAST_WIDTH])
def test_wide_rows_on_a_cpu_are_multiplied_by_compiled_code(width: int) -> None:
    assert isinstance(products(torch.zeros(2, width)), Compiled) is (width >= LEAST_WIDTH)

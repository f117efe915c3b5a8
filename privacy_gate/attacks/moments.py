"""Count, mean and sum of squares of the references' values on each row, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from privacy_gate.arrays import Bools, Floats

BLOCK_VALUES = 2**20
"""Values (models times rows) processed in float64 at a time: 8 MiB for each temporary array."""


@dataclass(frozen=True)
class Moments:
    """Moments of the chosen models' values, for each row; all three of one shape (..., N).

    count    number of chosen models
    mean     their mean; NaN if none was chosen
    squares  sum of their squared deviations from that mean; 0 if none was chosen
    """

    count: Floats
    mean: Floats
    squares: Floats

    def without(self, values: Floats, chosen: Bools) -> "Moments":
        """Moments with each model left out in turn: (N,) -> (M, N).

        values, chosen (M, N): the arrays that the moments were computed from. This inverts Welford's update, so only
        the removed value's own contribution cancels, and no digits are lost.
        """
        # A model that was not chosen changes nothing: its deviation is 0, and the count stays.
        count = self.count - chosen
        left = np.maximum(count, 1.0)
        deviation = np.where(chosen, values - self.mean, 0.0)
        mean = np.where(count > 0, self.mean - deviation / left, np.nan)
        # Rounding may leave a tiny negative sum, hence the maximum.
        squares = np.maximum(self.squares - deviation**2 * (self.count / left), 0.0)
        return Moments(count, mean, np.where(count > 1, squares, 0.0))

    def row(self, index: int) -> "Moments":
        """The moments at one index of the first axis."""
        return Moments(self.count[index], self.mean[index], self.squares[index])


def row_blocks(models: int, rows: int) -> Iterator[slice]:
    """Consecutive slices over `rows`, each of at most BLOCK_VALUES values or one row."""
    step = max(1, BLOCK_VALUES // max(models, 1))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def block_moments(values: Floats, chosen: Bools) -> Moments:
    """Moments over axis 0 of float64 values (M, N), of those that are chosen (M, N)."""
    count = np.count_nonzero(chosen, axis=0).astype(np.float64)
    mean = np.full(values.shape[1], np.nan)
    np.divide(np.where(chosen, values, 0.0).sum(axis=0), count, out=mean, where=count > 0)
    squares = (np.where(chosen, values - mean, 0.0) ** 2).sum(axis=0)
    return Moments(count, mean, squares)


def moments(values: Floats, chosen: Bools) -> Moments:
    """Moments over the models of values (M, N), of those that are chosen (M, N), as float64 (N,) arrays."""
    count, mean, squares = np.empty((3, values.shape[1]))
    for rows in row_blocks(*values.shape):
        block = block_moments(values[:, rows].astype(np.float64), chosen[:, rows])
        count[rows], mean[rows], squares[rows] = block.count, block.mean, block.squares
    return Moments(count, mean, squares)


def medians(values: Floats, chosen: Bools) -> Floats:
    """Median over the models of values (M, N), of those that are chosen (M, N): (N,) float64, NaN if none is."""
    centres = np.full(values.shape[1], np.nan)
    for rows in row_blocks(*values.shape):
        some = chosen[:, rows].any(axis=0)
        block = np.where(chosen[:, rows], values[:, rows].astype(np.float64), np.nan)
        centres[rows][some] = np.nanmedian(block[:, some], axis=0)
    return centres

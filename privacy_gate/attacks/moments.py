"""Count, mean and sum of squares of what the references say about each row, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from privacy_gate.arrays import Bools, Floats

BLOCK_VALUES = 2**20
"""Values (models times rows) held in float64 at a time: 8 MiB for each temporary array."""


@dataclass(frozen=True)
class Moments:
    """Of the chosen models' values, for each row; all three of one shape (..., N).

    count    how many models were chosen
    mean     their mean; NaN where none was chosen
    squares  their squared deviations from that mean, summed; 0 where none was chosen
    """

    count: Floats
    mean: Floats
    squares: Floats

    def without(self, values: Floats, chosen: Bools) -> "Moments":
        """Of the other models, with each model left out in turn: (N,) -> (M, N).

        values, chosen (M, N): what the moments were taken of. The inverse of Welford's update:
        nothing cancels but what the row itself put in.
        """
        count = self.count - chosen
        left = np.maximum(count, 1.0)
        deviation = np.where(chosen, values - self.mean, 0.0)
        mean = np.where(count > 0, self.mean - deviation / left, np.nan)
        squares = np.maximum(self.squares - deviation**2 * (self.count / left), 0.0)
        return Moments(count, mean, np.where(count > 1, squares, 0.0))

    def row(self, index: int) -> "Moments":
        """One along the first axis."""
        return Moments(self.count[index], self.mean[index], self.squares[index])


def row_blocks(models: int, rows: int) -> Iterator[slice]:
    """Consecutive slices over `rows`, each of at most BLOCK_VALUES values or one row."""
    step = max(1, BLOCK_VALUES // max(models, 1))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def block_moments(values: Floats, chosen: Bools) -> Moments:
    """Moments over axis 0 of float64 values (M, N) where chosen (M, N)."""
    count = np.count_nonzero(chosen, axis=0).astype(np.float64)
    mean = np.full(values.shape[1], np.nan)
    np.divide(np.where(chosen, values, 0.0).sum(axis=0), count, out=mean, where=count > 0)
    squares = (np.where(chosen, values - mean, 0.0) ** 2).sum(axis=0)
    return Moments(count, mean, squares)


def moments(values: Floats, chosen: Bools) -> Moments:
    """Moments over the models of values (M, N) where chosen (M, N), as float64 (N,) arrays."""
    count, mean, squares = np.empty((3, values.shape[1]))
    for rows in row_blocks(*values.shape):
        block = block_moments(values[:, rows].astype(np.float64), chosen[:, rows])
        count[rows], mean[rows], squares[rows] = block.count, block.mean, block.squares
    return Moments(count, mean, squares)


def medians(values: Floats, chosen: Bools) -> Floats:
    """Median over the models of values (M, N) where chosen (M, N): (N,) float64, NaN where none is."""
    found = np.full(values.shape[1], np.nan)
    for rows in row_blocks(*values.shape):
        some = chosen[:, rows].any(axis=0)
        block = np.where(chosen[:, rows], values[:, rows].astype(np.float64), np.nan)
        found[rows][some] = np.nanmedian(block[:, some], axis=0)
    return found

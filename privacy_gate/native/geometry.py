"""Order, distances and moments of updates on a CPU, compiled: twins of simulation/rules/geometry.py.

One cell's updates, about ten rows of some hundred numbers, are read once and stay in the core's cache. Torch reads the
updates of all cells again for each exchange of a sort, and converts all of them to float64 before it multiplies.
Import this module only if Numba is installed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from privacy_gate.arrays import Floats, Ints
from privacy_gate.native.compiler import compiled
from privacy_gate.native.lanes import ACROSS, DOWN, dots, lanes

Exchange = tuple[int, int, bool, bool]
"""See simulation.rules.exchanges."""

DOUBLES = lanes(np.float64)

COLUMNS = 1024
"""Coordinates that are sorted at once: their rows fit into the core's cache."""


def ordered(updates: torch.Tensor, exchanges: Sequence[Exchange], ranks: Sequence[int]) -> list[torch.Tensor]:
    """The order statistics of these ranks; the exchanges must sort at least those: see geometry.ordered."""
    out = updates.new_empty(*updates.shape[:-2], len(ranks), updates.shape[-1])
    pairs = np.array([pair[:2] for pair in exchanges], dtype=np.int64).reshape(-1, 2)
    _order_statistics(
        rows_of(updates), updates.shape[-2], pairs, np.array(ranks), out.view(-1, *out.shape[-2:]).numpy()
    )
    return list(out.unbind(-2))


def mean_of_ranks(updates: torch.Tensor, exchanges: Sequence[Exchange], ranks: Sequence[int]) -> torch.Tensor:
    """The mean of the order statistics of these ranks: see geometry.mean_of_ranks."""
    n, d = updates.shape[-2:]
    out = updates.new_empty(*updates.shape[:-2], d)
    pairs = np.array([pair[:2] for pair in exchanges], dtype=np.int64).reshape(-1, 2)
    _mean_of_ranks(rows_of(updates), n, pairs, np.array(ranks), out.view(-1, d).numpy())
    return out


def inner_products(updates: torch.Tensor) -> torch.Tensor:
    """Inner products of all pairs of updates, summed in float64: see geometry.inner_products."""
    n, width = updates.shape[-2:]
    out = torch.empty(*updates.shape[:-2], n, n, dtype=torch.float64)
    _inner_products(rows_of(updates), width, out.view(-1, n, n).numpy())
    return out


def squared_distances(updates: torch.Tensor) -> torch.Tensor:
    """Squared distances between all pairs of updates: see geometry.squared_distances."""
    n, width = updates.shape[-2:]
    out = torch.empty(*updates.shape[:-2], n, n, dtype=torch.float64)
    _squared_distances(rows_of(updates), width, out.view(-1, n, n).numpy())
    return out


def norms(updates: torch.Tensor) -> torch.Tensor:
    """Norms of vectors (..., d), summed in float64: see geometry.norms."""
    out = torch.empty(updates.shape[:-1], dtype=torch.float64)
    rows = updates if updates.dim() > 1 else updates.unsqueeze(0)
    _norms(rows_of(rows), rows.shape[-1], out.view(-1, rows.shape[-2]).numpy())
    return out


def moments(updates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over rows: see geometry.moments."""
    n, d = updates.shape[-2:]
    mean, spread = (updates.new_empty(*updates.shape[:-2], d) for _ in range(2))
    _moments(rows_of(updates), n, mean.view(-1, d).numpy(), spread.view(-1, d).numpy())
    return mean, spread


def right(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """How far each model is right on each of T rows, (T, cells): see simulation.scores.right."""
    out = torch.empty(len(logits), logits.shape[2], dtype=torch.float64)
    _right(logits.contiguous().numpy(), label.numpy(), out.numpy())
    return out


class RowsOf(NamedTuple):
    """Updates where they lie in memory: row i of cell r begins at flat[start(rows, r) + i * row].

    Cells come in runs of `inner`. Within a run they are `cell` numbers apart, and runs begin `outer` numbers apart.
    """

    flat: Floats
    first: int
    outer: int
    inner: int
    cell: int
    row: int


def rows_of(updates: torch.Tensor) -> RowsOf:
    """Where the rows of updates (..., n, d) lie. They are copied only if the numbers of a row are not contiguous."""
    cells = updates if updates.dim() == 4 else updates.reshape(1, -1, *updates.shape[-2:])
    cells = cells if cells.stride(-1) == 1 else cells.contiguous()
    flat = cells.as_strided((cells.untyped_storage().nbytes() // cells.element_size(),), (1,), 0)
    return RowsOf(flat.numpy(), int(cells.storage_offset()), cells.stride(0), cells.shape[1], *cells.stride()[1:3])


@compiled
def start(rows: RowsOf, r: int) -> int:
    """Index in rows.flat at which cell r begins."""
    return rows.first + (r // rows.inner) * rows.outer + (r % rows.inner) * rows.cell


@compiled
def _order_statistics(updates: RowsOf, n: int, exchanges: Ints, ranks: Ints, out: Floats) -> None:
    """Sets out (cells, Q, d) to the order statistics of these ranks, by exchanges (E, 2) of n rows; NaN is inf."""
    cells, _, d = out.shape
    rows = np.empty((n, COLUMNS), out.dtype)
    for r in range(cells):
        for begin in range(0, d, COLUMNS):
            size = min(COLUMNS, d - begin)
            _sort(updates, r, begin, size, exchanges, rows)
            for q in range(len(ranks)):
                _copy(rows[ranks[q], :size], out[r, q, begin:])


@compiled
def _mean_of_ranks(updates: RowsOf, n: int, exchanges: Ints, ranks: Ints, out: Floats) -> None:
    """Sets out (cells, d) to the mean of the order statistics of these ranks."""
    cells, d = out.shape
    rows = np.empty((n, COLUMNS), out.dtype)
    count = out.dtype.type(len(ranks))
    for r in range(cells):
        for begin in range(0, d, COLUMNS):
            size = min(COLUMNS, d - begin)
            _sort(updates, r, begin, size, exchanges, rows)
            total = out[r, begin : begin + size]
            _copy(rows[ranks[0], :size], total)
            for q in range(1, len(ranks)):
                _add(rows[ranks[q]], total)
            for k in range(size):
                total[k] /= count


@compiled
def _sort(updates: RowsOf, r: int, begin: int, size: int, exchanges: Ints, rows: Floats) -> None:
    """Sets rows (n, size) to columns `begin` and following of cell r, each column sorted by the exchanges."""
    flat, row = updates.flat, updates.row
    first = start(updates, r) + begin
    for i in range(len(rows)):
        place = first + i * row
        _copy(flat[place : place + size], rows[i])
    for e in range(len(exchanges)):
        _exchange(rows[exchanges[e, 0]], rows[exchanges[e, 1]], size)


@compiled
def _copy(source: Floats, out: Floats) -> None:
    for k in range(source.size):
        value = source[k]
        out[k] = value if value == value else np.inf  # noqa: PLR0124 - NaN alone differs from itself


@compiled
def _add(source: Floats, out: Floats) -> None:
    for k in range(out.size):
        out[k] += source[k]


@compiled
def _exchange(low: Floats, high: Floats, size: int) -> None:
    for k in range(size):
        a, b = low[k], high[k]
        low[k] = a if a < b else b
        high[k] = b if a < b else a


@compiled
def _inner_products(updates: RowsOf, width: int, out: Floats) -> None:
    """Sets out (cells, n, n) float64 to the inner products of each cell's rows of `width` numbers."""
    flat, row = updates.flat, updates.row
    cells, n, _ = out.shape
    wide = np.zeros((n, -(-width // DOUBLES) * DOUBLES))  # zeros fill up the last vector
    places, found = np.empty(ACROSS + DOWN, np.intp), np.empty(ACROSS * DOWN)
    for r in range(cells):
        first = start(updates, r)
        for i in range(n):
            x, copy = flat[first + i * row :], wide[i]
            for k in range(width):
                copy[k] = x[k]
        for i in range(0, n, DOWN):
            for j in range(0, min(n, i + DOWN), ACROSS):
                # A tile has DOWN + ACROSS rows; beyond the last update it repeats that one.
                for a in range(DOWN):
                    places[a] = min(i + a, n - 1) * wide.shape[1]
                for b in range(ACROSS):
                    places[DOWN + b] = min(j + b, n - 1) * wide.shape[1]
                dots(wide, places, wide.shape[1], found)
                for a in range(min(DOWN, n - i)):
                    for b in range(min(ACROSS, n - j)):
                        out[r, i + a, j + b] = out[r, j + b, i + a] = found[a * ACROSS + b]


@compiled
def _squared_distances(updates: RowsOf, width: int, out: Floats) -> None:
    """Sets out (cells, n, n) to squared distances of each cell's rows of `width` numbers, inf for rows not finite."""
    flat, row = updates.flat, updates.row
    cells, n, _ = out.shape
    _inner_products(updates, width, out)
    square, apart = np.empty(n), np.empty(n, np.bool_)
    for r in range(cells):
        first = start(updates, r)
        for i in range(n):
            square[i] = out[r, i, i]
            x = flat[first + i * row :]
            total = flat.dtype.type(0)
            for k in range(width):
                total += x[k]
            apart[i] = not np.isfinite(total)
        for i in range(n):
            for j in range(n):
                found = square[i] + square[j] - 2 * out[r, i, j]
                out[r, i, j] = np.inf if apart[i] or apart[j] or np.isnan(found) else max(0.0, found)
            out[r, i, i] = 0


@compiled
def _norms(updates: RowsOf, width: int, out: Floats) -> None:
    """Sets out (cells, n) to the norms of each cell's rows of `width` numbers."""
    flat, row = updates.flat, updates.row
    cells, n = out.shape
    for r in range(cells):
        first = start(updates, r)
        for i in range(n):
            x = flat[first + i * row :]
            total = 0.0
            for k in range(width):
                value = np.float64(x[k])
                total += value * value
            out[r, i] = np.sqrt(total)


@compiled
def _moments(updates: RowsOf, n: int, mean: Floats, spread: Floats) -> None:
    """Sets mean and spread (cells, d) to those of each cell's n rows."""
    flat, row = updates.flat, updates.row
    cells, d = mean.shape
    count, free = mean.dtype.type(n), mean.dtype.type(max(1, n - 1))
    for r in range(cells):
        first, centre, total = start(updates, r), mean[r], spread[r]
        centre[:] = 0
        for i in range(n):
            place = first + i * row
            _add(flat[place : place + d], centre)
        for k in range(d):
            centre[k] /= count
        total[:] = 0
        for i in range(n):
            place = first + i * row
            _add_square(flat[place : place + d], centre, total)
        for k in range(d):
            total[k] = np.sqrt(total[k] / free)


@compiled
def _add_square(x: Floats, centre: Floats, out: Floats) -> None:
    for k in range(out.size):
        away = x[k] - centre[k]
        out[k] += away * away


@compiled
def _right(logits: Floats, label: Ints, out: Floats) -> None:
    """Sets out (T, cells) from logits (T, C, cells); inner loops run over cells, so they become vector code."""
    rows, classes, cells = logits.shape
    top, ties, sound = np.empty(cells, logits.dtype), np.empty(cells, np.int32), np.empty(cells, np.bool_)
    for t in range(rows):
        top[:] = logits[t, 0]
        ties[:] = 0
        sound[:] = True
        for c in range(1, classes):
            said = logits[t, c]
            for a in range(cells):
                top[a] = max(said[a], top[a])
        for c in range(classes):
            said = logits[t, c]
            for a in range(cells):
                ties[a] += said[a] == top[a]
                sound[a] &= np.isfinite(said[a])
        true, found = logits[t, label[t]], out[t]
        for a in range(cells):
            found[a] = 1 / max(ties[a], 1) if sound[a] and true[a] == top[a] else 0.0

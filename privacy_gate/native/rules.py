"""Rules that use distances, on a CPU, compiled: twins of those in robust.py, clipping.py and preaggregation.py.

Torch makes dozens of passes over small tables of distances, and some over all updates. Here each cell is finished
before the next begins, while its updates are in the core's cache. Import this module only if Numba is installed.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.arrays import Floats, Ints
from privacy_gate.native.compiler import compiled
from privacy_gate.native.geometry import RowsOf, inner_products, rows_of, squared_distances, start

Bools = NDArray[np.bool_]
TINY = float(np.finfo(np.float64).tiny)


def krum_mean(updates: torch.Tensor, nearest: int, count: int) -> torch.Tensor:
    """The mean of the `count` updates with the lowest scores: see robust.stacked_krum."""
    n, d = updates.shape[-2:]
    out = updates.new_empty(*updates.shape[:-2], d)
    _krum_mean(rows_of(updates), squared_distances(updates).view(-1, n, n).numpy(), nearest, count, _flat(out, 1))
    return out


def mixed(updates: torch.Tensor, keep: int) -> torch.Tensor:
    """Mean of each update and its nearest ones, `keep` in all: see preaggregation.stacked_mixing."""
    n, d = updates.shape[-2:]
    out = updates.new_empty(*updates.shape[:-2], n, d)
    _mixed(rows_of(updates), squared_distances(updates).view(-1, n, n).numpy(), keep, _flat(out, 2))
    return out


def weiszfeld(updates: torch.Tensor, begin: torch.Tensor, nu: float, iterations: int, far: float) -> torch.Tensor:
    """Smoothed Weiszfeld steps from `begin` (..., d): see robust.stacked_weiszfeld."""
    n, d = updates.shape[-2:]
    away = updates.new_empty(*updates.shape[:-2], n, d)
    finite = torch.empty(*updates.shape[:-1], dtype=torch.bool)
    point = begin.contiguous()
    _away(rows_of(updates), _flat(point, 1), _flat(away, 2), finite.view(-1, n).numpy())
    out = torch.empty_like(point)
    gram = inner_products(away)
    _weiszfeld(
        _flat(point, 1),
        _flat(away, 2),
        gram.view(-1, n, n).numpy(),
        finite.view(-1, n).numpy(),
        nu,
        iterations,
        far,
        _flat(out, 1),
    )
    return out


def clipped_from(updates: torch.Tensor, point: torch.Tensor, tau: float | None, iterations: int) -> torch.Tensor:
    """Steps of centred clipping from `point` (..., d); tau None: see clipping.stacked_clipping."""
    out = point.expand(*updates.shape[:-2], updates.shape[-1]).contiguous()
    out = out.clone() if out.data_ptr() == point.data_ptr() else out
    _clip(rows_of(updates), updates.shape[-2], np.nan if tau is None else float(tau), iterations, _flat(out, 1))
    return out


def _flat(values: torch.Tensor, axes: int) -> Floats:
    """The array with all axes before the last `axes` ones flattened to one."""
    return values.view(-1, *values.shape[-axes:]).numpy()


@compiled
def _row(rows: RowsOf, r: int, i: int, width: int) -> Floats:
    """Row i of cell r."""
    first = start(rows, r) + i * rows.row
    return rows.flat[first : first + width]


@compiled
def _finite(x: Floats) -> bool:
    """Whether the row holds neither inf nor NaN and its sum does not overflow."""
    total = x.dtype.type(0)
    for k in range(x.size):
        total += x[k]
    return bool(np.isfinite(total))


@compiled
def _add(x: Floats, out: Floats) -> None:
    for k in range(out.size):
        out[k] += x[k]


@compiled
def _add_four(x0: Floats, x1: Floats, x2: Floats, x3: Floats, out: Floats) -> None:
    for k in range(out.size):
        out[k] += x0[k] + x1[k] + x2[k] + x3[k]


@compiled
def _add_times(x: Floats, factor: Any, out: Floats) -> None:
    for k in range(out.size):
        out[k] += x[k] * factor


@compiled
def _divide(out: Floats, count: int) -> None:
    divisor = out.dtype.type(max(1, count))
    for k in range(out.size):
        out[k] /= divisor


@compiled
def _rank(values: Floats, rank: Ints) -> None:
    """Sets rank to each value's place in ascending order; equal values keep their order. Counts, without branches."""
    n = values.size
    rank[:] = 0
    for i in range(n):
        for j in range(i):
            first = values[j] <= values[i]
            rank[i] += first
            rank[j] += not first


@compiled
def _lower_median(values: Floats) -> float:
    """The median; the smaller of the two middle values if n is even."""
    rank, found = np.empty(values.size, np.int64), np.inf
    _rank(values, rank)
    for i in range(values.size):
        if rank[i] == (values.size - 1) // 2:
            found = values[i]
    return found


@compiled
def _mean_of(rows: RowsOf, r: int, chosen: Bools, out: Floats) -> None:
    """Sets out (d,) to the mean of the chosen rows of cell r that are finite; 0 if there is none."""
    count = 0
    out[:] = 0
    for i in range(chosen.size):
        if chosen[i]:
            x = _row(rows, r, i, out.size)
            if _finite(x):
                _add(x, out)
                count += 1
    _divide(out, count)


@compiled
def _krum_mean(rows: RowsOf, distances: Floats, nearest: int, count: int, out: Floats) -> None:
    """Sets out (cells, d) to the mean of the `count` updates with the lowest scores, see `krum_mean`."""
    n = distances.shape[1]
    rank, scores, chosen = np.empty(n, np.int64), np.empty(n), np.empty(n, np.bool_)
    for r in range(len(out)):
        for i in range(n):
            _rank(distances[r, i], rank)
            scores[i] = 0
            for j in range(n):
                scores[i] += distances[r, i, j] if 0 < rank[j] <= max(1, nearest) else 0.0
        _rank(scores, rank)
        for i in range(n):
            chosen[i] = rank[i] < count
        _mean_of(rows, r, chosen, out[r])


@compiled
def _mixed(rows: RowsOf, distances: Floats, keep: int, out: Floats) -> None:
    """Sets out (cells, n, d) to the means of `mixed`, four rows at a time to store the sums less often."""
    n, d = out.shape[1:]
    rank, finite, order = np.empty(n, np.int64), np.empty(n, np.bool_), np.empty(n, np.intp)
    for r in range(len(out)):
        for i in range(n):
            finite[i] = _finite(_row(rows, r, i, d))
        for i in range(n):
            if not finite[i]:
                out[r, i] = np.inf
                continue
            _rank(distances[r, i], rank)
            count = 0
            for j in range(n):
                if rank[j] < keep and finite[j]:
                    order[count] = j
                    count += 1
            out[r, i] = 0
            j = 0
            while j + 4 <= count:
                x0, x1 = _row(rows, r, order[j], d), _row(rows, r, order[j + 1], d)
                _add_four(x0, x1, _row(rows, r, order[j + 2], d), _row(rows, r, order[j + 3], d), out[r, i])
                j += 4
            while j < count:
                _add(_row(rows, r, order[j], d), out[r, i])
                j += 1
            _divide(out[r, i], count)


@compiled
def _away(rows: RowsOf, point: Floats, out: Floats, finite: Bools) -> None:
    """Sets out (cells, n, d) to updates minus the point (cells, d); updates that are not finite count as 0."""
    n, d = out.shape[1:]
    for r in range(len(out)):
        for i in range(n):
            x, centre, way = _row(rows, r, i, d), point[r], out[r, i]
            finite[r, i] = _finite(x)
            if finite[r, i]:
                for k in range(d):
                    way[k] = x[k] - centre[k]
            else:
                for k in range(d):
                    way[k] = -centre[k]


@compiled
def _draw_in(gram: Floats, finite: Bools, far: float, length: Floats, shrink: Floats) -> None:
    """Shortens updates to `far` times the median length: sets shrink and length (n,), scales gram (n, n)."""
    n = len(gram)
    for i in range(n):
        shrink[i] = np.sqrt(gram[i, i]) if finite[i] else np.inf
    reach = far * _lower_median(shrink)
    for i in range(n):
        own = np.sqrt(gram[i, i])
        shrink[i] = reach / own if own > reach else 1.0
    for i in range(n):
        for j in range(n):
            value = gram[i, j] * shrink[i] * shrink[j]
            gram[i, j] = 0.0 if np.isnan(value) or value == np.inf else value
        length[i] = np.sqrt(gram[i, i])


@compiled
def _weiszfeld(
    point: Floats, away: Floats, gram: Floats, finite: Bools, nu: float, iterations: int, far: float, out: Floats
) -> None:
    """Sets out (cells, d) to the last point; scales gram (cells, n, n), which gives all distances on the way."""
    n = gram.shape[1]
    length, shrink, weight, inner = np.empty(n), np.empty(n), np.zeros(n), np.empty(n)
    for r in range(len(out)):
        mine = gram[r]
        _draw_in(mine, finite[r], far, length, shrink)
        for _ in range(iterations):
            total = 0.0
            for i in range(n):
                weight[i] = 1 / max(length[i], nu) if finite[r, i] else 0.0
                total += weight[i]
            both = 0.0
            for i in range(n):
                weight[i] = weight[i] / total if total > 0 else np.nan
            for i in range(n):
                inner[i] = 0
                for j in range(n):
                    inner[i] += mine[i, j] * weight[j]
                both += weight[i] * inner[i]
            for i in range(n):
                length[i] = np.sqrt(max(0.0, mine[i, i] - 2 * inner[i] + both))
        out[r] = point[r]
        for i in range(n):
            _add_times(away[r, i], out.dtype.type(weight[i] * shrink[i]), out[r])


@compiled
def _clip(rows: RowsOf, n: int, tau: float, iterations: int, point: Floats) -> None:
    """Moves the point (cells, d). tau NaN stands for the median of the distances to the point."""
    d = point.shape[1]
    length, finite = np.empty(n), np.empty(n, np.bool_)
    centre = np.empty(d, point.dtype)
    for r in range(len(point)):
        for _ in range(iterations):
            centre[:] = point[r]
            for i in range(n):
                x = _row(rows, r, i, d)
                finite[i] = _finite(x)
                total = 0.0
                for k in range(d):
                    value = np.float64(x[k] - centre[k])
                    total += value * value
                length[i] = np.sqrt(total) if finite[i] else np.inf
            reach = tau
            if np.isnan(tau):
                reach = _lower_median(length)
            for i in range(n):
                if finite[i]:
                    factor = point.dtype.type(min(1.0, reach / max(length[i], TINY)) / n)
                    _add_away(_row(rows, r, i, d), centre, factor, point[r])


@compiled
def _add_away(x: Floats, centre: Floats, factor: Any, out: Floats) -> None:
    for k in range(out.size):
        out[k] += (x[k] - centre[k]) * factor

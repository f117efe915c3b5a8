"""Local training of softmax heads on a CPU, compiled: twin of simulation.local.stacked_updates.

One head is finished before the next begins, so its logits, errors and gradient stay in the core's cache. Axis letters:
simulation/local.py. Import this module only if Numba is installed.

Matrix products are made of tiles: blocks of the result small enough for the processor's registers, see lanes.TILES.
`_logits` and `_gradient` cover a result with the largest tiles that fit, then with smaller ones.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from privacy_gate.arrays import Floats, Ints
from privacy_gate.native.compiler import compiled
from privacy_gate.native.lanes import BACKWARD, FORWARD, TILES, WIDE, lanes, softmax

# Tiles by their number of rows: F for logits, B for gradients, S for what is left, one vector wide.
F10, F5, F2, F1 = (TILES[rows, FORWARD] for rows in (10, 5, 2, 1))
B5, B2, B1 = (TILES[rows, BACKWARD] for rows in (5, 2, 1))
S10, S5, S2, S1 = (TILES[rows, 1] for rows in (10, 5, 2, 1))


def local_updates(
    table: torch.Tensor,
    heads: torch.Tensor,
    rows: torch.Tensor,
    label: torch.Tensor,
    weight: torch.Tensor,
    settings: tuple[float, float, float],
    losses: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Updates (A, G, K, C E) of heads (A, G, C, E), and their first losses (A, G, K) if asked for.

    table (N, E). rows, label, weight (G, K, S, B): as in simulation.local.Batches. settings: lr, decay and prox as in
    simulation.cells.Training.
    """
    cells, groups, classes, width = heads.shape
    clients = rows.shape[1]
    updates = heads.new_empty(cells, groups, clients, classes * width)
    loss = heads.new_zeros(cells, groups, clients if losses else 0)
    flat = heads.reshape(-1).numpy()
    _train(
        table.numpy(),
        flat,
        rows.contiguous().numpy(),  # another memory layout would need another compilation
        label.contiguous().numpy(),
        weight.contiguous().numpy(),
        np.array(settings, flat.dtype),
        lanes(flat.dtype),
        classes,
        updates.view(-1).numpy(),
        loss.numpy(),
    )
    return updates, loss if losses else None


class _Desk(NamedTuple):
    """Work space for one client's batch. B' is B rounded up to whole vectors, E' is E but at least one vector.

    x       (B, E')  the rows of the batch
    turned  (E, B')  their transpose
    share   (B',)    weight of each row times the negative learning rate
    error   (C B')   logits, then the gradient of the loss by them, times share
    head    (C E)    the head after the steps so far
    step    (C E')   the step to take
    """

    x: Floats
    turned: Floats
    share: Floats
    error: Floats
    head: Floats
    step: Floats


@compiled
def _train(
    table: Floats,
    heads: Floats,
    rows: Ints,
    label: Ints,
    weight: Floats,
    rates: Floats,
    lane: int,
    classes: int,
    updates: Floats,
    loss: Floats,
) -> None:
    """Sets updates (A G K C E) from heads (A G C E), and loss (A, G, K) unless K is 0 in it."""
    groups, clients, steps, size = rows.shape
    kind, width = table.dtype, table.shape[1]
    wide, padded, length = max(width, lane), -(-size // lane) * lane, classes * width
    desk = _Desk(
        np.zeros((size, wide), kind),
        np.zeros((width, padded), kind),
        np.zeros(padded, kind),
        np.empty(classes * padded, kind),
        np.empty(length, kind),
        np.empty(classes * wide, kind),
    )
    for g in range(groups):
        for k in range(clients):
            if weight[g, k].sum() == 0:
                for a in range(heads.size // (groups * length)):
                    first = ((a * groups + g) * clients + k) * length
                    updates[first : first + length] = 0
                continue
            for s in range(steps):
                if weight[g, k, s].sum() > 0:
                    _gather(table, rows[g, k, s], desk)
                    for b in range(size):
                        desk.share[b] = -rates[0] * weight[g, k, s, b]
                    surprise = loss[:, g, k : k + 1] if s == 0 else loss[:0, g]
                    place = g * length, groups * length, (g * clients + k) * length, groups * clients * length
                    _step(heads, label[g, k, s], weight[g, k, s], rates, lane, s == 0, desk, place, updates, surprise)


@compiled
def _step(
    heads: Floats,
    truth: Ints,
    weight: Floats,
    rates: Floats,
    lane: int,
    first: bool,
    desk: _Desk,
    place: tuple[int, int, int, int],
    updates: Floats,
    loss: Floats,
) -> None:
    """One step of one client, for every cell. Sets loss (A, 1) unless it is empty.

    place: where the first cell's head begins, the distance to the next cell's, and both again for updates.
    """
    origin, apart, moved, beyond = place
    width, padded = desk.turned.shape
    length, wide = desk.head.size, desk.x.shape[1]
    classes = length // width
    while origin < heads.size:
        if first:
            _logits(heads, origin, width, classes, desk.turned, desk.error, lane)
            if loss.size > 0:
                _loss(desk.error, classes, truth, weight, loss[origin // apart])
        else:
            for i in range(length):
                desk.head[i] = heads[origin + i] + updates[moved + i]
            _logits(desk.head, 0, width, classes, desk.turned, desk.error, lane)
        softmax(desk.error, 0, classes, padded, desk.share)
        for b in range(truth.size):
            desk.error[truth[b] * padded + b] -= desk.share[b]
        if first and rates[1] == 0 and width == wide:
            _gradient(desk.error, padded, classes, desk.x, updates, moved, lane)
        else:
            _gradient(desk.error, padded, classes, desk.x, desk.step, 0, lane)
            _move(heads, origin, desk.step, wide, width, rates, first, updates, moved)
        origin += apart
        moved += beyond


@compiled
def _move(
    heads: Floats,
    origin: int,
    step: Floats,
    wide: int,
    width: int,
    rates: Floats,
    new: bool,
    updates: Floats,
    first: int,
) -> None:
    """Adds step (C, E'), weight decay and the proximal pull to the update (C, E) at `first`; `new` ones begin at 0."""
    lr, decay, prox = rates
    for c in range(step.size // wide):
        here, there, begin = origin + c * width, first + c * width, c * wide
        for e in range(width):
            moved = updates.dtype.type(0) if new else updates[there + e]
            updates[there + e] = moved + (step[begin + e] - lr * (decay * (heads[here + e] + moved) + prox * moved))


@compiled
def _gather(table: Floats, rows: Ints, desk: _Desk) -> None:
    """Copies the rows (B,) of the table to x, and their transpose to turned."""
    for b in range(rows.size):
        row = table[rows[b]]
        for e in range(row.size):
            desk.x[b, e] = row[e]
    for e in range(table.shape[1]):
        for b in range(rows.size):
            desk.turned[e, b] = desk.x[b, e]


@compiled
def _loss(logits: Floats, classes: int, truth: Ints, weight: Floats, out: Floats) -> None:
    """Sets out (1,) to the sum of weight (B,) times -log p of the true class, p at least the least normal number."""
    padded, total = logits.size // classes, 0.0
    most = -math.log(np.finfo(logits.dtype).tiny)
    for b in range(truth.size):
        top = logits[b]
        for c in range(1, classes):
            top = max(top, logits[c * padded + b])
        terms = 0.0
        for c in range(classes):
            terms += math.exp(logits[c * padded + b] - top)
        surprise = math.log(terms) - (logits[truth[b] * padded + b] - top)
        total += weight[b] * (most if surprise > most else surprise)
    out[0] = total


@compiled
def _logits(head: Floats, h: int, width: int, classes: int, turned: Floats, out: Floats, lane: int) -> None:
    """Sets out (C, B') to head (C, E), which begins at h, times turned (E, B'): ten, five, two, one class at a time."""
    padded = turned.shape[1]
    tiled = padded - padded % (FORWARD * lane)
    for v in range(0, tiled, FORWARD * lane):
        c = 0
        while WIDE and c + 10 <= classes:  # 20 sums and their factors do not fit into 16 registers
            F10(head, h + c * width, width, turned, v, padded, width, out, c * padded + v, padded)
            c += 10
        while c + 5 <= classes:
            F5(head, h + c * width, width, turned, v, padded, width, out, c * padded + v, padded)
            c += 5
        while c + 2 <= classes:
            F2(head, h + c * width, width, turned, v, padded, width, out, c * padded + v, padded)
            c += 2
        while c < classes:
            F1(head, h + c * width, width, turned, v, padded, width, out, c * padded + v, padded)
            c += 1
    for v in range(tiled, padded, lane):
        _slim(head, h, width, classes, turned, v, padded, width, out, v, padded)


@compiled
def _gradient(error: Floats, padded: int, classes: int, x: Floats, out: Floats, first: int, lane: int) -> None:
    """Sets out (C, E), which begins at `first`, to error (C, B') times x (B, E); E is at least one vector."""
    size, width = x.shape
    tiled = width - width % (BACKWARD * lane)
    for v in range(0, tiled, BACKWARD * lane):
        c = 0
        while c + 5 <= classes:
            B5(error, c * padded, padded, x, v, width, size, out, first + c * width + v, width)
            c += 5
        while c + 2 <= classes:
            B2(error, c * padded, padded, x, v, width, size, out, first + c * width + v, width)
            c += 2
        while c < classes:
            B1(error, c * padded, padded, x, v, width, size, out, first + c * width + v, width)
            c += 1
    for v in range(tiled, width, lane):
        begin = min(
            v, width - lane
        )  # the last vector overlaps the one before: those numbers are set twice, to the same value
        _slim(error, 0, padded, classes, x, begin, width, size, out, first + begin, width)


@compiled
def _slim(
    a: Floats, a0: int, ar: int, rows: int, b: Floats, b0: int, bk: int, count: int, out: Floats, o0: int, step: int
) -> None:
    """One column of tiles that are a single vector wide; arguments as in lanes.TILES."""
    r = 0
    while r + 10 <= rows:
        S10(a, a0 + r * ar, ar, b, b0, bk, count, out, o0 + r * step, step)
        r += 10
    while r + 5 <= rows:
        S5(a, a0 + r * ar, ar, b, b0, bk, count, out, o0 + r * step, step)
        r += 5
    while r + 2 <= rows:
        S2(a, a0 + r * ar, ar, b, b0, bk, count, out, o0 + r * step, step)
        r += 2
    while r < rows:
        S1(a, a0 + r * ar, ar, b, b0, bk, count, out, o0 + r * step, step)
        r += 1

"""Epochs of a single head on a CPU, compiled: twin of compute.training.stack's training side by side.

The head, its gradient and the optimiser's state stay in the core's cache from the first step to the last. Python runs
once an epoch, not for each part of a step, so threads do not wait for its lock. Import this module only if Numba is
installed.
"""

from collections.abc import Sequence

import numpy as np
import torch

from privacy_gate.arrays import Floats, Ints
from privacy_gate.native.compiler import compiled
from privacy_gate.native.lanes import ACROSS, BACKWARD, DOWN, FETCHED, GATHERED, MEETING, lanes, softmax
from privacy_gate.native.optimizers import adam, sgd
from privacy_gate.native.products import dot

SGD, ADAM, ADAMW = range(3)
KINDS = {"sgd": SGD, "adam": ADAM, "adamw": ADAMW}

# Tiles by their number of classes: B and S for gradients, wide and one vector wide; MANY, TWO, ONE for logits.
B5, B2, B1 = (GATHERED[classes, BACKWARD] for classes in (5, 2, 1))
MANY, TWO, ONE = (MEETING[classes] for classes in (ACROSS, 2, 1))
S5, S1 = (GATHERED[classes, 1] for classes in (5, 1))


def train_epoch(
    x: torch.Tensor,
    y: torch.Tensor,
    order: Ints,
    head: torch.Tensor,
    state: Floats,
    *,
    batch: int,
    smoothing: float,
    optimizer: str,
    settings: Sequence[float],
    before: int,
) -> None:
    """Trains a head (C, W) in place on the rows `order` of x (N, W) of classes y (N,), batch by batch.

    state (3, C, W): as the epochs before left it, see `first_state`. optimizer: a name in KINDS. settings: rate, weight
    decay, and for sgd momentum and 1 for Nesterov's, for the others both betas and eps. before: steps taken in earlier
    epochs.
    """
    _epoch(
        x.numpy(),
        order,
        y.numpy(),
        batch,
        lanes(state.dtype),
        head.numpy(),
        state,
        smoothing,
        KINDS[optimizer],
        np.array([*settings, 0.0][:5]),
        before,
    )


def first_state(head: torch.Tensor) -> Floats:
    """Work space of a head (C, W) before its first epoch, (3, C, W): gradient, and two averages of the optimiser."""
    # Made by torch: its arrays begin at a cache line, NumPy's need not.
    state: Floats = head.new_zeros(3, *head.shape).numpy()
    return state


@compiled
def _epoch(
    x: Floats,
    order: Ints,
    label: Ints,
    batch: int,
    lane: int,
    head: Floats,
    state: Floats,
    smoothing: float,
    kind: int,
    settings: Floats,
    before: int,
) -> None:
    """See `train_epoch`. settings: five numbers, 0 for those that the optimiser does not have."""
    classes, padded = len(head), -(-min(batch, len(order)) // lane) * lane
    error, share = np.zeros((classes, padded), head.dtype), np.zeros(padded, head.dtype)
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        _say(x, rows, head, error)
        share[: len(rows)] = 1 / len(rows)
        share[len(rows) :] = 0
        softmax(error, 0, classes, padded, share)
        part = head.dtype.type(smoothing / classes / len(rows))
        truth = head.dtype.type((1 - smoothing) / len(rows))
        if smoothing > 0:
            error -= part
        for b in range(len(rows)):
            error[label[rows[b]], b] -= truth
        following = order[first + batch : first + 2 * batch]
        _sum_up(x, rows, error, state[0], lane, following if len(following) == len(rows) else rows)
        before += 1
        if kind == SGD:
            sgd(head.ravel(), state[0].ravel(), state[1].ravel(), settings, before == 1)
        else:
            adam(head.ravel(), state[0].ravel(), state[1].ravel(), state[2].ravel(), settings, kind == ADAMW, before)


@compiled
def _say(x: Floats, rows: Ints, head: Floats, out: Floats) -> None:
    """Sets the first B columns of out (C, B') to the logits of a head (C, W) on rows (B,) of x (N, W)."""
    classes, size = len(head), len(rows)
    tiled, c = size - size % DOWN, 0
    while c + ACROSS <= classes:
        for b in range(0, tiled, DOWN):
            MANY(x, rows, b, head, c, out)
        c += ACROSS
    while c + 2 <= classes:
        for b in range(0, tiled, DOWN):
            TWO(x, rows, b, head, c, out)
        c += 2
    while c < classes:
        for b in range(0, tiled, DOWN):
            ONE(x, rows, b, head, c, out)
        c += 1
    for c in range(classes):
        for b in range(tiled, size):
            dot(x[rows[b]], head[c], out[c], b)


@compiled
def _sum_up(x: Floats, rows: Ints, error: Floats, out: Floats, lane: int, ahead: Ints) -> None:
    """Sets out (C, W) to error (C, B'), its first B columns, times rows (B,) of x (N, W).

    ahead (B,): rows of x of the next batch, which are fetched into the cache meanwhile. The tile of the first five
    classes fetches one half of its columns, that of the next five the other half.
    """
    classes, width = out.shape
    tiled = width - width % (BACKWARD * lane)
    for v in range(0, tiled, BACKWARD * lane):
        c = 0
        while c + 5 <= classes:
            B5(error, c, x, rows, v, out, ahead, v + c // 5 % 2 * FETCHED * lane)
            c += 5
        while c + 2 <= classes:
            B2(error, c, x, rows, v, out, ahead, v)
            c += 2
        while c < classes:
            B1(error, c, x, rows, v, out, ahead, v)
            c += 1
    for v in range(tiled, width, lane):
        c = 0
        while c + 5 <= classes:
            S5(error, c, x, rows, v, out, ahead, v)
            c += 5
        while c < classes:
            S1(error, c, x, rows, v, out, ahead, v)
            c += 1

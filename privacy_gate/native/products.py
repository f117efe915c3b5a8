"""The two products of stacked heads on a CPU, compiled: twins of compute.training.products.Gathered.

A matrix library needs each head's batch copied to one place, and uses few of its registers if heads have few classes.
Here rows are read where they stand in the table, and four rows and five classes are multiplied at once: 20 sums in
registers. The rest goes one row or class at a time. Each sum of a tile has a variable of its own, because compilers
keep only plain variables in registers. Measured in .github/decisions/0006-exact-batches.md.
"""

from privacy_gate.arrays import Floats, Ints
from privacy_gate.native.compiler import compiled

ROWS, CLASSES = 4, 5
"""Rows and classes of a tile."""


@compiled
def logits(x: Floats, rows: Ints, parameters: Floats, out: Floats) -> None:
    """Sets out (M, C, B) to the logits of heads (M, C, W) on rows (M, B) of x (N, W)."""
    models, classes, _ = parameters.shape
    size = rows.shape[1]
    tiled_rows, tiled_classes = size - size % ROWS, classes - classes % CLASSES
    for m in range(models):
        head, mine, said = parameters[m], rows[m], out[m]
        for c in range(0, tiled_classes, CLASSES):
            for b in range(0, tiled_rows, ROWS):
                _dot_tile(x, mine, head, said, c, b)
        for c in range(tiled_classes, classes):
            for b in range(0, tiled_rows, ROWS):
                _dot_rows(x, mine, head[c], said[c], b)
        for c in range(classes):
            for b in range(tiled_rows, size):
                dot(x[mine[b]], head[c], said[c], b)


@compiled
def gradient(x: Floats, rows: Ints, error: Floats, out: Floats) -> None:
    """Sets out (M, C, W) to the sum over b of error (M, C, B) times rows (M, B) of x (N, W)."""
    models, classes, _ = out.shape
    size = rows.shape[1]
    tiled_rows, tiled_classes = size - size % ROWS, classes - classes % CLASSES
    for m in range(models):
        slope, mine, wrong = out[m], rows[m], error[m]
        slope[:] = 0
        for c in range(0, tiled_classes, CLASSES):
            for b in range(0, tiled_rows, ROWS):
                _add_tile(x, mine, wrong, slope, c, b)
        for c in range(tiled_classes, classes):
            for b in range(0, tiled_rows, ROWS):
                _add_rows(x, mine, wrong[c], slope[c], b)
        for c in range(classes):
            for b in range(tiled_rows, size):
                _add(x[mine[b]], wrong[c, b], slope[c])


@compiled
def dot(x: Floats, w: Floats, out: Floats, b: int) -> None:
    """Sets out[b] to the inner product of x and w, each (W,)."""
    total = w.dtype.type(0)
    for k in range(w.size):
        total += w[k] * x[k]
    out[b] = total


@compiled
def _dot_rows(x: Floats, rows: Ints, w: Floats, out: Floats, b: int) -> None:
    x0, x1, x2, x3 = x[rows[b]], x[rows[b + 1]], x[rows[b + 2]], x[rows[b + 3]]
    s0 = s1 = s2 = s3 = w.dtype.type(0)
    for k in range(w.size):
        s0 += w[k] * x0[k]
        s1 += w[k] * x1[k]
        s2 += w[k] * x2[k]
        s3 += w[k] * x3[k]
    out[b], out[b + 1], out[b + 2], out[b + 3] = s0, s1, s2, s3


@compiled
def _add(x: Floats, weight: float, out: Floats) -> None:
    for k in range(out.size):
        out[k] += weight * x[k]


@compiled
def _add_rows(x: Floats, rows: Ints, weight: Floats, out: Floats, b: int) -> None:
    x0, x1, x2, x3 = x[rows[b]], x[rows[b + 1]], x[rows[b + 2]], x[rows[b + 3]]
    e0, e1, e2, e3 = weight[b], weight[b + 1], weight[b + 2], weight[b + 3]
    for k in range(out.size):
        out[k] += x0[k] * e0 + x1[k] * e1 + x2[k] * e2 + x3[k] * e3


@compiled
def _dot_tile(x: Floats, rows: Ints, head: Floats, out: Floats, c: int, b: int) -> None:
    """Sets out[c : c + 5, b : b + 4], a tile of logits."""
    x0, x1, x2, x3 = x[rows[b]], x[rows[b + 1]], x[rows[b + 2]], x[rows[b + 3]]
    w0, w1, w2, w3, w4 = head[c], head[c + 1], head[c + 2], head[c + 3], head[c + 4]
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = s20 = s21 = head.dtype.type(0)
    s22 = s23 = s30 = s31 = s32 = s33 = s40 = s41 = s42 = s43 = head.dtype.type(0)
    for k in range(w0.size):
        t, u, v, z = x0[k], x1[k], x2[k], x3[k]
        w = w0[k]
        s00 += w * t
        s01 += w * u
        s02 += w * v
        s03 += w * z
        w = w1[k]
        s10 += w * t
        s11 += w * u
        s12 += w * v
        s13 += w * z
        w = w2[k]
        s20 += w * t
        s21 += w * u
        s22 += w * v
        s23 += w * z
        w = w3[k]
        s30 += w * t
        s31 += w * u
        s32 += w * v
        s33 += w * z
        w = w4[k]
        s40 += w * t
        s41 += w * u
        s42 += w * v
        s43 += w * z
    out[c, b], out[c, b + 1], out[c, b + 2], out[c, b + 3] = s00, s01, s02, s03
    out[c + 1, b], out[c + 1, b + 1], out[c + 1, b + 2], out[c + 1, b + 3] = s10, s11, s12, s13
    out[c + 2, b], out[c + 2, b + 1], out[c + 2, b + 2], out[c + 2, b + 3] = s20, s21, s22, s23
    out[c + 3, b], out[c + 3, b + 1], out[c + 3, b + 2], out[c + 3, b + 3] = s30, s31, s32, s33
    out[c + 4, b], out[c + 4, b + 1], out[c + 4, b + 2], out[c + 4, b + 3] = s40, s41, s42, s43


@compiled
def _add_tile(x: Floats, rows: Ints, error: Floats, out: Floats, c: int, b: int) -> None:
    """Adds rows b to b + 3, weighted by their errors, to out[c : c + 5]: one load and store of a sum for four rows."""
    x0, x1, x2, x3 = x[rows[b]], x[rows[b + 1]], x[rows[b + 2]], x[rows[b + 3]]
    g0, g1, g2, g3, g4 = out[c], out[c + 1], out[c + 2], out[c + 3], out[c + 4]
    e00, e01, e02, e03 = error[c, b], error[c, b + 1], error[c, b + 2], error[c, b + 3]
    e10, e11, e12, e13 = error[c + 1, b], error[c + 1, b + 1], error[c + 1, b + 2], error[c + 1, b + 3]
    e20, e21, e22, e23 = error[c + 2, b], error[c + 2, b + 1], error[c + 2, b + 2], error[c + 2, b + 3]
    e30, e31, e32, e33 = error[c + 3, b], error[c + 3, b + 1], error[c + 3, b + 2], error[c + 3, b + 3]
    e40, e41, e42, e43 = error[c + 4, b], error[c + 4, b + 1], error[c + 4, b + 2], error[c + 4, b + 3]
    for k in range(g0.size):
        t, u, v, z = x0[k], x1[k], x2[k], x3[k]
        g0[k] += t * e00 + u * e01 + v * e02 + z * e03
        g1[k] += t * e10 + u * e11 + v * e12 + z * e13
        g2[k] += t * e20 + u * e21 + v * e22 + z * e23
        g3[k] += t * e30 + u * e31 + v * e32 + z * e33
        g4[k] += t * e40 + u * e41 + v * e42 + z * e43

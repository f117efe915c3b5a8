"""How models of one recipe respond to the rows they were trained on and to the others, each compared with the rest."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from privacy_gate.arrays import Bools, Floats

SUSPECTED = 0.05
"""Share of wrong declarations for which the doubt statistic is tuned; it weighs the few rows that are informative."""

RELATED = 4.0
"""Training sets whose correlation exceeds this many standard deviations of chance were drawn together."""

LEAST_VARIANCE = 1e-12
"""Squared nats: lower bound for a row on which all models agree to the last digit."""

BLOCK_VALUES = 2**20
"""Values (models times rows) processed in float64 at a time: 8 MiB for each temporary array."""

MEMBERS, OTHERS = 0, 1
"""Index of a side: rows that are declared as the model's training rows, and the other audited rows."""


@dataclass(frozen=True)
class Behaviour:
    """How each model responds on its two sides; arrays (2, M + 1): side, then model, the candidate first.

    level      mean of z, the row's phi in standard deviations from the models that have the row on the same side
    spread     log of the mean of |z|
    doubt      mean evidence that a row is declared wrongly: the score of a mixture in which a share
               SUSPECTED of rows is on the other side
    exchanged  the doubt if every row were declared on the other side
    rows       number of rows that could be compared
    """

    level: Floats
    spread: Floats
    doubt: Floats
    exchanged: Floats
    rows: Floats


def behaviour(phi: Floats, included: Bools) -> Behaviour:
    """The behaviour of every model compared with the others; phi (nats), training sets (M + 1, N), candidate first."""
    others = unrelated(included).astype(np.float64)
    others[1:, 0] = 0.0  # the candidate must not influence the references that it is compared with
    total = np.zeros((5, 2, len(phi)))
    for rows in _blocks(*phi.shape):
        z, ratio, usable = compare(phi[:, rows].astype(np.float64), included[:, rows], others)
        for side, chosen in enumerate((included[:, rows] & usable, ~included[:, rows] & usable)):
            for place, values in enumerate((usable, z, np.abs(z), _doubt(ratio), _doubt(-ratio))):
                total[place, side] += np.where(chosen, values, 0.0).sum(axis=1)
    rows_used = total[0]
    level, magnitude, doubt, exchanged = total[1:] / np.maximum(rows_used, 1)
    return Behaviour(level, np.log(np.maximum(magnitude, LEAST_VARIANCE)), doubt, exchanged, rows_used)


def compare(phi: Floats, included: Bools, others: Floats) -> tuple[Floats, Floats, Bools]:
    """Each model's rows compared with the other models, on the same side of the row and on the other side.

    phi, included (M + 1, N); others (M + 1, M + 1), 1 if the row's model is compared with the column's. Returns three
    arrays (M + 1, N): z = (phi - mean) / deviation, from models on the same side; the log likelihood ratio of the
    other side over the same side, nats; and whether both are defined. Both sides share a row's variance, so that it
    is defined even for a row in few training sets; the error of a mean of n models adds 1/n of it.
    """
    # Centred first: the sums of squares below would lose their digits if phi were far from 0.
    phi = phi - phi[1:].mean(axis=0)
    sides = []
    for chosen in (included.astype(np.float64), (~included).astype(np.float64)):
        count = others @ chosen
        mean = others @ (chosen * phi) / np.maximum(count, 1)
        sides.append((count, mean, others @ (chosen * phi**2) - count * mean**2))
    (count_in, mean_in, squares_in), (count_out, mean_out, squares_out) = sides
    freedom = np.maximum(count_in + count_out - 2, 1)
    variance = np.maximum((squares_in + squares_out) / freedom, LEAST_VARIANCE)
    scale_in, scale_out = (variance * (1 + 1 / np.maximum(count, 1)) for count in (count_in, count_out))
    z_in, z_out = (phi - mean_in) / np.sqrt(scale_in), (phi - mean_out) / np.sqrt(scale_out)
    out_over_in = (z_in**2 - z_out**2 + np.log(scale_in / scale_out)) / 2
    ratio = np.where(included, out_over_in, -out_over_in)
    return np.where(included, z_in, z_out), ratio, (count_in > 0) & (count_out > 0)


def unrelated(included: Bools) -> Bools:
    """Which models (columns) each model (rows) is compared with: (M, M); not itself, and none drawn together with it.

    included (M, N). References that divide the pool between them deviate from each other row by row. The candidate
    has no such relative, so the references must not be compared with theirs either.
    """
    models, rows = included.shape
    overlap = np.zeros((models, models))
    for part in _blocks(models, rows):
        values = included[:, part].astype(np.float32)
        overlap += values @ values.T
    share = np.diag(overlap) / rows
    deviation = np.sqrt(np.outer(share * (1 - share), share * (1 - share)))
    alone = np.abs(overlap / rows - np.outer(share, share)) <= RELATED / np.sqrt(rows) * deviation
    return np.asarray(alone & ~np.eye(models, dtype=bool))


def _doubt(ratio: Floats) -> Floats:
    """Score for the share of wrong declarations, evaluated at SUSPECTED, from log likelihood ratios in nats.

    The derivative of log(1 - s + s L) with respect to s; between -1 / (1 - s) and 1 / s.
    """
    odds = np.exp(np.clip(ratio, -50, 50))  # beyond, the score is at its bound and exp may overflow
    return np.asarray((odds - 1) / (1 - SUSPECTED + SUSPECTED * odds))


def _blocks(models: int, rows: int) -> Iterator[slice]:
    """Consecutive slices over `rows`, each of at most BLOCK_VALUES values or one row."""
    step = max(1, BLOCK_VALUES // max(models, 1))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))

"""LiRA on each model in turn, with all others as its references: the protocol of arXiv 2402.06674.

M models and N rows cost O(M N), not O(M^2 N): each row's moments over all models are computed once, and each model is
then removed from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.lira import ENOUGH, LEAST_VARIANCE, Variance, log_ratio
from privacy_gate.attacks.moments import Moments, block_moments, row_blocks
from privacy_gate.errors import EvidenceError


def all_models(evidence: MembershipEvidence) -> tuple[Floats, Bools]:
    """phi and training sets of the candidate (first) and its M references on the audited rows: (M + 1, N)."""
    pool = evidence.pool
    phi = np.concatenate([evidence.target[None, pool], evidence.reference[:, pool]])
    return phi, np.concatenate([evidence.member[None, pool], evidence.included[:, pool]])


def lira_every_model(
    phi: Floats, included: Bools, *, online: bool = True, variance: Variance | Literal["auto"] = "auto"
) -> Floats:
    """Score of every row with every model as target and the other M - 1 as references: (M, N) float64.

    phi, included (M, N): logit-scaled confidences (nats) and training sets of audited rows. Equal to `lira_online` or
    `lira_offline` on each model; NaN if a row then lacks a side that is needed.
    """
    scores = np.empty(phi.shape)
    for rows, block in lira_blocks(phi, included, online=online, variance=variance):
        scores[:, rows] = block
    return scores


def lira_blocks(
    phi: Floats, included: Bools, *, online: bool = True, variance: Variance | Literal["auto"] = "auto"
) -> Iterator[tuple[slice, Floats]]:
    """`lira_every_model` in consecutive blocks of rows: the slice and its scores (M, rows).

    Reads phi twice and keeps one block in memory, so phi may be a memory-mapped file.
    Raises EvidenceError if a pooled variance has no row with two models on a side.
    """
    inside, outside = _survey(phi, included)
    sides = (inside, outside) if online else (outside,)
    by_row = np.full(len(phi), variance == "per_example")
    if variance == "auto":
        by_row = np.min([side.least for side in sides], axis=0) >= ENOUGH
    # Only models that use the pooled variance need degrees of freedom.
    if not by_row.all() and min(side.freedom[~by_row].min() for side in sides) == 0:
        raise EvidenceError("no audited row has two models on the same side: use more references")
    for rows in row_blocks(*phi.shape):
        block, chosen = phi[:, rows].astype(np.float64), included[:, rows]
        # Each model is removed from the side it is on; from the other side nothing is removed.
        out = block_moments(block, ~chosen).without(block, ~chosen)
        out_variance = _variances(out, outside, by_row)
        if online:
            within = block_moments(block, chosen).without(block, chosen)
            yield rows, log_ratio(block, within.mean, _variances(within, inside, by_row), out.mean, out_variance)
        else:
            yield rows, (block - out.mean) / np.sqrt(out_variance)


@dataclass(frozen=True)
class _Side:
    """One side of all rows, with each model left out in turn; arrays (M,).

    squares, freedom  squared deviations from the rows' means, summed over rows, and their degrees of freedom
    least             number of models on the row that has fewest
    """

    squares: Floats
    freedom: Floats
    least: Floats


def _survey(phi: Floats, included: Bools) -> tuple[_Side, _Side]:
    """The first reading: the sums over all rows that the second reading needs; (inside, outside)."""
    total = np.zeros((2, 2, len(phi)))
    least = np.full((2, len(phi)), np.inf)
    for rows in row_blocks(*phi.shape):
        block = phi[:, rows].astype(np.float64)
        for side, chosen in enumerate((included[:, rows], ~included[:, rows])):
            left = block_moments(block, chosen).without(block, chosen)
            total[side, 0] += left.squares.sum(axis=1)
            total[side, 1] += np.maximum(left.count - 1, 0.0).sum(axis=1)
            least[side] = np.minimum(least[side], left.count.min(axis=1))
    inside, outside = (_Side(total[side, 0], total[side, 1], least[side]) for side in (0, 1))
    return inside, outside


def _variances(left: Moments, side: _Side, by_row: Bools) -> Floats:
    """Variance of phi (M, rows), squared nats: the row's own if `by_row` (M,), else pooled over all rows."""
    pooled = np.divide(side.squares, side.freedom, out=np.zeros_like(side.squares), where=side.freedom > 0)
    single = np.divide(left.squares, left.count, out=np.zeros_like(left.squares), where=left.count > 0)
    return np.maximum(np.where(by_row[:, None], single, pooled[:, None]), LEAST_VARIANCE)

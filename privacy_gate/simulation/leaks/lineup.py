"""Line-ups: the attacker must pick the row it claims to have reconstructed among decoys that no client trained on."""

from dataclasses import dataclass

import numpy as np

from privacy_gate.arrays import Bools, Ints
from privacy_gate.dossier.dataset import AuditData, Split


@dataclass(frozen=True, eq=False)
class Bystanders:
    """Rows that no client trained on, divided by their use.

    own     the attacker's rows: the population; without one, half of the holdout
    decoys  the holdout; without a population, its other half

    The two are disjoint: a reconstruction is computed from the attacker's rows, so it would resemble decoys among them.
    """

    own: Ints
    decoys: Ints


def bystanders(data: AuditData) -> Bystanders:
    """The rows for attacker and decoys; without a population, each class of the holdout is split in halves."""
    population, holdout = (np.flatnonzero(data.split == split) for split in (Split.POPULATION, Split.HOLDOUT))
    if len(population):
        return Bystanders(own=population, decoys=holdout)
    # Seeded by the data's digest: the same table is always split in the same way.
    shuffled = np.random.default_rng(int(data.digest[:16], 16)).permutation(holdout)
    by_class = shuffled[np.argsort(data.label[shuffled], kind="stable")]
    return Bystanders(own=np.sort(by_class[::2]), decoys=np.sort(by_class[1::2]))


def eligible(data: AuditData, candidates: int) -> Bools:
    """Which rows are members whose class has at least candidates - 1 decoys, (N,)."""
    decoys = np.bincount(data.label[bystanders(data).decoys], minlength=int(data.label.max()) + 1)
    return np.asarray((data.split == Split.MEMBER) & (decoys[data.label] >= candidates - 1))


def line_up(
    data: AuditData, decoys: Ints, row: int, candidates: int, rng: np.random.Generator
) -> tuple[Ints, int, float]:
    """The line-up: rows (m,) in random order, the position of `row` among them, and the share of same-client decoys.

    Decoys have the row's class, and its client if possible, so that neither the label nor a client's style reveals the
    row. If its client has too few decoys, those of other clients fill up, which makes the row easier to find.
    """
    same_class = rng.permutation(decoys[data.label[decoys] == data.label[row]])
    near = np.ones(len(same_class), dtype=bool) if data.client is None else data.client[same_class] == data.client[row]
    chosen = np.concatenate([same_class[near], same_class[~near]])[: candidates - 1]
    # The row is the last of `candidates` before the shuffle, so its position is that of candidates - 1 in the order.
    order = rng.permutation(candidates)
    line = np.append(chosen, row)[order]
    return line, int(np.argmax(order == candidates - 1)), min(1.0, float(near.sum() / (candidates - 1)))

"""Who stands beside a row that an attacker claims to have reconstructed: rows of its class that nobody trained on."""

from dataclasses import dataclass

import numpy as np

from privacy_gate.arrays import Bools, Ints
from privacy_gate.dossier.dataset import AuditData, Split


@dataclass(frozen=True, eq=False)
class Bystanders:
    """Rows that no client trained on, told apart by what they are for.

    own     rows of the attacker: the population; half of the holdout where there is none
    decoys  the holdout, or its other half

    A row of the attacker's is never a decoy: what is computed from own rows would fit decoys better than targets.
    """

    own: Ints
    decoys: Ints


def bystanders(data: AuditData) -> Bystanders:
    """Every second row of each class of the holdout is the attacker's where the table has no population."""
    population, holdout = (np.flatnonzero(data.split == split) for split in (Split.POPULATION, Split.HOLDOUT))
    if len(population):
        return Bystanders(own=population, decoys=holdout)
    mixed = np.random.default_rng(int(data.digest[:16], 16)).permutation(holdout)
    by_class = mixed[np.argsort(data.label[mixed], kind="stable")]
    return Bystanders(own=np.sort(by_class[::2]), decoys=np.sort(by_class[1::2]))


def eligible(data: AuditData, candidates: int) -> Bools:
    """Which members could be told from candidates - 1 decoys of their class, (N,)."""
    found = np.bincount(data.label[bystanders(data).decoys], minlength=int(data.label.max()) + 1)
    return np.asarray((data.split == Split.MEMBER) & (found[data.label] >= candidates - 1))


def line_up(
    data: AuditData, decoys: Ints, row: int, candidates: int, rng: np.random.Generator
) -> tuple[Ints, int, float]:
    """Rows (m,) in random order, where among them `row` stands, and the share of decoys that are of its own client.

    Decoys are of the row's class and of its client, so that neither a label nor a client's style gives it away; where
    the client has too few, other clients' stand in, and make the row look easier to find than it is.
    """
    alike = rng.permutation(decoys[data.label[decoys] == data.label[row]])
    near = np.ones(len(alike), dtype=bool) if data.client is None else data.client[alike] == data.client[row]
    chosen = np.concatenate([alike[near], alike[~near]])[: candidates - 1]
    order = rng.permutation(candidates)
    shown = np.append(chosen, row)[order]
    return shown, int(np.argmax(order == candidates - 1)), min(1.0, float(near.sum() / (candidates - 1)))

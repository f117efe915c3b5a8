"""The ranks of members among non-members. The metrics of an attack need nothing else of its scores."""

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.errors import EvidenceError


def checked(member: Floats, holdout: Floats) -> tuple[Floats, Floats]:
    """Scores of members (m,) and holdout (n,) as float64.

    Raises EvidenceError if one is not a vector, is empty, or has a value that is not finite.
    """
    arrays = []
    for name, scores in (("member", member), ("holdout", holdout)):
        array = np.asarray(scores, dtype=np.float64)
        if array.ndim != 1 or not array.size:
            raise EvidenceError(f"{name} scores have shape {array.shape}, expected a vector with at least one score")
        if bad := int(np.count_nonzero(~np.isfinite(array))):
            raise EvidenceError(f"{bad} of {array.size} {name} scores are not finite numbers, expected none")
        arrays.append(array)
    return arrays[0], arrays[1]


def members_above(member: Floats, holdout: Floats) -> Floats:
    """How many members score above the k-th largest holdout score, k = 0 .. n + 1: (n + 2,), ascending.

    k = 0 stands for a threshold above every score, n + 1 for one below every score. Ties count in expectation over an
    attacker who breaks them at random: of b members tied with a holdout rows, b j / (a + 1) lie above the j-th of
    these rows.
    """
    ordered, members = np.sort(holdout), np.sort(member)
    descending = ordered[::-1]
    above = len(members) - np.searchsorted(members, descending, side="right")
    tied = len(members) - np.searchsorted(members, descending, side="left") - above
    before = len(ordered) - np.searchsorted(ordered, descending, side="right")
    equal = len(ordered) - np.searchsorted(ordered, descending, side="left") - before
    place = np.arange(1, len(ordered) + 1) - before  # j: place of the row within its tie, from 1
    return np.concatenate([[0.0], above + tied * place / (equal + 1), [float(len(members))]])


def corners(member: Floats, holdout: Floats) -> tuple[Floats, Floats]:
    """Numbers of holdout rows and of members at or above each distinct score, from none to all: two (T,) arrays."""
    scores = np.unique(np.concatenate([member, holdout]))[::-1]

    def at_or_above(rows: Floats) -> Floats:
        return np.append(0.0, len(rows) - np.searchsorted(np.sort(rows), scores, side="left"))

    return at_or_above(holdout), at_or_above(member)

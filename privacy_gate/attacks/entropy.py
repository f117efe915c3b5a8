"""The modified entropy, with a threshold for each class, learnt on one reference."""

import numpy as np

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.errors import EvidenceError


def entropy(evidence: MembershipEvidence) -> Floats:
    """Log of the class's threshold minus log of the row's modified entropy, (N,) nats: Song & Mittal 2021
    (arXiv 2003.10595). Above 0: a member, by the threshold learnt on reference 0.

    The logarithm changes no decision. It separates rows that the candidate is sure of: their entropies differ by less
    than the last digit of the threshold. Raises EvidenceError without the logits of reference 0.
    """
    if evidence.reference_logits is None:
        raise EvidenceError("the entropy attack needs the logits of reference 0, found none")
    pool = evidence.pool
    learnt_on = log_modified_entropy(evidence.reference_logits, evidence.label)[pool]
    threshold = thresholds(learnt_on, evidence.included[0][pool], evidence.label[pool], evidence.logits.shape[1])
    return threshold[evidence.label] - log_modified_entropy(evidence.logits, evidence.label)


def log_modified_entropy(logits: Floats, label: Ints) -> Floats:
    """log of -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i), (N, C) -> (N,); smaller = surer and right.

    For the largest p_i, 1 - p_i is computed from the sum of the others relative to it, so it never rounds to 0.
    """
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True)
    rows, top = np.arange(len(shifted)), shifted.argmax(axis=1)
    others = np.exp(shifted)
    others[rows, top] = 0.0
    rest = np.maximum(others.sum(axis=1), np.finfo(np.float64).tiny)
    log_p = shifted - np.log1p(rest)[:, None]
    log_other = np.log1p(-others / (1 + rest)[:, None])
    # log(1 - p) of the largest class: rest / (1 + rest), without a subtraction that would cancel.
    log_other[rows, top] = np.log(rest) - np.log1p(rest)
    terms = -np.exp(log_p) * log_other
    terms[rows, label] = -np.exp(log_other[rows, label]) * log_p[rows, label]
    return np.asarray(np.log(np.maximum(terms.sum(axis=1), np.finfo(np.float64).tiny)))


def thresholds(value: Floats, member: Bools, label: Ints, classes: int) -> Floats:
    """For each class, the value below which a row is best called a member, (C,).

    value, member, label (N,) from a model whose members are known. A class without both members and others gets the
    threshold over all classes.
    """
    by_class = np.full(classes, best_threshold(value, member))
    for index in range(classes):
        rows = label == index
        if 0 < np.count_nonzero(member[rows]) < np.count_nonzero(rows):
            by_class[index] = best_threshold(value[rows], member[rows])
    return by_class


def best_threshold(value: Floats, member: Bools) -> float:
    """The value at which the members' share below exceeds the others' most, half-way to the next value.

    >>> best_threshold(np.array([1.0, 2.0, 4.0, 5.0]), np.array([True, True, False, False]))
    3.0
    """
    order = np.argsort(value, kind="stable")
    ordered, members = value[order], member[order]
    gain = np.cumsum(members) / max(members.sum(), 1) - np.cumsum(~members) / max((~members).sum(), 1)
    last = np.append(ordered[1:] > ordered[:-1], True)  # tied values cannot be separated, so cut only after the last
    best = int(np.argmax(np.where(last, gain, -np.inf)))
    return float((ordered[best] + ordered[min(best + 1, len(ordered) - 1)]) / 2)

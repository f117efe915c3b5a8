"""Attacks on what a row does to the head's weights: no references, but the frozen features and the recipe."""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from privacy_gate.errors import EvidenceError
from privacy_gate.evidence import Floats, MembershipEvidence, log_probability

MOST_PARAMETERS = 4_000
"""Of a head whose Hessian is inverted: 128 MB in float64, and seconds."""

JITTER = 1e-10
"""Added to the Hessian's diagonal, as a share of its mean: softmax has a direction that changes nothing."""

ONE_ROW = 1.0
"""The gradient left at the end of training, in units of one row's share of it, below which a head is converged."""


def gradient_norm(evidence: MembershipEvidence) -> Floats:
    """Minus the log of the norm of the row's loss gradient in the head's weights and bias, (N,) nats.

    ||p - onehot(y)|| sqrt(|x|^2 + 1), closed form of a linear head: arXiv 2402.06674 finds that it predicts who is
    vulnerable; members' gradients are small at the end of training (Nasr et al. 2019, arXiv 1812.00910). With
    ||p - onehot(y)|| = (1 - p_y) sqrt(1 + |q|^2), q the softmax of the other logits, nothing cancels.
    """
    others = np.exp(_log_others(evidence))
    doubt = log_probability(-evidence.target)
    length = np.log1p((_features(evidence) ** 2).sum(axis=1)) / 2
    return np.asarray(-(doubt + np.log1p((others**2).sum(axis=1)) / 2 + length))


def self_influence(evidence: MembershipEvidence) -> Floats:
    """Minus the log of how much the row's loss would grow had it been left out of training, (N,).

    Cohen & Giryes 2022 (arXiv 2205.13680) attack by self-influence, which is small for members: they are fitted. Here
    by one Newton step from the converged head, which for a head is exact to second order: see `phi_change`.
    The Hessian is that of the audited rows in the share that was trained on: who is a member is not used.
    """
    pool = evidence.pool
    share = float(np.count_nonzero(evidence.member) / np.count_nonzero(pool))
    inside = _augmented(evidence)
    inverse = _inverse_hessian(inside[pool], _probabilities(evidence)[pool], share, evidence.ridge or 0.0)
    change = phi_change(evidence, inside, inverse, outside=1 - share)
    growth = np.log1p(np.exp(log_probability(-evidence.target)) * np.expm1(-change))
    return np.asarray(-np.log(np.maximum(growth, np.finfo(np.float64).tiny)))


def phi_change(evidence: MembershipEvidence, inside: Floats, inverse: Floats, outside: float) -> Floats:
    """How phi of each row changes when the row is left out of training, (N,) nats.

    inside (N, E) features with a 1 for the bias; inverse (P, P), P = C E, of the Hessian of the summed loss. With
    A = (I (x) x)' H^-1 (I (x) x) and S = diag(p) - p p', the logits become z + A (I - S A)^-1 (p - onehot(y)).
    outside: by how much less than one time the row is counted in H; what is missing is added (Woodbury).
    """
    classes, width = evidence.logits.shape[1], inside.shape[1]
    leverage = np.empty((len(inside), classes, classes))
    blocks = inverse.reshape(classes, width, classes, width)
    for one in range(classes):
        for other in range(one + 1):
            leverage[:, one, other] = leverage[:, other, one] = ((inside @ blocks[one, :, other]) * inside).sum(axis=1)
    p, unit = _probabilities(evidence), np.eye(classes)
    spread = p[:, :, None] * unit - p[:, :, None] * p[:, None, :]
    leverage = leverage @ np.linalg.inv(unit + outside * spread @ leverage)
    step = np.linalg.solve(unit - spread @ leverage, _residual(evidence)[:, :, None])
    moved = (leverage @ step)[:, :, 0]
    rows = np.arange(len(moved))
    own = moved[rows, evidence.label]
    return np.asarray(own - np.log1p((np.exp(_log_others(evidence)) * np.expm1(moved)).sum(axis=1)))


def not_converged(evidence: MembershipEvidence) -> str | None:
    """Why leave-one-out by a Newton step would mean nothing here; None where it is sound."""
    if evidence.ridge is None:
        return "needs a training loss that is a mean plus an L2 penalty, without label smoothing or augmentation"
    inside, classes = _augmented(evidence), evidence.logits.shape[1]
    if inside.shape[1] * classes > MOST_PARAMETERS:
        return f"needs a head of at most {MOST_PARAMETERS:,} parameters, found {inside.shape[1] * classes:,}"
    weights, *_ = np.linalg.lstsq(inside, evidence.logits.astype(np.float64), rcond=None)
    members, residual = evidence.member, _residual(evidence)
    left = residual[members].T @ inside[members] / members.sum() + evidence.ridge * weights.T
    each = np.linalg.norm(residual[members], axis=1) * np.linalg.norm(inside[members], axis=1)
    shares = float(np.linalg.norm(left) * members.sum() / max(np.sqrt(np.mean(each**2)), np.finfo(np.float64).tiny))
    if shares > ONE_ROW:
        return f"needs a converged head: the gradient left at the end is {shares:.2g} times one row's share"
    return None


def _inverse_hessian(inside: Floats, p: Floats, share: float, ridge: float) -> Floats:
    """Inverse of share * sum_rows (diag p - p p') (x) x x' + share * rows * ridge * I: (P, P)."""
    rows, width = inside.shape
    classes = p.shape[1]
    hessian = np.empty((classes, width, classes, width))
    for one in range(classes):
        for other in range(one + 1):
            weight = p[:, one] * ((one == other) - p[:, other])
            block = share * (inside * weight[:, None]).T @ inside
            hessian[one, :, other], hessian[other, :, one] = block, block.T
    flat = hessian.reshape(classes * width, -1)
    flat[np.diag_indices(len(flat))] += share * rows * ridge + JITTER * float(np.trace(flat)) / len(flat)
    return np.asarray(cho_solve(cho_factor(flat, lower=True), np.eye(len(flat))))


def _augmented(evidence: MembershipEvidence) -> Floats:
    """Features with a 1 for the bias, (N, D + 1) float64."""
    features = _features(evidence)
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _features(evidence: MembershipEvidence) -> Floats:
    if evidence.features is None:
        raise EvidenceError("the attack needs the backbone's features, found none")
    return evidence.features.astype(np.float64)


def _log_others(evidence: MembershipEvidence) -> Floats:
    """Log softmax of the logits without the row's own class, (N, C); -inf there."""
    others = evidence.logits.astype(np.float64)
    others[np.arange(len(others)), evidence.label] = -np.inf
    others -= others.max(axis=1, keepdims=True)
    return np.asarray(others - np.log(np.exp(others).sum(axis=1, keepdims=True)))


def _residual(evidence: MembershipEvidence) -> Floats:
    """p - onehot(y), (N, C), without cancellation: (1 - p_y) q, and -(1 - p_y) for the row's own class."""
    doubt = np.exp(log_probability(-evidence.target))
    residual = np.exp(_log_others(evidence)) * doubt[:, None]
    residual[np.arange(len(doubt)), evidence.label] = -doubt
    return residual


def _probabilities(evidence: MembershipEvidence) -> Floats:
    """Softmax of the logits, (N, C)."""
    p = _residual(evidence)
    p[np.arange(len(p)), evidence.label] = np.exp(log_probability(evidence.target))
    return p

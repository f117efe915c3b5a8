"""Attacks on what a row does to the head's weights: no references, but the frozen features and the recipe."""

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.special import logsumexp

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence, log_probability
from privacy_gate.errors import EvidenceError

MOST_PARAMETERS = 16_384
"""Of a head whose Hessian is inverted in place: one matrix of 2.1 GB in float64, and a minute or two of two cores."""

BATCH_NUMBERS = 2**22
"""Float64 numbers in the largest array of one batch of rows, 32 MB, once the Hessian is inverted."""

JITTER = 1e-10
"""Added to the Hessian's diagonal, as a share of its mean: softmax has a direction that changes nothing."""

LEAST_PENALTY = 1e-10
"""Of the weights, as a share of the mean square length of a row: below it a leverage near one is lost in rounding."""

ONE_ROW = 1.0
"""The gradient left at the end of training, in units of one row's share of it, below which a head is converged.

Leaving a row out moves the head by that row's share of the gradient: what training left undone must not move it
further. The noise of sampling, larger by sqrt(members), would be no bound: it says when training may stop, not this.
"""


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

    Cohen & Giryes 2022 (arXiv 2205.13680) accuse rows whose self-influence lies in a window learnt on known members.
    Its upper side is what theory gives, members are fitted and change little, and needs no known members; so here
    small is accused. By one Newton step from the converged head, not by its first order: see `phi_change`.
    The Hessian is that of the audited rows in the share that was trained on: who is a member is not used.
    """
    pool = evidence.pool
    share = float(np.count_nonzero(evidence.member) / np.count_nonzero(pool))
    inverse = _inverse_hessian(_augmented(evidence)[pool], _probabilities(evidence)[pool], share, evidence.ridge or 0.0)
    fall = -phi_change(evidence, inverse, counted=np.where(pool, share, 0.0))
    log_doubt, log_sure = log_probability(-evidence.target), log_probability(evidence.target)
    small = np.log1p(np.exp(log_doubt) * np.expm1(np.minimum(fall, 1.0)))
    growth = np.where(fall < 1.0, small, np.logaddexp(log_sure, log_doubt + fall))
    return np.asarray(-np.log(np.maximum(growth, np.finfo(np.float64).tiny)))


def phi_change(evidence: MembershipEvidence, inverse: Floats, counted: Floats) -> Floats:
    """How phi of each row changes when the row is left out of training, (N,) nats.

    inverse (P, P), P = C (D + 1), of the Hessian H of the summed loss; counted (N,): how many times the row is in H.
    With A = (I (x) x)' H^-1 (I (x) x), S = diag(p) - p p' and residual p - onehot(y), the logits become
    z + A (I - S A)^-1 residual where the row is counted once (Woodbury). A row that H counts in part or not at all is
    filled up to once and then left out, which together is z + A (I - counted S A)^-1 residual.
    """
    inside, p, residual, log_others = (
        _augmented(evidence),
        _probabilities(evidence),
        _residual(evidence),
        _log_others(evidence),
    )
    batch = max(BATCH_NUMBERS // max(p.shape[1] ** 2, len(inverse)), 1)
    change = np.empty(len(inside))
    for start in range(0, len(inside), batch):
        rows = slice(start, start + batch)
        moved = _moved(inside[rows], p[rows], residual[rows], inverse, counted[rows])
        own = np.take_along_axis(moved, evidence.label[rows, None], axis=1)[:, 0]
        change[rows] = own - _log_mean_exp(log_others[rows], moved)
    return change


def _moved(inside: Floats, p: Floats, residual: Floats, inverse: Floats, counted: Floats) -> Floats:
    """A (I - counted S A)^-1 residual, (B, C), of B rows: see `phi_change`."""
    rows, classes = p.shape
    width = inside.shape[1]
    blocks = inverse.reshape(classes, width, classes, width)
    leverage = np.empty((rows, classes, classes))
    for one in range(classes):
        upto = one + 1
        sides = (inside @ blocks[one, :, :upto].reshape(width, -1)).reshape(rows, upto, width)
        leverage[:, one, :upto] = leverage[:, :upto, one] = (sides @ inside[:, :, None])[:, :, 0]
    spread = p[:, :, None] * leverage - p[:, :, None] * (p[:, None, :] @ leverage)
    step = np.linalg.solve(np.eye(classes) - counted[:, None, None] * spread, residual[:, :, None])
    return np.asarray((leverage @ step)[:, :, 0])


def _log_mean_exp(log_weight: Floats, value: Floats) -> Floats:
    """log sum_c exp(log_weight + value), (B,), of weights (B, C) that sum to 1: exact for small values and large."""
    near = np.log1p((np.exp(log_weight) * np.expm1(np.clip(value, -1.0, 1.0))).sum(axis=1))
    far = logsumexp(log_weight + value, axis=1)
    return np.asarray(np.where(np.abs(value).max(axis=1) < 1.0, near, far))


def not_converged(evidence: MembershipEvidence) -> str | None:
    """Why leave-one-out by a Newton step would mean nothing here; None where it is sound."""
    if evidence.ridge is None:
        return "needs a training loss that is a mean plus an L2 penalty, without label smoothing or augmentation"
    inside, classes = _augmented(evidence), evidence.logits.shape[1]
    if inside.shape[1] * classes > MOST_PARAMETERS:
        return f"needs a head of at most {MOST_PARAMETERS:,} parameters, found {inside.shape[1] * classes:,}"
    if 0 < evidence.ridge < (least := LEAST_PENALTY * float((inside**2).sum(axis=1).mean())):
        return f"needs an L2 penalty of 0 or at least {least:.2g} for features of this size, found {evidence.ridge:.2g}"
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
    # In place and transposed, which for a symmetric matrix changes nothing but lets LAPACK work without a copy.
    factor, failed = dpotrf(flat.T, lower=True, overwrite_a=True)
    inverse, singular = (factor, failed) if failed else dpotri(factor, lower=True, overwrite_c=True)
    if failed or singular:
        raise EvidenceError("the Hessian of the candidate's head is singular: self_influence cannot be measured")
    for one in range(len(inverse)):
        inverse[one, one + 1 :] = inverse[one + 1 :, one]
    return np.asarray(inverse)


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

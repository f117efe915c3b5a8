"""A linear head recovered from its answers: log p_c - mean_c log p_c is linear in the features and a 1 for the bias."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.heads import centred, ridged_factor
from privacy_gate.attacks.release import FLOAT32, Release, released

MOST_STEPS, TOLERANCE = 200, 1e-6
"""Conjugate gradients of the weighted fit: the most steps, and the residual relative to the right-hand side.

Fewer steps blind the attack, which lives in the directions that converge last: at 40 steps seven decimals seem to hide
most members of the heads in tests/attacks, at 200 none.
"""

REFINED = 4
"""Steps of refinement of an unweighted fit."""

LEAST_WHOLE = 0.5
"""Share of rows with all probabilities in the range of float32 from which those rows alone are fitted."""

SOUND = 1e-2
"""Relative error of the fitted logits up to which a recovered head is taken for the candidate's."""


@dataclass(frozen=True)
class Recovered:
    """A head as its answers tell it.

    head      (C, D), bias last, less its mean over classes
    residual  root mean square error of the fitted logits in units of their spread; of answers used, weighted as fitted
    used      share of the answers that say something: not rounded to 0
    """

    head: Floats
    residual: float
    used: float

    @property
    def sound(self) -> bool:
        """Whether the answers determine the head."""
        return self.residual <= SOUND


def recover(x: Floats, answers: Floats, unit: float = 0.0) -> Recovered:
    """The head of a model that answers rows x (N, D), D counting a 1 for the bias, by probabilities (N, C).

    unit  the last decimal's size of rounded probabilities; 0: float32. The error of log p is then unit / (p sqrt 12):
    small probabilities say little and are weighted so. The constant that each row's logits lack is fitted too.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(answers)
    seen = answers > max(unit / 2, float(np.finfo(np.float32).tiny))
    logs = np.where(seen, logs, 0.0)
    whole = seen.all(axis=1)
    # A float32 holds probabilities down to 1e-38. The few rows with smaller ones are left out: the others suffice.
    if unit == 0 and whole.mean() > LEAST_WHOLE:
        rows, known = x[whole], logs[whole]
        head = _least_squares(rows, known - known.mean(axis=1, keepdims=True))
        return _judged(rows, known, np.ones(known.shape), head, seen)
    error = FLOAT32**2 + (unit / np.sqrt(12) / np.where(seen, answers, 1.0)) ** 2
    weight = np.where(seen, error.min() / error, 0.0)
    return _judged(x, logs, weight, _weighted(x, logs, weight), seen)


def _least_squares(x: Floats, values: Floats) -> Floats:
    """Heads (C, D) that fit values (N, C), of least norm if there are many.

    By the covariance with a little ridge, whose bias a few steps of refinement take away: ten times faster than a
    singular value decomposition.
    """
    factor, head = ridged_factor(x.T @ x), np.zeros((values.shape[1], x.shape[1]))
    for _ in range(REFINED):
        head += cho_solve(factor, x.T @ (values - x @ head.T)).T
    return head


def _judged(x: Floats, logs: Floats, weight: Floats, head: Floats, seen: Bools) -> Recovered:
    left, spread = (_without_constant(values, weight) for values in (logs - x @ head.T, logs))
    size = float((weight * spread**2).sum())
    residual = float(np.sqrt((weight * left**2).sum() / max(size, np.finfo(np.float64).tiny)))
    return Recovered(np.asarray(head - head.mean(axis=0)), residual, float(np.mean(seen)))


def _without_constant(values: Floats, weight: Floats) -> Floats:
    """values (..., N, C) less each row's weighted mean."""
    total = np.maximum(weight.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(values - (weight * values).sum(axis=-1, keepdims=True) / total)


def _weighted(x: Floats, logs: Floats, weight: Floats, prior: Floats | None = None) -> Floats:
    """Weighted least squares of logs (..., N, C) on x (N, D), with a constant for each row: heads (..., C, D).

    prior  (D, D): each class's weights w also cost w' prior w.
    By conjugate gradients on all classes together, preconditioned by each class's own weighted covariance; among heads
    whose mean over classes is 0, since no answer depends on it.
    """
    penalty = np.zeros((x.shape[1], x.shape[1])) if prior is None else prior
    factors = [ridged_factor((x * weight[:, one, None]).T @ x + penalty) for one in range(logs.shape[-1])]

    def image(head: Floats) -> Floats:
        pulled = weight * _without_constant(x @ head.swapaxes(-1, -2), weight)
        return centred(pulled.swapaxes(-1, -2) @ x + head @ penalty)

    def scaled(towards: Floats) -> Floats:
        return centred(np.stack([cho_solve(one, towards[..., c, :].T).T for c, one in enumerate(factors)], axis=-2))

    def product(one: Floats, other: Floats) -> Floats:
        return np.asarray((one * other).sum(axis=(-2, -1), keepdims=True))

    left = centred((weight * _without_constant(logs, weight)).swapaxes(-1, -2) @ x)
    head = np.zeros_like(left)
    step_on = scaled(left)
    inner = product(left, step_on)
    goal = TOLERANCE**2 * inner
    tiny = np.finfo(np.float64).tiny
    for _ in range(MOST_STEPS):
        if (inner <= goal).all():
            break
        moved = image(step_on)
        length = inner / np.maximum(product(step_on, moved), tiny)
        head += length * step_on
        left -= length * moved
        eased = scaled(left)
        before, inner = inner, product(left, eased)
        step_on = eased + inner / np.maximum(before, tiny) * step_on
    return head


def recover_rounded(x: Floats, heads: Floats, release: Release) -> Floats:
    """Heads (K, C, D) as their rounded answers on x (N, D) tell them, the first the candidate's: (K, C, D).

    The posterior mean of all weights, a priori normal about the references' mean head with covariance
    proportional to X'X, as training noise is, given log probabilities whose error is that of the rounding. One linear
    map for all models, so that what it blurs it blurs in references as in the candidate, and LiRA knows by how much.
    """
    heads = centred(heads)
    mean = heads[1:].mean(axis=0)
    factor = ridged_factor(x.T @ x)
    moved = heads[1:] - mean
    spread = float(np.mean([np.sum(one * cho_solve(factor, one.T).T) for one in moved]) / mean.size)
    prior = cho_solve(factor, np.eye(x.shape[1])) / max(spread, np.finfo(np.float64).tiny)
    typical = np.mean([released(x @ one.T, Release()) for one in heads[1:]], axis=0)
    error = FLOAT32**2 + (release.unit / np.sqrt(12) / np.maximum(typical, release.unit / 2)) ** 2
    weight = np.where(typical > release.unit / 2, 1 / error, 0.0)
    known = np.log(np.maximum(np.stack([released(x @ one.T, release) for one in heads]), release.unit / 4))
    return np.asarray(_weighted(x, known - x @ mean.T, weight, prior) + mean)

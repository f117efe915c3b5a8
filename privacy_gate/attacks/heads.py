"""Attacks on the weights of a linear head: which rows' gradients are in the weights?

Gradient training moves a head by a sum over its members: W - W_0 = sum_i m_i a_i x_i' + noise, with m_i in {0, 1} and
a_i = rate * (onehot(y_i) - p_i), p_i an average of the probabilities during training. phi reads this sum in the one
direction x_i, in which all rows that look like row i speak too. The attacks here take those other rows out.

Axes as in evidence.py; D counts the bias, whose feature is 1. K heads are scored at once: (K, C, D) -> (K, N).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from privacy_gate.arrays import Floats, Ints
from privacy_gate.attacks.release import probabilities as softmax
from privacy_gate.errors import EvidenceError

PATH = 5
"""Points between the first head and the last at which probabilities are averaged."""

DIRECT_ROWS = 8_192
"""Rows up to which the N x N system is factorised (268 MB in float32); more rows are solved by conjugate gradients, in
memory that grows linearly with N."""

TOLERANCE, MOST_STEPS = 1e-5, 400
"""Conjugate gradients: residual relative to the right-hand side, and the most steps."""

FLAT = 1e-10
"""Share of the mean eigenvalue added to a covariance, which constant or equal features would leave singular."""


@dataclass(frozen=True)
class Training:
    """What the attacker knows from the recipe about how a head moved.

    adaptive         the optimiser divides by a running root mean square of the gradient (Adam, AdamW)
    random_start     the first head is random: its noise is the same in all directions
    label_smoothing  of the loss
    """

    adaptive: bool = False
    random_start: bool = False
    label_smoothing: float = 0.0

    @property
    def ridge(self) -> float:
        """Noise that is equal in all directions, as a share of the mean noise that grows with the features' variance.

        Chosen on references of three data sets: see docs/benchmarks.md.
        """
        if self.random_start:
            return 1.0
        return 1e-2 if self.adaptive else 1e-5

    @property
    def prior(self) -> float:
        """Noise in a row's own direction relative to what its membership moves there, mean over rows."""
        return 1.0 if self.random_start else 0.1


def centred(heads: Floats) -> Floats:
    """Heads (..., C, D) less their mean over classes, which changes no probability and which no output reveals."""
    return np.asarray(heads - heads.mean(axis=-2, keepdims=True))


def with_ones(features: Floats) -> Floats:
    """Features (N, D - 1) with a 1 for the bias: (N, D) float64."""
    wide = np.ones((len(features), features.shape[1] + 1))
    wide[:, :-1] = features
    return wide


def path_probabilities(logits: Floats) -> Floats:
    """Mean over training of the probabilities, (N, C), if the head moves straight from zeros to logits (N, C)."""
    scaled = np.linspace(0, 1, PATH)[:, None, None] * np.asarray(logits, dtype=np.float64)
    return np.asarray(softmax(scaled).mean(axis=0))


def residuals(label: Ints, probabilities: Floats, smoothing: float = 0.0) -> Floats:
    """onehot(y) - p, (N, C): the direction in which a row moves the logits; `smoothing` of the labels."""
    classes = probabilities.shape[1]
    return np.asarray((1 - smoothing) * np.eye(classes)[label] + smoothing / classes - probabilities)


def influence(x: Floats, label: Ints, heads: Floats, ridge: float = 1e-6) -> Floats:
    """x_i' (X'X + ridge mean)^-1 (w_y - mean_c w_c): what a row did to its own class, neighbours taken out; (K, N).

    x (N, D) with ones; heads (K, C, D). One D x D solve for all heads.
    """
    return _own_class(x @ _whitened(x, centred(heads), ridge), label)


def inverse_hessian(x: Floats, label: Ints, heads: Floats, probabilities: Floats, ridge: float = 1e-4) -> Floats:
    """a_i' H^-1 W in the row's direction, H the Hessian's blocks X' diag(p_c (1 - p_c)) X of each class; (K, N).

    After the inverse Hessian attack (arXiv 2406.11544), for an attacker who knows the pool and not who is in it.
    """
    a, scores = residuals(label, probabilities), np.zeros((len(heads), len(x)))
    moved = centred(heads)
    for one in range(probabilities.shape[1]):
        weight = probabilities[:, one] * (1 - probabilities[:, one])
        factor = ridged_factor((x * weight[:, None]).T @ x, ridge)
        scores += a[:, one] * (x @ cho_solve(factor, moved[:, one].T)).T
    return scores


def gradient_span(
    x: Floats, label: Ints, heads: Floats, probabilities: Floats, training: Training, *, whitened: bool = True
) -> Floats:
    """The least-squares estimate of every row's membership from the weights: (K, N), larger = more likely a member.

    m = (K + l I)^-1 t with t_i = a_i' W M x_i and K_ij = (a_i . a_j)(x_i' M x_j), the normal equations of
    W = sum_i m_i a_i x_i' + noise. M is the inverse covariance of the noise over features. Training noise is itself a
    sum over rows, so it varies as X'X does: M = (X'X + ridge mean)^-1 if `whitened`, else I, as GLiR (arXiv 2306.07273)
    has it. If the optimiser is adaptive, each weight moved by its gradient over that gradient's root mean square, which
    is multiplied back.
    x (N, D) with ones; heads (K, C, D); probabilities (N, C) during training, see `path_probabilities`. Dtype of the
    result and of the N x N system: that of x. Memory: see DIRECT_ROWS. Blind to who is a member: nothing here knows.
    """
    a = residuals(label, probabilities, training.label_smoothing)
    moved = centred(heads.astype(np.float64))
    if training.adaptive and not training.random_start:
        moved = moved * _gradient_size(x, a)
    root = _root(x, training.ridge) if whitened else None
    rows = x if root is None else solve_triangular(root, x.T.astype(np.float64), lower=True).T.astype(x.dtype)
    sums = (
        moved
        if root is None
        else solve_triangular(root, moved.reshape(-1, x.shape[1]).T, lower=True).T.reshape(moved.shape)
    )
    a = a.astype(x.dtype)
    right = np.stack([np.einsum("nc,nc->n", a, rows @ head.T.astype(x.dtype)) for head in sums])
    # Both sides in units in which a row's own share is 1 on average: float32 then holds them.
    own = (a**2).sum(axis=1) * (rows**2).sum(axis=1)
    size = float(own.mean()) or 1.0
    solve = _by_factor if len(x) <= DIRECT_ROWS else _by_steps
    return np.asarray(solve(rows / x.dtype.type(np.sqrt(size)), a, right / x.dtype.type(size), training.prior))


def _gradient_size(x: Floats, a: Floats) -> Floats:
    """Root mean square over rows of each weight's gradient, (C, D), in units of its mean over weights."""
    size = np.sqrt((a**2).T @ (x.astype(np.float64) ** 2) / len(x))
    return np.asarray(size / max(float(size.mean()), np.finfo(np.float64).tiny))


def _by_factor(rows: Floats, a: Floats, right: Floats, prior: float) -> Floats:
    """(K + prior I)^-1 t by Cholesky: rows (N, D), a (N, C), right (K, N)."""
    kernel = rows @ rows.T
    kernel *= a @ a.T
    kernel[np.diag_indices(len(kernel))] += kernel.dtype.type(prior)
    factor = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, right.T, check_finite=False).T)


def _by_steps(rows: Floats, a: Floats, right: Floats, prior: float) -> Floats:
    """The same by conjugate gradients, head by head, since (K v)_i = a_i' (A' diag(v) R) r_i needs no N x N matrix.

    Preconditioned by the diagonal. Raises EvidenceError if it does not converge.
    """
    diagonal = (a**2).sum(axis=1) * (rows**2).sum(axis=1) + prior
    scores = np.empty_like(right)
    for one, target in enumerate(right):
        solution, left = np.zeros_like(target), target.copy()
        towards = left / diagonal
        inner = float(left @ towards)
        goal = TOLERANCE**2 * max(inner, np.finfo(np.float64).tiny)
        for _ in range(MOST_STEPS):
            if inner <= goal:
                break
            image = ((rows @ ((a * towards[:, None]).T @ rows).T) * a).sum(axis=1) + prior * towards
            step = inner / float(towards @ image)
            solution += step * towards
            left -= step * image
            scaled = left / diagonal
            before, inner = inner, float(left @ scaled)
            towards = scaled + inner / before * towards
        else:
            raise EvidenceError(
                f"the gradient span did not converge in {MOST_STEPS} steps: features or heads are unsound"
            )
        scores[one] = solution
    return scores


def _own_class(products: Floats, label: Ints) -> Floats:
    """products (K, N, C) of each row's own class: (K, N)."""
    return np.asarray(np.take_along_axis(products, np.asarray(label)[None, :, None], axis=2)[:, :, 0])


def _whitened(x: Floats, heads: Floats, ridge: float) -> Floats:
    """(X'X + ridge mean I)^-1 W' of heads (K, C, D): (K, D, C)."""
    classes = heads.shape[1]
    solved = cho_solve(ridged_factor(x.T @ x, ridge), heads.reshape(-1, x.shape[1]).T.astype(np.float64))
    return np.asarray(solved.T.reshape(-1, classes, x.shape[1]).transpose(0, 2, 1))


def _root(x: Floats, ridge: float) -> NDArray[Any]:
    """Lower Cholesky factor of X'X + ridge mean I, (D, D) float64."""
    return np.asarray(np.tril(ridged_factor(x.T @ x, ridge)[0]))


def ridged_factor(gram: Floats, ridge: float = 0.0) -> tuple[NDArray[Any], bool]:
    """Cholesky factor of a covariance (D, D) plus `ridge`, at least FLAT, times its mean eigenvalue, for cho_solve."""
    wide = gram.astype(np.float64)
    wide[np.diag_indices(len(wide))] += max(ridge, FLAT) * max(float(np.trace(wide)) / len(wide), 1e-300)
    factor: tuple[NDArray[Any], bool] = cho_factor(wide, lower=True, overwrite_a=True)
    return factor

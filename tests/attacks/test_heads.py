"""Statistics of heads: equal to double loops and dense inverses, whichever way the system is solved."""

import numpy as np
import pytest

from privacy_gate.arrays import Floats, Ints
from privacy_gate.attacks.heads import (
    Training,
    _by_factor,
    _by_steps,
    centred,
    gradient_span,
    influence,
    inverse_hessian,
    path_probabilities,
    residuals,
    with_ones,
)
from privacy_gate.attacks.release import probabilities
from privacy_gate.errors import EvidenceError

ROWS, WIDTH, CLASSES, HEADS = 30, 7, 3, 4


def drawn(seed: int = 0, rows: int = ROWS, width: int = WIDTH) -> tuple[Floats, Ints, Floats, Floats]:
    """Rows with ones, labels, heads, and probabilities during training."""
    rng = np.random.default_rng(seed)
    x = with_ones(rng.normal(size=(rows, width)) * np.linspace(0.3, 2, width) + 0.5)
    label = rng.integers(0, CLASSES, rows)
    heads = rng.normal(size=(HEADS, CLASSES, width + 1))
    return x, label, heads, path_probabilities(x @ heads.mean(axis=0).T)


def ridged(gram: Floats, ridge: float) -> Floats:
    return gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))


def slow_span(x: Floats, label: Ints, head: Floats, p: Floats, training: Training, *, whitened: bool) -> Floats:
    """The normal equations, pair by pair, with dense inverses."""
    rows, classes = p.shape
    a = np.empty((rows, classes))
    for i in range(rows):
        for c in range(classes):
            truth = (1 - training.label_smoothing) * (label[i] == c) + training.label_smoothing / classes
            a[i, c] = truth - p[i, c]
    moved = head - head.mean(axis=0)
    if training.adaptive and not training.random_start:
        size = np.empty(moved.shape)
        for c in range(classes):
            for d in range(x.shape[1]):
                size[c, d] = np.sqrt(np.mean([(a[i, c] * x[i, d]) ** 2 for i in range(rows)]))
        moved = moved * size / size.mean()
    metric = np.linalg.inv(ridged(x.T @ x, training.ridge)) if whitened else np.eye(x.shape[1])
    kernel, right = np.empty((rows, rows)), np.empty(rows)
    for i in range(rows):
        right[i] = a[i] @ moved @ metric @ x[i]
        for j in range(rows):
            kernel[i, j] = (a[i] @ a[j]) * (x[i] @ metric @ x[j])
    return np.asarray(np.linalg.inv(kernel + training.prior * np.diag(kernel).mean() * np.eye(rows)) @ right)


@pytest.mark.parametrize("whitened", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("random_start", [True, False])
def test_the_span_equals_the_double_loop(whitened: bool, adaptive: bool, random_start: bool) -> None:
    training = Training(adaptive=adaptive, random_start=random_start, label_smoothing=0.1)
    x, label, heads, p = drawn()
    found = gradient_span(x, label, heads, p, training, whitened=whitened)
    for head, scores in zip(heads, found, strict=True):
        expected = slow_span(x, label, head, p, training, whitened=whitened)
        np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_the_span_in_float32_is_that_in_float64_nearly() -> None:
    x, label, heads, p = drawn(1, rows=120, width=40)
    wide = gradient_span(x, label, heads, p, Training())
    small = gradient_span(x.astype(np.float32), label, heads, p, Training())
    assert small.dtype == np.float32
    assert np.abs(small - wide).max() < 1e-3 * np.abs(wide).max()


def test_influence_equals_the_dense_inverse() -> None:
    x, label, heads, _ = drawn()
    inverse = np.linalg.inv(ridged(x.T @ x, 1e-6))
    for head, scores in zip(heads, influence(x, label, heads), strict=True):
        expected = [x[i] @ inverse @ (head[label[i]] - head.mean(axis=0)) for i in range(ROWS)]
        np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_the_inverse_hessian_equals_the_dense_inverses_of_its_blocks() -> None:
    x, label, heads, p = drawn()
    for head, scores in zip(heads, inverse_hessian(x, label, heads, p), strict=True):
        expected = np.zeros(ROWS)
        for c in range(CLASSES):
            block = sum(p[i, c] * (1 - p[i, c]) * np.outer(x[i], x[i]) for i in range(ROWS))
            direction = np.linalg.inv(ridged(np.asarray(block), 1e-4)) @ (head - head.mean(axis=0))[c]
            for i in range(ROWS):
                expected[i] += ((label[i] == c) - p[i, c]) * (x[i] @ direction)
        np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("width", [20, 300])
@pytest.mark.parametrize("prior", [0.1, 1.0])
def test_conjugate_gradients_and_cholesky_agree(width: int, prior: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, width)) / np.sqrt(width) * np.linspace(0.2, 2, 150)[:, None]
    a = residuals(rng.integers(0, CLASSES, 150), probabilities(rng.normal(size=(150, CLASSES))))
    right = rng.normal(size=(HEADS, 150))
    direct, stepped = (solve(rows, a, right, prior) for solve in (_by_factor, _by_steps))
    assert np.linalg.norm(stepped - direct) < 1e-4 * np.linalg.norm(direct)


def test_a_right_side_of_zeros_is_solved_by_zeros() -> None:
    x, label, heads, p = drawn()
    np.testing.assert_array_equal(gradient_span(x, label, np.zeros_like(heads), p, Training()), 0)
    np.testing.assert_array_equal(_by_steps(x, residuals(label, p), np.zeros((HEADS, ROWS)), 0.1), 0)


def test_steps_that_do_not_converge_are_an_error_and_no_score() -> None:
    x, label, _, p = drawn()
    with pytest.raises(EvidenceError, match="did not converge"), np.errstate(invalid="ignore"):
        _by_steps(x, residuals(label, p), np.full((1, ROWS), np.nan), 0.1)


def test_what_no_output_reveals_changes_no_statistic() -> None:
    """The same vector added to the weights of every class changes no probability."""
    x, label, heads, p = drawn()
    shifted = heads + np.random.default_rng(1).normal(size=(HEADS, 1, WIDTH + 1))
    np.testing.assert_allclose(centred(shifted), centred(heads), atol=1e-12)
    for one, other in (
        (gradient_span(x, label, heads, p, Training()), gradient_span(x, label, shifted, p, Training())),
        (influence(x, label, heads), influence(x, label, shifted)),
        (inverse_hessian(x, label, heads, p), inverse_hessian(x, label, shifted, p)),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8 * np.abs(one).max())


def test_one_step_of_gradient_descent_is_a_sum_that_the_span_takes_apart() -> None:
    """More directions than rows, and each row's share is known: members get nearly one, others nearly zero."""
    rng = np.random.default_rng(0)
    x = with_ones(rng.normal(size=(80, 300)))
    label, member = rng.integers(0, CLASSES, 80), np.arange(80) % 2 == 0
    first = np.full((80, CLASSES), 1 / CLASSES)
    step = residuals(label[member], first[member]).T @ x[member]
    scores = gradient_span(x, label, step[None], first, Training(), whitened=False)[0]
    assert scores[member].min() > 0.6
    assert abs(scores[~member]).max() < 0.3


def test_equal_and_constant_features_leave_every_statistic_finite() -> None:
    x, label, _, _ = drawn(2)
    x = with_ones(np.concatenate([x, x[:, :3], np.zeros((ROWS, 2)), np.ones((ROWS, 1))], axis=1))
    heads = np.random.default_rng(3).normal(size=(HEADS, CLASSES, x.shape[1]))
    p = path_probabilities(x @ heads[0].T)
    spans = [gradient_span(x, label, heads, p, Training(adaptive=adaptive)) for adaptive in (True, False)]
    for scores in (*spans, influence(x, label, heads), inverse_hessian(x, label, heads, p)):
        assert np.isfinite(scores).all()


def test_probabilities_on_the_way_are_a_mean_from_even_ones_to_the_last() -> None:
    logits = np.array([[3.0, 0.0, -1.0], [900.0, 0.0, 0.0]])
    found = path_probabilities(logits)
    expected = np.mean([probabilities(share * logits) for share in (0, 0.25, 0.5, 0.75, 1)], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)

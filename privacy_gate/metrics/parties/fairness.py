"""Whether a model serves some clients worse than others, beyond the sampling noise of few rows.

Accuracies of clients with few rows differ even if nothing is unfair, and the worst of many looks bad. So each figure is
corrected for sampling noise and has an interval. Axis letters as in evidence.py.
"""

import math
from collections.abc import Callable

import numpy as np

from privacy_gate.arrays import Floats, Ints
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.bootstrap import DRAWS, percentile
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import DIFFERENCE, SHARE, Metric, Worse, inherited, measured

CLIENT_STD = Metric(
    "client_std",
    title="standard deviation of accuracy over clients, corrected for sampling noise",
    unit="difference",
    range=(0.0, math.sqrt(0.5)),  # the largest: two clients, one always right and one never
    worse="higher",
    resolves="At least 2 clients with 2 holdout examples each; hundreds of each client for a limit of 0.05.",
    means="How differently clients are served by the same model.",
    remedy="Adapt the model to clients, give the worst-off more weight, or collect more of their data.",
)
WORST_DECILE_GAP = Metric(
    "worst_decile_gap",
    title="how far the worst tenth of clients fall below the mean accuracy, corrected for sampling noise",
    unit="difference",
    range=DIFFERENCE,
    worse="higher",
    resolves="At least 2 clients with 2 holdout examples each; hundreds of each client for a limit of 0.05.",
    means="How much worse than average the worst-off clients are served.",
    remedy="Adapt the model to clients, give the worst-off more weight, or collect more of their data.",
    chance=0.0,
)


def _evenness_record(name: str, title: str, worse: Worse, means: str) -> Metric:
    return Metric(
        name,
        title=title,
        unit="index",
        range=SHARE,
        worse=worse,
        resolves="At least 2 clients with 2 holdout examples each.",
        means=means,
        remedy="Look at client_std and worst_decile_gap, which are corrected for sampling noise.",
    )


EVENNESS_METRICS = (
    _evenness_record("jain", "Jain's index of clients' accuracies", "lower", "1 if all clients are served alike."),
    _evenness_record("gini", "Gini's index of clients' accuracies", "higher", "0 if all clients are served alike."),
    _evenness_record(
        "entropy", "relative entropy of clients' accuracies", "lower", "1 if all clients are served alike."
    ),
)
METRICS = (CLIENT_STD, WORST_DECILE_GAP, inherited(CLIENT_STD), inherited(WORST_DECILE_GAP), *EVENNESS_METRICS)

GRID = 41
"""Candidate spreads of the true accuracies, for an interval that is inverted from tests."""

METHOD = "test inversion over the spread of true accuracies"

WORST = 0.1
"""Share of clients that count as the worst; at least one client."""


def client_std(correct: Ints, rows: Ints, confidence: float, rng: np.random.Generator) -> Measurement:
    """Standard deviation over clients of their true accuracies.

    correct, rows (K,): right predictions and rows of each client. The estimate is sqrt(max(0, Var_k A_k - mean_k
    A_k (1 - A_k) / (n_k - 1))): it subtracts the variance that binomial noise adds to equal accuracies.
    Interval: every spread under which neither a figure this large nor one this small is improbable. The clients are
    the whole population, so a spread is that of K true accuracies: the pooled mean plus deviations scaled to that
    spread, clipped to [0, 1]. Two shapes of the deviations are tried, normal and as observed; the wider interval
    counts. The pooled mean includes half a row right and half a row wrong, so that a few rows all right prove little.
    """
    a, n = _accuracies(correct, rows)
    reason = _too_few("client_std", a, n, 2)
    if reason:
        return reason
    value = float(_debiased(a[None], n)[0])
    ends = _inverted(value, a, n, lambda accuracy: _debiased(accuracy, n), _spread, confidence, rng)
    return measured(CLIENT_STD, value, ends, confidence, METHOD, _samples(n))


def worst_decile_gap(correct: Ints, rows: Ints, confidence: float, rng: np.random.Generator) -> Measurement:
    """Mean accuracy minus that of the worst tenth of clients, minus the gap that sampling noise alone would cause.

    correct, rows (K,). The worst tenth is max(1, ceil(K / 10)) clients. The noise term is the mean gap of as many
    clients with equal accuracies and the same rows. Negative if clients differ less than sampling noise would make
    them. Interval: as for `client_std`, of the mean true gap of clients with such spreads.
    """
    a, n = _accuracies(correct, rows)
    reason = _too_few("worst_decile_gap", a, n, 2)
    if reason:
        return reason
    floor = float(chance_gaps(_pooled(a, n), n, rng).mean())
    value = float(decile_gap(a[None])[0]) - floor
    ends = _inverted(value, a, n, lambda accuracy: decile_gap(accuracy) - floor, decile_gap, confidence, rng)
    return measured(WORST_DECILE_GAP, value, ends, confidence, METHOD, _samples(n))


def decile_gap(accuracy: Floats) -> Floats:
    """Mean minus the mean of the max(1, ceil(K / 10)) lowest accuracies (..., K): (...,). Defined for any K >= 1.

    >>> decile_gap(np.array([0.9, 0.8, 0.7])).round(3).item()
    0.1
    """
    worst = max(1, int(np.ceil(WORST * accuracy.shape[-1] - 1e-9)))  # 1e-9: rounding must not add a client
    lowest = np.sort(accuracy, axis=-1)[..., :worst]
    return np.asarray(accuracy.mean(axis=-1) - lowest.mean(axis=-1))


def chance_gaps(accuracy: float, rows: Ints, rng: np.random.Generator) -> Floats:
    """Worst-decile gaps (DRAWS,) of clients that all have this true accuracy and these numbers of rows (K,)."""
    return decile_gap(_drawn(np.full((DRAWS, len(rows)), accuracy), rows, rng))


def evenness(correct: Ints, rows: Ints, confidence: float, rng: np.random.Generator) -> list[Measurement]:
    """Jain's index, Gini and entropy of accuracies: for reports only, since they hardly react to unfairness.

    correct, rows (K,). Jain's index is 1 / (1 + CV^2): 1 if all are alike. The entropy of the clients' shares relative
    to log K is then 1 too, and Gini's index 0. Interval: parametric bootstrap, percentile; not corrected for sampling
    noise.
    """
    a, n = _accuracies(correct, rows)
    drawn = _drawn(np.broadcast_to(a, (DRAWS, len(n))), n, rng)
    measurements = []
    for metric in EVENNESS_METRICS:
        index = EVENNESS[metric.name]
        reason = _too_few(metric.name, a, n, 2)
        if reason or not a.any():
            measurements.append(reason or not_measured(metric.name, "no client has a right prediction"))
            continue
        value, ends, method = float(index(a[None])[0]), percentile(index(drawn), confidence), "parametric bootstrap"
        measurements.append(measured(metric, value, ends, confidence, method, _samples(n)))
    return measurements


def jain(x: Floats) -> Floats:
    """(sum x)^2 / (K sum x^2) of (..., K): 1 if all are alike, 1/K if one has everything. Jain et al. 1984."""
    # 1e-300 only avoids 0 / 0 where all values are 0, here and below.
    return np.asarray(x.sum(axis=-1) ** 2 / (x.shape[-1] * np.maximum((x**2).sum(axis=-1), 1e-300)))


def gini(x: Floats) -> Floats:
    """Mean absolute difference of two clients divided by twice the mean, of (..., K): 0 if all are alike."""
    size = x.shape[-1]
    # The sum of |x_i - x_j| over all pairs, from one sort: the value of rank i counts 2 i - K - 1 times.
    weight = 2 * np.arange(1, size + 1) - size - 1
    return np.asarray((np.sort(x, axis=-1) @ weight) / (size * np.maximum(x.sum(axis=-1), 1e-300)))


def relative_entropy(x: Floats) -> Floats:
    """Entropy of the shares x / sum x, divided by log K, of (..., K): 1 if all are alike."""
    share = x / np.maximum(x.sum(axis=-1, keepdims=True), 1e-300)
    return np.asarray(-(share * np.log(np.maximum(share, 1e-300))).sum(axis=-1) / np.log(x.shape[-1]))


EVENNESS: dict[str, Callable[[Floats], Floats]] = {"jain": jain, "gini": gini, "entropy": relative_entropy}
"""Indices that are reported and that no policy limits."""


def _accuracies(correct: Ints, rows: Ints) -> tuple[Floats, Ints]:
    if correct.shape != rows.shape or correct.ndim != 1 or (correct < 0).any() or (correct > rows).any():
        raise EvidenceError("expected right predictions (K,) and rows (K,) of each client, and 0 <= right <= rows")
    return correct / np.maximum(rows, 1), rows


def _too_few(metric: str, a: Floats, n: Ints, fewest: int) -> Measurement | None:
    if len(a) < fewest or n.min() < 2:
        found = f"found {len(a)} clients" + (f", the smallest with {n.min()}" if len(n) else "")
        return not_measured(metric, f"needs >= {fewest} clients with >= 2 rows each, {found}")
    return None


def _debiased(a: Floats, n: Ints) -> Floats:
    """The standard deviation corrected for binomial noise, of accuracies (..., K) on rows (K,)."""
    return np.asarray(np.sqrt(np.maximum(0, a.var(axis=-1, ddof=1) - (a * (1 - a) / (n - 1)).mean(axis=-1))))


def _drawn(accuracy: Floats, n: Ints, rng: np.random.Generator) -> Floats:
    """Accuracies observed on n rows, drawn for true accuracies (..., K)."""
    return np.asarray(rng.binomial(n, accuracy) / n)


Figure = Callable[[Floats], Floats]
"""A figure (...,) of accuracies (..., K)."""


def _spread(accuracy: Floats) -> Floats:
    """Standard deviation (...,) of accuracies (..., K)."""
    return np.asarray(accuracy.std(axis=-1, ddof=1))


def _inverted(
    value: float, a: Floats, n: Ints, observe: Figure, true: Figure, confidence: float, rng: np.random.Generator
) -> tuple[float, float]:
    """The lowest and highest true figure that a statistic's `value` does not reject.

    a, n (K,): observed accuracies and rows. observe: the statistic of observed accuracies; true: the figure of true
    accuracies.
    """
    normal = rng.standard_normal((DRAWS, len(n)))
    shapes = [normal, np.tile(a, (DRAWS, 1))] if np.ptp(a) > 0 else [normal]
    ends = [_inverted_along(value, shape, a, n, observe, true, confidence, rng) for shape in shapes]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _inverted_along(
    value: float,
    shape: Floats,
    a: Floats,
    n: Ints,
    observe: Figure,
    true: Figure,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """The same figures, for true accuracies that deviate from their mean by multiples of `shape` (DRAWS, K)."""
    shape = shape - shape.mean(axis=1, keepdims=True)
    shape /= shape.std(axis=1, ddof=1, keepdims=True)
    # GRID spreads from 0 to 1; squaring puts most of them near 0, since most federations have small spreads.
    truth = np.clip(_likely(a, n) + (np.linspace(0, 1, GRID) ** 2)[:, None, None] * shape, 0, 1)
    statistic = np.stack([observe(_drawn(accuracies, n, rng)) for accuracies in truth])
    # A larger spread makes a large figure likelier and a small one less likely. Simulated shares are noisy, so a
    # running maximum makes them monotonic, as interpolation needs.
    tail, figure = (1 - confidence) / 2, np.maximum.accumulate(true(truth).mean(axis=1))
    figure[0] = 0.0  # all clients alike; simulation gives 0 up to rounding
    enough = np.maximum.accumulate((statistic >= value - 1e-12).mean(axis=1))
    few = np.maximum.accumulate((statistic <= value + 1e-12).mean(axis=1)[::-1])
    low = figure[0] if enough[0] >= tail else np.interp(tail, enough, figure)
    high = figure[-1] if few[0] >= tail else np.interp(tail, few, figure[::-1])
    return float(low), float(high)


def _pooled(a: Floats, n: Ints) -> float:
    """Accuracy over all rows together."""
    return float((a * n).sum() / n.sum())


def _likely(a: Floats, n: Ints) -> float:
    """The pooled accuracy with half a row right and half a row wrong added: never 0 or 1."""
    return float(((a * n).sum() + 0.5) / (n.sum() + 1))


def _samples(rows: Ints) -> str:
    return f"{len(rows):,} clients, {int(np.sum(rows)):,} rows"

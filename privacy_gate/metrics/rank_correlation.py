"""How well cheap signals predict vulnerability: rank correlations over rows; intervals account for rows and models."""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit
from scipy.stats import spearmanr

from privacy_gate.arrays import Bools, Floats
from privacy_gate.metrics.vulnerability import gradient_norms, vulnerability
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import DIFFERENCE, Metric, measured

GRADIENT_CORRELATION = Metric(
    "gradient_correlation",
    title="rank correlation of the gradient norm with vulnerability",
    unit="correlation",
    range=DIFFERENCE,
    worse="neither",
    resolves="At least 16 references and 20 examples, and a linear head on frozen features.",
    means="How well gradient norms alone show which people are most exposed.",
    remedy="Do not use gradient norms to choose which examples to protect.",
)
TRACE_CORRELATION = Metric(
    "trace_correlation",
    title="rank correlation of the spread of the loss trace with vulnerability",
    unit="correlation",
    range=DIFFERENCE,
    worse="neither",
    resolves="At least 16 references, 20 members, and the losses of at least 4 epochs.",
    means="How well the losses logged during training show which people are most exposed.",
    remedy="Do not use loss traces to choose which examples to protect.",
)
METRICS = (
    GRADIENT_CORRELATION,
    TRACE_CORRELATION,
)

PARTS = 20
"""Groups of models for the jackknife; each is left out in turn."""

LEAST_ROWS = 20
"""With fewer rows a correlation is not reported."""

FEWEST_MODELS = 16
"""With fewer models, two halves of them cannot be compared."""

METHOD = "rows (Bonett & Wright 2000) and jackknife over models, by Fisher's z"


def gradient_correlation(
    phi: Floats, included: Bools, residual: Floats, features: Floats, confidence: float
) -> Measurement:
    """Spearman's correlation of the gradient norm at the end of training with vulnerability, over rows.

    phi, included, residual (M, N), features (N, D) of the audited rows. A model that is surer of a row by chance has
    a smaller gradient on it and also raises its vulnerability; that alone would correlate the two. So the norm comes
    from one half of the models and the vulnerability from the other, both ways, averaged. Halves are noisier than all
    models, which lowers the correlation: `samples` says how well the two halves agree.
    """
    metric = GRADIENT_CORRELATION
    if (missing := _unmet(metric, phi)) is not None:
        return missing
    first = np.arange(len(phi)) % 2 == 0

    def of(kept: Bools) -> tuple[float, float]:
        halves = [kept & side for side in (first, ~first)]
        norms = [gradient_norms(residual[half], features, included[half]) for half in halves]
        gaps = [_vulnerability(phi, included, half) for half in halves]
        both = (_spearman(norms[0], gaps[1]) + _spearman(norms[1], gaps[0])) / 2
        return both, _spearman(*gaps)

    agreement = of(np.ones(len(phi), dtype=bool))[1]
    detail = f"; the models' halves agree on vulnerability with rank correlation {agreement:.2f}"
    return _measured(metric, lambda kept: of(kept)[0], phi, confidence, detail)


def trace_correlation(phi: Floats, included: Bools, trace: Floats, confidence: float) -> Measurement:
    """Spearman's correlation between the interquartile range of each row's loss trace and its vulnerability.

    phi, included (M, N) and trace (N, E), nats, of the candidate's members. The trace comes from the candidate's
    single training run, which no reference shares, so the models need no split into halves.
    """
    metric = TRACE_CORRELATION
    if (missing := _unmet(metric, phi)) is not None:
        return missing
    if trace.shape[1] < 4:
        return not_measured(metric.name, f"needs the losses of >= 4 epochs, found {trace.shape[1]}")
    spread = np.subtract(*np.quantile(trace, (0.75, 0.25), axis=1))
    return _measured(metric, lambda kept: _spearman(spread, _vulnerability(phi, included, kept)), phi, confidence, "")


def _unmet(metric: Metric, phi: Floats) -> Measurement | None:
    models, rows = phi.shape
    if models < FEWEST_MODELS or rows < LEAST_ROWS:
        return not_measured(
            metric.name, f"needs >= {FEWEST_MODELS} references and {LEAST_ROWS} rows, found {models} and {rows:,}"
        )
    return None


def _measured(metric: Metric, of: Callable[[Bools], float], phi: Floats, confidence: float, detail: str) -> Measurement:
    """The correlation that `of` computes for the models kept (M,), and its interval.

    The variance on the scale of Fisher's z is a sum: Bonett & Wright's for rows, (1 + r^2/2) / (N - 3), plus the
    jackknife's over groups of models. The quantile is Student's t with one degree of freedom fewer than groups.
    """
    models, rows = phi.shape
    value = of(np.ones(models, dtype=bool))
    if not math.isfinite(value):
        return not_measured(metric.name, "one of the two is constant, or rows lack models with or without them")
    parts = min(PARTS, models // 2)
    part = np.arange(models) // 2 % parts  # neighbours stay together: each part keeps models of both halves
    left = np.array([of(part != out) for out in range(parts)])
    left = np.arctanh(np.clip(left[np.isfinite(left)], -0.9999, 0.9999))  # Fisher's z is infinite at -1 and 1
    if len(left) < parts:
        return not_measured(metric.name, "too few references to leave some out for the jackknife")
    z = math.atanh(min(max(value, -0.9999), 0.9999))
    variance = (1 + value**2 / 2) / (rows - 3) + (parts - 1) / parts * float(((left - left.mean()) ** 2).sum())
    reach = float(stdtrit(parts - 1, (1 + confidence) / 2)) * math.sqrt(variance)
    ends, samples = (math.tanh(z - reach), math.tanh(z + reach)), f"{models:,} models, {rows:,} rows{detail}"
    return measured(metric, value, ends, confidence, METHOD, samples)


def _vulnerability(phi: Floats, included: Bools, chosen: Bools) -> Floats:
    """Vulnerability (N,) from the chosen models (M,) only; NaN if a side has no model."""
    gap = vulnerability(phi[chosen], included[chosen])
    return np.where(np.isfinite(gap), gap, np.nan)


def _spearman(one: Floats, other: Floats) -> float:
    """Spearman's rank correlation over rows with both values (N,) known; NaN if one of them is constant."""
    known = np.isfinite(one) & np.isfinite(other)
    if known.sum() < LEAST_ROWS or np.ptp(one[known]) == 0 or np.ptp(other[known]) == 0:
        return math.nan
    return float(spearmanr(one[known], other[known]).statistic)

"""Whether a model serves some groups worse than others. Axis letters as in evidence.py."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.evidence import Bools, Floats, Ints
from privacy_gate.metrics.binomial import clopper_pearson
from privacy_gate.metrics.bootstrap import DRAWS, measured, pivotal
from privacy_gate.verdict import Measurement, not_measured


def group_gap(correct: Bools, group: NDArray[Any], confidence: float) -> Measurement:
    """Largest difference of accuracy between two groups; correct and group (N,).

    Interval: for each pair the squared distances to the Clopper-Pearson ends are added (Newcombe 1998, method 10's
    principle), at a confidence that holds for all pairs at once (Bonferroni).
    """
    names = np.unique(group)
    if len(names) < 2:
        return not_measured("group_gap", f"needs >= 2 groups, found {len(names)}")
    sides = [correct[group == name] for name in names]
    level = 1 - (1 - confidence) / (len(names) * (len(names) - 1) / 2)
    ends = [clopper_pearson(int(side.sum()), len(side), level) for side in sides]
    rates = [float(side.mean()) for side in sides]
    low = high = 0.0
    for one, other in combinations(range(len(names)), 2):
        a, b = (one, other) if rates[one] >= rates[other] else (other, one)
        difference = rates[a] - rates[b]
        low = max(low, difference - float(np.hypot(rates[a] - ends[a][0], ends[b][1] - rates[b])))
        high = max(high, difference + float(np.hypot(ends[a][1] - rates[a], rates[b] - ends[b][0])))
    value, samples = max(rates) - min(rates), f"{len(correct):,} rows, {len(names)} groups"
    return measured("group_gap", value, (low, min(1.0, high)), confidence, "Newcombe, Bonferroni over pairs", samples)


def equalized_odds(
    predicted: Ints, label: Ints, group: NDArray[Any], confidence: float, rng: np.random.Generator
) -> Measurement:
    """Mean over classes, each against the rest, of the larger of two gaps between groups: of TPR and of FPR.

    predicted, label, group (N,). Hardt et al. 2016 (arXiv 1610.02413); with two classes the difference that fairlearn
    calls equalized odds. A class counts where two groups have rows of it and rows of others. Interval: bootstrap of
    predictions within each group and class, pivotal; its low end is 0 unless groups alike would seldom show so much.
    """
    names, code = np.unique(group, return_inverse=True)
    classes = 1 + int(max(predicted.max(initial=0), label.max(initial=0)))
    table = np.zeros((len(names), classes, classes), dtype=np.int64)
    np.add.at(table, (code, label, predicted), 1)
    value = float(odds_gap(table[None])[0])
    if not np.isfinite(value):
        return not_measured("equalized_odds", "needs a class of which, and of its others, two groups have rows")
    apart = odds_gap(_predicted_again(table, table, rng))
    alike = odds_gap(_predicted_again(table, np.broadcast_to(table.sum(axis=0), table.shape), rng))
    low, high = pivotal(value, apart, confidence)
    if (alike >= value - 1e-12).mean() >= (1 - confidence) / 2:
        low = 0.0
    samples = f"{len(label):,} rows, {len(names)} groups"
    return measured("equalized_odds", value, (max(0.0, low), min(1.0, high)), confidence, "bootstrap, pivotal", samples)


def _predicted_again(table: Ints, as_in: Ints, rng: np.random.Generator) -> Ints:
    """DRAWS tables with the rows of each group and label in `table`, and predictions in the shares of `as_in`."""
    known = as_in.sum(axis=2, keepdims=True)
    shares = np.where(known > 0, as_in / np.maximum(known, 1), 1 / table.shape[2])
    return rng.multinomial(table.sum(axis=2), shares, size=(DRAWS, *table.shape[:2]))


def odds_gap(table: Ints) -> Floats:
    """The figure of `equalized_odds` of tables (..., G, C, C) of rows by group, label and prediction: (...,)."""
    own = table.sum(axis=-1)
    others = own.sum(axis=-1, keepdims=True) - own
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    alarms = table.sum(axis=-2) - hits
    gaps = [_range(hits, own), _range(alarms, others)]
    larger = np.where(np.isfinite(gaps[0] + gaps[1]), np.maximum(*gaps), np.nan)
    counted = np.isfinite(larger)
    total = np.where(counted, larger, 0).sum(axis=-1)
    return np.asarray(np.where(counted.any(axis=-1), total / np.maximum(counted.sum(axis=-1), 1), np.nan))


def _range(above: Ints, below: Ints) -> Floats:
    """Largest minus smallest ratio over groups (axis -2), of those with rows; NaN where fewer than two have."""
    rate = above / np.maximum(below, 1)
    known = below > 0
    top = np.where(known, rate, -np.inf).max(axis=-2)
    bottom = np.where(known, rate, np.inf).min(axis=-2)
    return np.where(known.sum(axis=-2) >= 2, top - bottom, np.nan)

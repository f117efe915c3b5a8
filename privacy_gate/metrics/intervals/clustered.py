"""Intervals of rates over models and rows: scores of a model share that model, and scores of a row share that row."""

import math

import numpy as np
from scipy.special import stdtrit

from privacy_gate.arrays import Bools, Floats
from privacy_gate.errors import EvidenceError
from privacy_gate.verdict.judgement import Measurement
from privacy_gate.verdict.metric import DIFFERENCE, SHARE, Metric, measured

LEFT_OUT_ACCURACY = Metric(
    "left_out_accuracy",
    title="accuracy on examples left out of training",
    unit="share",
    range=SHARE,
    worse="lower",
    resolves="At least 2 references, and every example left out of at least one.",
    means="How often models of a recipe are right about people they were not trained on.",
    remedy="Choose a recipe that changes less.",
)
LEFT_OUT_ACCURACY_GAIN = Metric(
    "left_out_accuracy_gain",
    title="change of the accuracy on examples left out of training",
    unit="difference",
    range=DIFFERENCE,
    worse="lower",
    resolves="At least 2 references of both recipes, and every example left out of at least one.",
    means="How much better or worse people are served if the recipe is changed.",
    remedy="Choose a recipe that changes less.",
    chance=0.0,
)
METRICS = (
    LEFT_OUT_ACCURACY,
    LEFT_OUT_ACCURACY_GAIN,
)

METHOD = "two-way clustered by models and rows"


def clustered_variance(parts: Floats) -> float:
    """Variance of an estimate whose error is a sum of parts (M, N), one for each model m and row n.

    Two-way clustering (Cameron, Gelbach & Miller 2011), but never below the variance of independent cells.
    """
    # Clusters by row plus clusters by model count each cell twice, so the cells are subtracted once.
    cells = float((parts**2).sum())
    rows, models = float((parts.sum(axis=0) ** 2).sum()), float((parts.sum(axis=1) ** 2).sum())
    return max(rows + models - cells, cells)


def clustered_ends(value: float, parts: Floats, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a rate, with the number of trials that gives its clustered variance; parts (M, N).

    Student's t with M - 1 degrees of freedom.
    """
    models, rows = parts.shape
    variance = clustered_variance(parts)
    # The number of independent trials that would have this variance; at 0 or 1 the variance says nothing.
    trials = value * (1 - value) / variance if variance > 0 and 0 < value < 1 else float(rows)
    return _wilson(value, trials, float(stdtrit(models - 1, (1 + confidence) / 2)))


def left_out_accuracy(correct: Bools, included: Bools, confidence: float) -> Measurement:
    """How often models are right on rows they were not trained on, every row with the same weight.

    correct, included (M, N); M >= 2, every row left out of at least one model. If every row is in equally many models,
    this is the mean of the models' accuracies. Rows that no model was trained on also count once, so recipes trained
    on different pools are compared on the same rows with the same weights.
    """
    value, parts = _linearised(correct, included)
    ends = clustered_ends(value, parts, confidence)
    return measured(LEFT_OUT_ACCURACY, value, ends, confidence, METHOD, _samples(parts))


def left_out_gain(correct: Bools, included: Bools, before: tuple[Bools, Bools], confidence: float) -> Measurement:
    """The rise of `left_out_accuracy` over that of other models `before` (their correct, included), paired.

    All (M, N). Model m of either side has the same draw of members, so effects that both share, such as a hard row,
    cancel.
    """
    value, parts = _linearised(correct, included)
    base, base_parts = _linearised(*before)
    parts, gain = parts - base_parts, value - base
    reach = float(stdtrit(len(parts) - 1, (1 + confidence) / 2)) * math.sqrt(clustered_variance(parts))
    ends, samples = (gain - reach, gain + reach), _samples(parts)
    return measured(LEFT_OUT_ACCURACY_GAIN, gain, ends, confidence, METHOD, samples)


def _linearised(correct: Bools, included: Bools) -> tuple[float, Floats]:
    """The accuracy, and the contribution of each model and row to its error (M, N)."""
    out = np.count_nonzero(~included, axis=0)
    if not out.all():
        raise EvidenceError(f"{np.count_nonzero(out == 0)} rows are in every model's training set: use more references")
    # Every row weighs 1 / N, divided among the models it is left out of.
    weight = ~included / out / correct.shape[1]
    value = float((weight * correct).sum())
    return value, np.asarray(weight * (correct - value))


def _wilson(value: float, trials: float, z: float) -> tuple[float, float]:
    z2 = z**2
    centre = (value + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 / trials * (value * (1 - value) + z2 / (4 * trials))) / (1 + z2 / trials)
    return centre - half, centre + half


def _samples(parts: Floats) -> str:
    return f"{parts.shape[0]:,} models, {parts.shape[1]:,} rows"

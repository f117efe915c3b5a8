"""Whether a trigger found by inversion makes a model say what its planter wants."""

from functools import cache

import numpy as np

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.dossier.views import square_side
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.bootstrap import DRAWS
from privacy_gate.metrics.intervals.paired import paired_interval
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import POSITIVE, SHARE, Metric, measured

INVERTED_BACKDOOR = Metric(
    "inverted_backdoor",
    title="rise of a class's rate under a small trigger found by inversion",
    unit="difference",
    range=SHARE,  # a fall counts as 0
    worse="higher",
    resolves="At least 5 classes, and holdout images of every class.",
    means="How easily a small patch on a picture makes the model give one answer, whether or not it was planted.",
    remedy="Remove images and public weights that carry such a patch, and train again with patches on every class.",
)
TRIGGER_ANOMALY = Metric(
    "trigger_anomaly",
    title="anomaly index of the smallest trigger found by inversion (2 is suspicious)",
    unit="index",
    range=POSITIVE,
    worse="higher",
    resolves="At least 5 classes; with few classes a high index is common by chance.",
    means="How much smaller one class's trigger is than those of other classes, which may mean that it was planted.",
    remedy="Look at the trigger found for this class, and at the images with this label.",
)
METRICS = (INVERTED_BACKDOOR, TRIGGER_ANOMALY)

ROOM = 1.2
"""Times the square of Gu et al., that a stamp covers at most to be suspicious whatever others cover."""

FEWEST_CLASSES = 5
"""Of which one can be told from the rest: the spread of fewer says nothing."""

LEAST_SPREAD = 0.1
"""Of log sizes: two searches for one class's trigger end some per cent apart, which is no difference."""


def won_and_lost(plain: Ints, shown: Ints, label: Ints, classes: int) -> tuple[Ints, Ints, Ints]:
    """For each target, among rows of other classes: how many are called it only with the trigger, how many only
    without, and how many there are; (C,) each."""
    won, lost = (shown != plain) & (shown != label), (shown != plain) & (plain != label)
    rows = len(label) - np.bincount(label, minlength=classes)
    return np.bincount(shown[won], minlength=classes), np.bincount(plain[lost], minlength=classes), rows


def tiny(side: int) -> float:
    """Share of images of this side that a stamp covers at most to be suspicious in itself.

    What inversion finds of a planted stamp is a part of it. Clean heads on frozen backbones are turned by stamps of
    1.2 % of 96 pixels a side and more, found for them alone: patches of Brown et al. 2017 (arXiv 1712.09665).
    """
    return ROOM * (square_side(side) / side) ** 2


def anomaly_index(size: Floats) -> Floats:
    """How much smaller each class's trigger is than the others', in robust standard deviations of log size, (..., C).

    size (..., C): share of the image under each class's mask, above 0. (median - log size) / (1.4826 MAD), as Wang et
    al. 2019 but of the logarithm: sizes themselves cannot fall far below their median where they scatter, and no class
    would ever be anomalous.
    """
    log = np.log(size)
    middle = np.median(log, axis=-1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(log - middle), axis=-1, keepdims=True)
    return np.asarray((middle - log) / np.maximum(spread, LEAST_SPREAD))


@cache
def usual_anomaly(classes: int, confidence: float) -> float:
    """What the largest index of so many classes stays below so often where none has a backdoor.

    Of DRAWS seeded tables whose log sizes are normal. Far above the 2 of Wang et al., which the smallest of ten exceeds
    oftener than not where the sizes are as unequal as these.
    """
    drawn = np.exp(np.random.default_rng(0).normal(size=(DRAWS, classes)))
    return float(np.quantile(anomaly_index(drawn).max(axis=1), confidence))


def trigger_anomaly(size: Floats, confidence: float) -> Measurement:
    """The largest anomaly index of any class; the subject names it. size (C,): see `anomaly_index`.

    Interval: its range as any one other class is left out.
    """
    classes = len(size)
    if classes < FEWEST_CLASSES:
        return not_measured("trigger_anomaly", _too_few(classes))
    index = anomaly_index(size)
    best = int(np.argmax(index))
    others = [place for place in range(classes) if place != best]
    kept = np.array([[best, *(place for place in others if place != out)] for out in others])
    without = anomaly_index(size[kept])[:, 0]
    ends, method = (float(without.min()), float(without.max())), "range as any other class is left out"
    subject, samples = f"class {best}", f"{classes} classes"
    return measured(TRIGGER_ANOMALY, index[best], ends, confidence, method, samples, subject=subject)


def inverted_backdoor(
    plain: Ints, stamped: Ints, label: Ints, size: Floats, covered: Floats, side: int, confidence: float
) -> Measurement:
    """Largest P(f(T_t(x)) = t) - P(f(x) = t) over classes t whose inverted trigger T_t is suspiciously small; else 0.

    Small next to the other classes', beyond the `usual_anomaly`, or in itself, `tiny`: where half of the classes are
    planted, the usual trigger is a planted one, and none is small next to it. One that is small in itself need not be
    planted: who puts it on a picture decides what the model says either way.

    plain, label (N,): predictions without a trigger, of rows that no trigger was sought on; stamped (C, N): with each
    class's; size (C,): see `anomaly_index`, NaN for a class whose search failed, of which nothing is said here; covered
    (C,): share of the image, of this side in pixels, under each stamp. Among rows of other classes. Interval: score
    intervals of each paired difference (Tango 1998), Bonferroni over classes; it speaks of the rise, not of which
    classes are suspicious.
    """
    classes = len(size)
    if stamped.shape != (classes, len(plain)) or plain.shape != label.shape or covered.shape != size.shape:
        raise EvidenceError(f"stamped has shape {stamped.shape}, expected {(classes, len(plain))}: classes, rows")
    if classes < FEWEST_CLASSES:
        return not_measured("inverted_backdoor", _too_few(classes))
    counts = [[each[t] for each in won_and_lost(plain, stamped[t], label, classes)] for t in range(classes)]
    won, lost, rows = np.array(counts).T
    if not rows.all():
        return not_measured("inverted_backdoor", "needs rows of other classes than a target")
    suspect = _suspect(size, covered, side, confidence)
    lift = np.where(suspect, (won - lost) / rows, 0.0)
    low, high = (
        np.maximum(0.0, np.where(suspect, end, 0.0)).max()
        for end in paired_interval(won, lost, rows, 1 - (1 - confidence) / classes)
    )
    value, best = max(0.0, float(lift.max())), int(np.argmax(lift))
    method = "paired score, Bonferroni over classes; 0 where no trigger is small"
    samples = f"{rows[best]:,} rows, {classes} classes"
    subject = f"class {best}" if suspect[best] else ""
    return measured(INVERTED_BACKDOOR, value, (low, high), confidence, method, samples, subject=subject)


def _suspect(size: Floats, covered: Floats, side: int, confidence: float) -> Bools:
    """Which classes' triggers are small, in themselves or next to the others', (C,); see `inverted_backdoor`."""
    found = np.isfinite(size)
    suspect = found & (covered <= tiny(side))
    if found.sum() >= FEWEST_CLASSES:
        suspect[found] |= anomaly_index(size[found]) > usual_anomaly(int(found.sum()), confidence)
    return suspect


def _too_few(classes: int) -> str:
    return f"needs >= {FEWEST_CLASSES} classes, found {classes}: among fewer none can be told from the rest"

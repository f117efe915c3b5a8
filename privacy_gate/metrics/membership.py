"""How well an attack separates members from holdout, with intervals that account for every error.

The interval of a true positive rate at a false positive rate must cover two errors: members are a sample, and so are
the non-members that set the threshold. Ties between members and non-members count as they do for an attacker who
breaks them at random.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, ndtri
from scipy.stats import binom, rankdata

from privacy_gate.arrays import Floats
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.fewest import fewest
from privacy_gate.metrics.intervals.ranks import checked, corners, members_above
from privacy_gate.metrics.rates import ROUNDING, at_fpr, needed_holdout
from privacy_gate.verdict.exhibits import Histogram, Roc
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judged_status, not_measured
from privacy_gate.verdict.metric import SHARE, Metric, measured

NEGLIGIBLE = 1e-12
"""Probability of the threshold ranks that the interval ignores."""

PRECISION_FPR = 0.01
"""The false positive rate at which an attacker's precision is reported."""

PRIORS = (0.5, 0.1, 0.01)
"""Shares of members among the people an attacker asks about, for which precision is reported."""

EXACT = 30
"""Number of false positives up to which every step of the curve is kept."""

POINTS = 190
"""Points of a curve, at most."""

BINS = 40
"""Bins of a histogram."""

ENDLESS = 1e18
"""So many members that the interval's width depends only on the holdout."""

TAIL = 0.005
"""Share of either group's scores beyond the outermost edges; these are counted in the outermost bins."""


def tpr_at_fpr(member: Floats, holdout: Floats, fpr: float, confidence: float, subject: str = "") -> Measurement:
    """Share of members (m,) above the score that a share `fpr` of holdout (n,) exceeds; larger = more likely a member.

    The estimate accuses at most fpr * n holdout rows. Interval: K, the number of the n holdout rows above the true
    threshold, is binomial (n, fpr), and the number of members above it lies between the numbers above the K-th and the
    (K+1)-th holdout score. Clopper-Pearson's beta distributions at the middle of the two are mixed over K; the ends are
    quantiles of the mixture. Not measured if the holdout cannot resolve fpr. Raises EvidenceError if scores are not
    finite.
    """
    metric = at_fpr(TPR, fpr)
    member, holdout = checked(member, holdout)
    m, n = len(member), len(holdout)
    if n < needed_holdout(fpr):
        return not_measured(metric.name, f"needs n >= {needed_holdout(fpr):,} holdout rows, found {n:,}", subject)
    above = members_above(member, holdout)
    value = float(above[math.floor(fpr * n + ROUNDING) + 1] / m)
    # Only ranks K with a probability that matters; their weights are normalised to sum to 1.
    rank = np.arange(binom.ppf(NEGLIGIBLE, n, fpr), binom.isf(NEGLIGIBLE, n, fpr) + 1).astype(np.int64)
    weight = binom.pmf(rank, n, fpr)
    weight /= weight.sum()
    middle = (above[rank] + above[rank + 1]) / 2
    tail = (1 - confidence) / 2
    low = _mixture_quantile(middle, m - middle + 1, weight, tail)
    high = _mixture_quantile(middle + 1, m - middle, weight, 1 - tail)
    method = "Clopper-Pearson mixed over the threshold's rank"
    samples = _samples(member, holdout)
    return measured(metric, value, (low, high), confidence, method, samples, subject=subject)


def _mixture_quantile(a: Floats, b: Floats, weight: Floats, level: float) -> float:
    """Quantile of a mixture of beta distributions; one with a = 0 is a point mass at 0, one with b = 0 at 1."""
    at_zero, at_one = a <= 0, b <= 0
    inner = ~(at_zero | at_one)
    a, b, inside, zero = a[inner], b[inner], weight[inner], float(weight[at_zero].sum())

    def excess(probability: float) -> float:
        return zero + float(inside @ betainc(a, b, probability)) - level

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, 1.0, xtol=1e-12)) if excess(1.0) > 0 else 1.0


def auc(member: Floats, holdout: Floats, confidence: float, subject: str = "") -> Measurement:
    """Probability that a member scores above a holdout row, ties counting half.

    Interval: Wilson's, with the number of trials that gives DeLong's variance (DeLong et al. 1988). It is kept between
    min(m, n), the worst case, and the number for equal distributions with AUC .5. So the interval has a width even at
    perfect separation, where DeLong's variance is 0.
    """
    member, holdout = checked(member, holdout)
    m, n = len(member), len(holdout)
    ranks = rankdata(np.concatenate([member, holdout]))
    # DeLong's placements: the share of holdout that each member beats, and the share of members that beat each holdout.
    beaten = (ranks[:m] - rankdata(member)) / n
    beating = 1 - (ranks[m:] - rankdata(holdout)) / m
    value = float(beaten.mean())
    fewest, most = min(m, n), 3 * m * n / (m + n + 1)
    trials = float(fewest)
    if fewest > 1 and 0 < value < 1:
        variance = float(beaten.var(ddof=1) / m + beating.var(ddof=1) / n)
        trials = min(max(value * (1 - value) / variance, fewest), most) if variance > 0 else most
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    centre = (value + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 / trials * (value * (1 - value) + z2 / (4 * trials))) / (1 + z2 / trials)
    method = "Wilson with DeLong's effective sample"
    ends, samples = (centre - half, centre + half), _samples(member, holdout)
    return measured(AUC, value, ends, confidence, method, samples, subject=subject)


def balanced_accuracy(member: Floats, holdout: Floats, confidence: float, subject: str = "") -> Measurement:
    """(1 + D) / 2 with D the largest tpr - fpr over all thresholds: accuracy at even odds with the best threshold.

    The best threshold is chosen on the scores it is judged on, which biases D upwards. The lower end therefore allows
    for the largest chance difference anywhere (one-sided two-sample Smirnov bound). No true threshold can exceed the
    observed D by more than its own error, so the upper end allows for the largest variance that a difference D of two
    proportions can have, as Wilson's interval does.
    """
    member, holdout = checked(member, holdout)
    m, n = len(member), len(holdout)
    accused, caught = corners(member, holdout)
    low, value, high = _balance(float(np.max(caught / m - accused / n)), m, n, confidence)
    method, samples = "Smirnov below, Wilson's principle above", _samples(member, holdout)
    return measured(BALANCED_ACCURACY, value, (low, high), confidence, method, samples, subject=subject)


def _balance(gap: float, m: float, n: float, confidence: float) -> tuple[float, float, float]:
    """balanced_accuracy and its ends, (low, value, high), from the largest difference `gap`; m members, n holdout."""
    spread = 1 / m + 1 / n
    # Over the tpr, V = tpr (1 - tpr) / m + (tpr - D) (1 - tpr + D) / n is at most spread (1 - 4 uneven D^2) / 4.
    uneven = m * n / (m + n) ** 2
    c = float(ndtri((1 + confidence) / 2)) ** 2 * spread
    root = math.sqrt(max(gap**2 - (1 + c * uneven) * (gap**2 - c / 4), 0.0))
    high = (gap + root) / (1 + c * uneven)
    # The one-sided Smirnov bound: P(difference > t) <= exp(-2 t^2 / spread).
    low = gap - math.sqrt(-math.log((1 - confidence) / 2) / 2 * spread)
    return (1 + max(low, 0.0)) / 2, (1 + gap) / 2, (1 + min(high, 1.0)) / 2


def needed_for_balance(limit: Limit, confidence: float) -> int | None:
    """Holdout rows below which balanced_accuracy misses the limit even with endless members; None: with any number.

    >>> needed_for_balance(Limit(max=0.55), 0.95)
    97
    """
    gap = 0.0 if limit.max is not None else 1.0

    def meets(rows: int) -> bool:
        low, value, high = _balance(gap, ENDLESS, rows, confidence)
        best = measured(BALANCED_ACCURACY, value, (low, high), confidence, "", "")
        return judged_status(best, limit) is Status.MET

    return fewest(meets)


def precision(member: Floats, holdout: Floats, prior: float, confidence: float, subject: str = "") -> Measurement:
    """Share of the accused who are members, at fpr PRECISION_FPR, if a share `prior` of those asked about are.

    Among a real attacker's targets members are rarely half (arXiv 2603.07567). Precision increases with the true
    positive rate only, so the interval of `tpr_at_fpr` carries over.
    """
    metric, caught = precision_record(prior), tpr_at_fpr(member, holdout, PRECISION_FPR, confidence)
    if caught.low is None or caught.value is None or caught.high is None:
        return not_measured(metric.name, caught.reason or "", subject)
    low, value, high = (precision_at(PRECISION_FPR, tpr, prior) for tpr in (caught.low, caught.value, caught.high))
    ends, method, samples = (low, high), caught.method, caught.samples
    return measured(metric, value, ends, confidence, method, samples, subject=subject)


def precision_name(prior: float) -> str:
    """The name of the precision at a given share of members.

    >>> precision_name(0.01)
    'precision_at_0.01_prior'
    """
    return f"precision_at_{prior:g}_prior"


def precision_at(fpr: float, tpr: float, prior: float) -> float:
    """Share of the accused who are members, if a share `prior` of those an attacker asks about are.

    Raises EvidenceError if no one is accused.

    >>> round(precision_at(fpr=0.01, tpr=0.10, prior=0.01), 3)
    0.092
    """
    right, wrong = prior * tpr, (1 - prior) * fpr
    if right + wrong <= 0:
        raise EvidenceError("no one is accused at a tpr and an fpr of 0: precision is undefined")
    return right / (right + wrong)


def roc(member: Floats, holdout: Floats, attack: str) -> Roc:
    """The curve from (0, 0) to (1, 1), straight between points, at most 200 of them.

    It keeps every step up to EXACT false positives, then points on the curve at numbers of false positives that grow
    by a constant factor, so it looks complete on logarithmic axes. The first points have fpr 0, which logarithmic axes
    cannot show.
    """
    member, holdout = checked(member, holdout)
    accused, caught = corners(member, holdout)
    counts, first = np.unique(accused, return_index=True)
    last = np.append(first[1:], len(accused)) - 1
    early = counts <= EXACT
    # Two points for each early count: `room` is what remains for the spaced ones.
    room = POINTS - 2 * int(np.count_nonzero(early))
    spaced = np.geomspace(EXACT + 1, max(len(holdout), EXACT + 2), room)
    chosen = np.unique(np.minimum(np.searchsorted(counts, spaced), len(counts) - 1))
    keep = np.unique(np.concatenate([first[early], last[early], last[chosen], [len(accused) - 1]]))
    return Roc(
        attack=attack,
        fpr=tuple((accused[keep] / len(holdout)).tolist()),
        tpr=tuple((caught[keep] / len(member)).tolist()),
    )


def histogram(member: Floats, holdout: Floats, attack: str) -> Histogram:
    """Counts of members and holdout in BINS equal bins that span all but the tails of both.

    Every row is counted; rows beyond the edges are in the outermost bins.
    """
    member, holdout = checked(member, holdout)
    ends = [np.quantile(scores, (TAIL, 1 - TAIL)) for scores in (member, holdout)]
    low, high = float(min(ends[0][0], ends[1][0])), float(max(ends[0][1], ends[1][1]))
    if high - low <= abs(low) * 1e-9:  # a single value, or values too close for distinct edges
        half = max(0.5, abs(low) * 1e-6)
        low, high = low - half, low + half
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0].tolist() for scores in (member, holdout)]
    return Histogram(attack=attack, edges=tuple(edges.tolist()), member=tuple(counts[0]), holdout=tuple(counts[1]))


def _samples(member: Floats, holdout: Floats) -> str:
    return f"{len(member):,} members, {len(holdout):,} holdout"


TPR = Metric(
    "tpr",
    title="members identified at a false positive rate of {fpr}",
    unit="share",
    range=SHARE,
    worse="higher",
    resolves="At least {rows} holdout examples.",
    means="The share of people in the training data whom an attacker identifies, falsely accusing {fpr} of others.",
    remedy="Train on more examples per class, for fewer epochs, with stronger regularisation, or with DP-SGD.",
)
FAMILIES = (TPR,)
"""Metrics of one attack on this candidate, at a false positive rate."""

BALANCED_ACCURACY = Metric(
    "balanced_accuracy",
    title="balanced accuracy of the attack's best threshold",
    unit="share",
    range=(0.5, 1.0),
    worse="higher",
    resolves="Members and holdout examples: 97 holdout examples for a limit of 0.55.",
    means="How often an attacker tells correctly who was in the training data, if half of the people asked about were.",
    remedy="Train on more examples per class, for fewer epochs, with stronger regularisation, or with DP-SGD.",
    chance=0.5,
)


def precision_record(prior: float) -> Metric:
    """The record of the precision at a given share of members."""
    share = f"{round(100 * prior)} %"
    return Metric(
        precision_name(prior),
        title=f"accusations that are right, if {share} of the people asked about are members",
        unit="share",
        range=(0.0, precision_at(PRECISION_FPR, 1.0, prior)),
        worse="higher",
        resolves=f"At least {needed_holdout(PRECISION_FPR):,} holdout examples.",
        means=f"How far an attacker can trust an accusation, at a false positive rate of 1 %, if {share} of the people "
        "asked about were in the training data.",
        remedy="Lower the true positive rate at a false positive rate of 1 %; precision follows it.",
        chance=prior,
    )


AUC = Metric(
    "auc",
    title="area under the ROC curve",
    unit="index",
    range=SHARE,
    worse="higher",
    resolves="Members and holdout examples: with 400 of each the interval is about 0.08 wide.",
    means="How often a person in the training data looks more like a member than one who is not; 0.5 is guessing.",
    remedy="Train on more examples per class, for fewer epochs, with stronger regularisation, or with DP-SGD.",
    chance=0.5,
)
METRICS = (
    AUC,
    BALANCED_ACCURACY,
    *map(precision_record, PRIORS),
)

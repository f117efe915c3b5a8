"""Whether a model serves, or exposes, some groups more than others. Axis letters as in evidence.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.intervals.bootstrap import DRAWS
from privacy_gate.metrics.intervals.fewest import fewest
from privacy_gate.metrics.intervals.paired import paired_interval
from privacy_gate.metrics.parties.disparity import Accusations
from privacy_gate.verdict.judgement import Limit, Measurement, not_measured
from privacy_gate.verdict.metric import SHARE, Metric, inherited, measured

GROUP_GAP = Metric(
    "group_gap",
    title="largest gap of accuracy between groups",
    unit="difference",
    range=SHARE,
    worse="higher",
    resolves="Holdout examples of every group: at least 36 of each of two groups for a limit of 0.1.",
    means="How much worse the model serves one group of people than another.",
    remedy="Collect more examples of the worst-served group, or give it more weight in training.",
)
EQUALIZED_ODDS = Metric(
    "equalized_odds",
    title="gap of equalized odds between groups",
    unit="difference",
    range=SHARE,
    worse="higher",
    resolves="Holdout examples of every class in every group; hundreds of each for a limit of 0.1.",
    means="How differently the model errs for two groups of people, inside a class and outside it.",
    remedy="Collect more examples of the worst-served group, or choose thresholds that equalise the errors.",
)
GROUP_GAP_PART = Metric(
    "group_gap_part",
    title="part of the gap of accuracy between groups, by the stage that causes it",
    unit="difference",
    range=(-2.0, 2.0),  # a difference of two differences
    worse="higher",
    resolves="Holdout examples of the best and the worst served group.",
    means="Whether a gap between groups comes from the public backbone, from fine-tuning, or from the federation.",
    remedy="Change the stage that adds most to the gap.",
    chance=0.0,
)
DISPARATE_MIA = Metric(
    "disparate_mia",
    title="largest gap between groups in members identified, at one threshold for all",
    unit="difference",
    range=SHARE,
    worse="higher",
    resolves="Thousands of members for a limit of 0.02, and members of at least 2 groups or clients.",
    means="How much more often members of one group are identified than members of another.",
    remedy="Collect more examples of the most exposed group, or train with DP-SGD.",
)
DISPARATE_MIA_P_VALUE = Metric(
    "disparate_mia_p_value",
    title="p-value of the gap between groups in members identified",
    unit="p-value",
    range=SHARE,
    worse="lower",
    resolves="Members of at least 2 groups or clients.",
    means="How often sampling noise alone makes a gap this large between groups; a small value means a real gap.",
    remedy="Look at the most exposed group; the remedy for disparate_mia applies.",
)
METRICS = (
    GROUP_GAP,
    EQUALIZED_ODDS,
    GROUP_GAP_PART,
    inherited(GROUP_GAP),
    inherited(EQUALIZED_ODDS),
    DISPARATE_MIA,
    DISPARATE_MIA_P_VALUE,
)

BATCH = 100
"""Posterior draws made at once: with many classes, all DRAWS together would not fit in memory."""


def group_gap(correct: Bools, group: NDArray[Any], confidence: float) -> Measurement:
    """Largest difference of accuracy between two groups; correct and group (N,).

    Interval: for each pair, the root of the summed squared distances to the Clopper-Pearson ends (the principle of
    Newcombe 1998, method 10), at a confidence that holds for all pairs at once (Bonferroni).
    """
    return _largest_gap(GROUP_GAP, correct, group, confidence, "rows")


def needed_holdout(limit: Limit, confidence: float) -> int | None:
    """Rows below which `group_gap` exceeds its limit even for two equally large groups without a single error.

    >>> needed_holdout(Limit(max=0.1), 0.95)
    72
    """

    def meets(rows: int) -> bool:
        return limit.max is not None and 1 - clopper_pearson(rows, rows, confidence)[0] <= limit.max

    half = fewest(meets)
    return None if half is None else 2 * half


def disparate_mia(
    calls: Accusations, permutations: int, confidence: float, rng: np.random.Generator, subject: str = ""
) -> list[Measurement]:
    """disparate_mia: largest difference of TPR between two groups at the one threshold; and its p-value.

    Interval of the gap: as for `group_gap`, over members. disparate_mia_p_value: the share of shuffles of the groups
    among members with a gap at least as large, (count + 1) / (shuffles + 1); its interval is Clopper-Pearson's for the
    share over all possible shuffles. Only members are compared, so a group without holdout rows counts like any other.
    A group may be accused more often for reasons other than membership; `vulnerability_gap` subtracts the rate of its
    holdout rows.
    """
    accused, group = calls.accused[calls.member], calls.group[calls.member]
    gap = _largest_gap(DISPARATE_MIA, accused, group, confidence, "members")
    if not gap.measured:
        return [not_measured(metric, str(gap.reason), subject) for metric in ("disparate_mia", "disparate_mia_p_value")]
    _, code, size = np.unique(group, return_inverse=True, return_counts=True)
    # A shuffle of the groups draws each group's number of accused members from a multivariate hypergeometric.
    shuffled = rng.multivariate_hypergeometric(size, int(accused.sum()), permutations, method="marginals") / size
    observed = np.ptp(np.bincount(code[accused], minlength=len(size)) / size)
    extreme = int((np.ptp(shuffled, axis=1) >= observed - 1e-12).sum())
    p = measured(
        DISPARATE_MIA_P_VALUE,
        (extreme + 1) / (permutations + 1),
        clopper_pearson(extreme, permutations, confidence),
        confidence,
        "permutation test; interval of the shuffles drawn",
        f"{permutations:,} shuffles, {len(size):,} groups",
    )
    return [one.model_copy(update={"subject": subject}) for one in (gap, p)]


def _largest_gap(metric: Metric, hit: Bools, group: NDArray[Any], confidence: float, unit: str) -> Measurement:
    """Largest difference between two groups of the share of hits; hit and group (N,)."""
    names, code, size = np.unique(group, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return not_measured(metric.name, f"needs >= 2 groups, found {len(names)}")
    hits = np.bincount(code[hit], minlength=len(names))
    level = 1 - (1 - confidence) / (len(names) * (len(names) - 1) / 2)
    ends = np.array([clopper_pearson(int(count), int(rows), level) for count, rows in zip(hits, size, strict=True)])
    rate, below, above = hits / size, hits / size - ends[:, 0], ends[:, 1] - hits / size
    low = high = 0.0
    # For each group, all groups with a rate no higher at once: every pair is seen once, with a difference >= 0.
    for one in range(len(names)):
        others = (rate <= rate[one]) & (np.arange(len(names)) != one)
        difference = rate[one] - rate[others]
        low = max(low, float((difference - np.hypot(below[one], above[others])).max(initial=0)))
        high = max(high, float((difference + np.hypot(above[one], below[others])).max(initial=0)))
    value, samples = float(np.ptp(rate)), f"{len(hit):,} {unit}, {len(names):,} groups"
    return measured(metric, value, (low, high), confidence, "Newcombe, Bonferroni over pairs", samples)


def gap_parts(stages: Mapping[str, Bools], group: NDArray[Any], confidence: float) -> list[Measurement]:
    """group_gap_part: which stages cause the gap between the best and the worst served group, one part per stage.

    stages  name of the part -> whether that stage's model is right on each row (N,). They run from the model that all
            others build on to the judged one, whose best and worst group are compared; group (N,)

    The first part is the first model's own gap between the two groups; each later part is the change of the gap from
    the model before. The parts add up to the judged model's gap, and may be negative. Interval: the root of the summed
    squared distances to the ends (the principle of Newcombe 1998, method 10): Clopper-Pearson's of each group for the
    first part, those of paired differences (`paired_interval`) for the others. The two groups are treated as fixed.
    Empty if there are fewer than two groups.
    """
    names, code, size = np.unique(group, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return []
    judged = np.bincount(code[list(stages.values())[-1]], minlength=len(names)) / size
    # The last of equally bad groups: if all are alike, best and worst must still be two different groups.
    best, worst = int(judged.argmax()), int(len(judged) - 1 - judged[::-1].argmin())
    rows = [np.flatnonzero(code == one) for one in (best, worst)]
    samples = f"{names[best]} ({size[best]:,} rows) over {names[worst]} ({size[worst]:,})"
    parts, before = [], None
    for name, right in stages.items():
        ends = [_change(right[place], None if before is None else before[place], confidence) for place in rows]
        (low, value, high), (other_low, other, other_high) = ends
        interval = (
            value - other - float(np.hypot(value - low, other_high - other)),
            value - other + float(np.hypot(high - value, other - other_low)),
        )
        method = "Newcombe" if before is None else "Newcombe, of paired score intervals"
        parts.append(
            measured(
                GROUP_GAP_PART,
                value - other,
                interval,
                confidence,
                method,
                samples,
                subject=name,
            )
        )
        before = right
    return parts


def _change(right: Bools, before: Bools | None, confidence: float) -> tuple[float, float, float]:
    """low, value, high of a model's accuracy on rows (N,), or of its rise over the accuracy of the model before."""
    if before is None:
        low, high = clopper_pearson(int(right.sum()), len(right), confidence)
        return low, float(right.mean()), high
    won, lost, rows = (np.array([count]) for count in ((right & ~before).sum(), (before & ~right).sum(), len(right)))
    lows, highs = paired_interval(won, lost, rows, confidence)
    return float(lows[0]), float((won[0] - lost[0]) / rows[0]), float(highs[0])


def equalized_odds(
    predicted: Ints, label: Ints, group: NDArray[Any], confidence: float, rng: np.random.Generator
) -> Measurement:
    """Mean over classes, one against the rest, of the larger of two gaps between groups: that of TPR and that of FPR.

    predicted, label, group (N,). Hardt et al. 2016 (arXiv 1610.02413); with two classes this is the difference that
    fairlearn calls equalized odds. A class counts if two groups have both rows of it and rows of other classes; only
    groups with both are compared. That is right if the other groups have no such rows anywhere: they have no one to
    recognise, and their false alarms appear as misses in the true class. The caller must handle groups that lack such
    rows only in this table.

    Interval: gaps of rates drawn from their posterior (Jeffreys). A gap of estimates is biased above the gap of the
    true rates, and a gap of rates drawn around the estimates is biased further. So the high end is the draws' own
    quantile, and the low end lies as far below the estimate as their quantile, Bonferroni over pairs of groups, lies
    above it. The low end is 0 unless a gap this large is rare when groups are shuffled among the rows of each class.
    """
    names, code = np.unique(group, return_inverse=True)
    shape = (len(names), 1 + int(max(predicted.max(initial=0), label.max(initial=0))))
    value = float(_odds_gap(predicted, label, code, shape))
    if not np.isfinite(value):
        return not_measured("equalized_odds", "needs a class for which two groups have both positives and negatives")
    tail = (1 - confidence) / 2
    pairs = len(names) * (len(names) - 1) / 2
    high, joint = np.quantile(_plausible_gaps(predicted, label, code, shape, rng), [1 - tail, 1 - tail / pairs])
    low = max(0.0, 2 * value - float(joint))
    if low and _share_as_large(value, predicted, label, code, shape, rng) >= tail:
        low = 0.0
    method, samples = "posterior of rates; permutation test against 0", f"{len(label):,} rows, {len(names)} groups"
    return measured(EQUALIZED_ODDS, value, (low, float(high)), confidence, method, samples)


def _odds_gap(predicted: Ints, label: Ints, code: Ints, shape: tuple[int, int]) -> Floats:
    """The figure for rows (N,) with groups `code`; shape (G, C). NaN if no class counts."""
    right = predicted == label
    hits = _table(code[right], label[right], shape)
    alarms = _table(code[~right], predicted[~right], shape)
    return _gap_of_counts(hits, alarms, _table(code, label, shape))


def _share_as_large(
    value: float, predicted: Ints, label: Ints, code: Ints, shape: tuple[int, int], rng: np.random.Generator
) -> float:
    """The share of DRAWS shuffles, of the groups among the rows of each class, with a gap of at least `value`."""
    order = np.argsort(label, kind="stable")
    predicted, label, code = predicted[order], label[order], code[order]
    extreme = 0
    for _ in range(DRAWS):
        # Rows are sorted by label, so label + noise in [0, 1) permutes the rows within each class only.
        shuffled = code[np.argsort(label + rng.random(len(label)))]
        extreme += bool(_odds_gap(predicted, label, shuffled, shape) >= value - 1e-12)
    return extreme / DRAWS


def _plausible_gaps(
    predicted: Ints, label: Ints, code: Ints, shape: tuple[int, int], rng: np.random.Generator
) -> Floats:
    """Gaps (DRAWS,) of rates drawn from their posterior; shape (G, C).

    For each group and label, the shares of the predictions are Dirichlet: the counts, plus half a row for the right
    class and half a row shared equally by the wrong classes. Most of many classes never occur as a prediction; they
    take no memory.
    """
    groups, classes = shape
    size = _table(code, label, shape)
    wrong = predicted != label
    errors_seen, count = np.unique(np.stack([code, label, predicted])[:, wrong], axis=1, return_counts=True)
    # Sparse sums over the distinct errors: column g * C + c gathers those of group g with label, or prediction, c.
    place, ones = np.arange(len(count)), np.ones(len(count))
    wide = (len(count), groups * classes)
    by_label = csr_array((ones, (place, errors_seen[0] * classes + errors_seen[1])), shape=wide)
    by_prediction = csr_array((ones, (place, errors_seen[0] * classes + errors_seen[2])), shape=wide)
    hits = _table(code[~wrong], label[~wrong], shape).ravel()
    gaps = []
    for _ in range(DRAWS // BATCH):
        # Independent gammas divided by their sum are Dirichlet; `scale` turns shares back into numbers of rows.
        errors = rng.standard_gamma(count, (BATCH, len(count)))
        right, astray = rng.standard_gamma(hits + 0.5, (BATCH, len(hits))), rng.standard_gamma(0.5, (BATCH, len(hits)))
        scale = size.ravel() / (right + astray + errors @ by_label)
        elsewhere = (astray * scale).reshape(BATCH, groups, classes)
        spread = (elsewhere.sum(axis=2, keepdims=True) - elsewhere) / max(classes - 1, 1)
        alarms = (errors * (scale @ by_label.T)) @ by_prediction
        gaps.append(_gap_of_counts((right * scale).reshape(spread.shape), alarms.reshape(spread.shape) + spread, size))
    return np.concatenate(gaps)


def _table(code: Ints, values: Ints, shape: tuple[int, int]) -> Ints:
    """Number of rows of each group and class, `shape` (G, C)."""
    return np.bincount(code * shape[1] + values, minlength=shape[0] * shape[1]).reshape(shape)


def _gap_of_counts(hits: Floats | Ints, alarms: Floats | Ints, size: Ints) -> Floats:
    """The figure (...,) from right predictions by label, wrong ones by prediction (..., G, C), and rows (G, C)."""
    others = size.sum(axis=1, keepdims=True) - size
    larger = np.maximum(_range(hits, size), _range(alarms, others))
    counted = np.isfinite(larger)
    total = np.where(counted, larger, 0).sum(axis=-1)
    return np.asarray(np.where(counted.any(axis=-1), total / np.maximum(counted.sum(axis=-1), 1), np.nan))


def _range(above: Floats | Ints, below: Ints) -> Floats:
    """Largest minus smallest ratio over the groups with rows (axis -2); NaN if fewer than two groups have rows."""
    rate = above / np.maximum(below, 1)
    known = below > 0
    top = np.where(known, rate, -np.inf).max(axis=-2)
    bottom = np.where(known, rate, np.inf).min(axis=-2)
    return np.asarray(np.where(known.sum(axis=-2) >= 2, top - bottom, np.nan))

"""Whether some groups are more exposed than others, at one threshold for all: Kulynych et al. 2022 (arXiv 1906.00389).

A separate threshold for each group would measure how well each group can be attacked by someone who knows it, and it
would overstate differences: the best of many thresholds looks better by chance in groups with fewer rows.
"""

from dataclasses import dataclass

import numpy as np

from privacy_gate.arrays import Bools, Floats, Names
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.intervals.ranks import checked
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import DIFFERENCE, SHARE, Metric, measured

VULNERABILITY = Metric(
    "vulnerability",
    title="members identified, minus false accusations",
    unit="difference",
    range=DIFFERENCE,
    worse="higher",
    resolves="Members and holdout examples of every class, group or client.",
    means="How much more often members of a group are accused than non-members of the same group.",
    remedy="Collect more examples of the most exposed group, or train with DP-SGD.",
    chance=0.0,
)
VULNERABILITY_GAP = Metric(
    "vulnerability_gap",
    title="how far the most exposed group exceeds the vulnerability of all",
    unit="difference",
    range=DIFFERENCE,
    worse="higher",
    resolves="Members and holdout examples of every class, group or client; thousands for a limit of 0.02.",
    means="How much more exposed the worst-off group is than people on average.",
    remedy="Collect more examples of the most exposed group, or train with DP-SGD.",
    chance=0.0,
)
DISPARITY_P_VALUE = Metric(
    "disparity_p_value",
    title="p-value of a group's vulnerability against that of all",
    unit="p-value",
    range=SHARE,
    worse="lower",
    resolves="Members and holdout examples of every class, group or client.",
    means="How often sampling noise alone sets a group this far apart; a small value means a real difference.",
    remedy="Look at the group with the smallest value; the remedy for vulnerability_gap applies.",
)
METRICS = (
    VULNERABILITY,
    VULNERABILITY_GAP,
    DISPARITY_P_VALUE,
)


@dataclass(frozen=True)
class Accusations:
    """Which rows score above the one threshold; member rows first.

    accused, member, group (N,): whether the row is above the threshold, whether it is a member, and its group
    """

    accused: Bools
    member: Bools
    group: Names


def accusations(member: Floats, holdout: Floats, member_group: Names, holdout_group: Names, fpr: float) -> Accusations:
    """Rows above the threshold: the lowest score that at most a share `fpr` of all holdout rows exceeds.

    member (m,) and holdout (n,) scores, larger = more likely a member; the group of each row. Raises EvidenceError if
    the numbers of scores and groups differ.
    """
    member, holdout = checked(member, holdout)
    for name, rows, groups in (("member", member, member_group), ("holdout", holdout, holdout_group)):
        if len(rows) != len(groups):
            raise EvidenceError(f"{name} has {len(rows)} scores and {len(groups)} groups, expected equal numbers")
    threshold = np.sort(holdout)[::-1][int(fpr * len(holdout) + 1e-9)]  # 1e-9: 0.01 * 300 must not round down to 2
    scores = np.concatenate([member, holdout])
    return Accusations(scores > threshold, np.arange(len(scores)) < len(member), np.append(member_group, holdout_group))


def group_vulnerability(calls: Accusations, confidence: float, subject: str = "") -> list[Measurement]:
    """V_g = P(accused | member of g) - P(accused | holdout of g) for each group, sorted by group.

    The subject of each measurement is "subject: group". Interval for a difference of two proportions: the root of the
    summed squared distances to the Clopper-Pearson ends (the principle of Newcombe 1998, method 10). The threshold is
    treated as fixed.
    """
    measurements = []
    for name in np.unique(calls.group):
        label = _label(subject, str(name))
        sides = [calls.accused[(calls.group == name) & (calls.member == side)] for side in (True, False)]
        if min(len(side) for side in sides) == 0:
            reason = f"needs member and holdout rows, found {len(sides[0])} and {len(sides[1])}"
            measurements.append(not_measured("vulnerability", reason, label))
            continue
        rates = [float(side.mean()) for side in sides]
        ends = [clopper_pearson(int(side.sum()), len(side), confidence) for side in sides]
        value = rates[0] - rates[1]
        # Newcombe: the low end combines the member rate's low end with the holdout rate's high end.
        below = np.hypot(rates[0] - ends[0][0], ends[1][1] - rates[1])
        above = np.hypot(ends[0][1] - rates[0], rates[1] - ends[1][0])
        measurements.append(
            measured(
                VULNERABILITY,
                value,
                (value - below, value + above),
                confidence,
                "Clopper-Pearson ends, squared and added",
                f"{len(sides[0]):,} members, {len(sides[1]):,} holdout",
                subject=label,
            )
        )
    return measurements


def vulnerability_gap(calls: Accusations, confidence: float, subject: str = "") -> Measurement:
    """Largest V_g - V over the groups; V is the vulnerability of all rows together.

    The largest of many estimates is biased upwards, so the interval is built from the intervals of the groups (MOVER,
    Zou & Donner 2008, on Clopper-Pearson ends of the group and of all other rows). Its high end is the highest upper
    end, each at the stated confidence: the group that is truly the largest lies below its own. Its low end is the
    highest lower end, and these hold for all groups at once (Bonferroni). The threshold is treated as fixed.

    Not measured if a group has members and no holdout row: its exposure is unknown, and it may be the largest. A group
    without members has no one to expose; its holdout rows count towards all rows.
    """
    metric, names = "vulnerability_gap", _with_both(calls)
    if len(unknown := np.setdiff1d(calls.group[calls.member], names)):
        lacking = f"{len(unknown):,} of {len(unknown) + len(names):,} have none, the first is {str(unknown[0])!r}"
        return not_measured(metric, f"needs n >= 1 holdout rows of every group with members: {lacking}", subject)
    samples = f"{len(names):,} groups, {len(calls.accused):,} rows"
    if len(np.unique(calls.group)) < 2 or not names:
        return not_measured(metric, f"needs >= 2 groups with members and holdout, found {len(names)}", subject)
    joint = 1 - (1 - confidence) / len(names)
    bounds = [(_distance(calls, name, joint)[0], *_distance(calls, name, confidence)[1:]) for name in names]
    low, value, high = (max(column) for column in zip(*bounds, strict=True))
    method = "simultaneous from below, the highest upper end above"
    return measured(VULNERABILITY_GAP, value, (low, high), confidence, method, samples, subject=subject)


def _distance(calls: Accusations, name: str, confidence: float) -> tuple[float, float, float]:
    """V_g - V: low, value, high."""
    value = below = above = 0.0
    for sign, side in ((1, True), (-1, False)):
        inside, on_side = calls.group == name, calls.member == side
        group, rest = calls.accused[inside & on_side], calls.accused[~inside & on_side]
        if not len(rest):
            continue
        # V averages the group and the rest by size, so V_g - V is the difference to the rest, times the rest's share.
        share = len(rest) / (len(group) + len(rest))
        rates = (float(group.mean()), float(rest.mean()))
        ends = [clopper_pearson(int(rows.sum()), len(rows), confidence) for rows in (group, rest)]
        value += sign * share * (rates[0] - rates[1])
        down = share * np.hypot(rates[0] - ends[0][0], ends[1][1] - rates[1])
        up = share * np.hypot(ends[0][1] - rates[0], rates[1] - ends[1][0])
        below, above = (np.hypot(below, one) for one in ((down, up) if sign > 0 else (up, down)))
    return float(value - below), float(value), float(value + above)


def disparity_tests(
    calls: Accusations, permutations: int, confidence: float, rng: np.random.Generator, subject: str = ""
) -> list[Measurement]:
    """disparity_p_value of each group, Holm-corrected: how often sampling noise alone sets V_g as far from V.

    Groups are shuffled among members and among holdout rows separately. That keeps the sizes of the groups and the
    leak, and breaks only the link between them. The interval is Clopper-Pearson's for the share over ALL shuffles, of
    which `permutations` are a sample; its ends are corrected in the same way as the estimate.
    """
    names, extreme = _extremes(calls, permutations, rng)
    ends = np.array([clopper_pearson(int(count), permutations, confidence) for count in extreme]).reshape(-1, 2)
    p, low, high = (holm(column) for column in ((extreme + 1) / (permutations + 1), ends[:, 0], ends[:, 1]))
    tested = {
        name: measured(
            DISPARITY_P_VALUE,
            p[at],
            (low[at], high[at]),
            confidence,
            "permutation test, Holm; interval of the shuffles drawn",
            f"{permutations:,} shuffles, {len(names):,} groups",
            subject=_label(subject, name),
        )
        for at, name in enumerate(names)
    }
    reason = "needs member and holdout rows of the group, and at least one other group"
    return [
        tested.get(name) or not_measured("disparity_p_value", reason, _label(subject, name))
        for name in np.unique(calls.group).tolist()
    ]


def disparity_p_values(calls: Accusations, permutations: int, rng: np.random.Generator) -> dict[str, float]:
    """Only the estimates of `disparity_tests`, by group; groups that cannot be tested are left out."""
    names, extreme = _extremes(calls, permutations, rng)
    return dict(zip(names, holm((extreme + 1) / (permutations + 1)).tolist(), strict=True))


def _extremes(calls: Accusations, permutations: int, rng: np.random.Generator) -> tuple[list[str], Floats]:
    """The groups that can be tested, and the number of shuffles that set each at least as far from V as observed.

    Only the number of accused rows in each group matters. Under a shuffle it is multivariate hypergeometric, so one
    draw replaces a permutation of the rows, whatever their number.
    """
    names, code = np.unique(calls.group, return_inverse=True)
    gap, shuffled = np.zeros(len(names)), np.zeros((permutations, len(names)))
    for sign, side in ((1, True), (-1, False)):
        code_here, accused = code[calls.member == side], calls.accused[calls.member == side]
        size = np.bincount(code_here, minlength=len(names))
        drawn = rng.multivariate_hypergeometric(size, int(accused.sum()), permutations, method="marginals")
        gap += sign * (np.bincount(code_here[accused], minlength=len(names)) / np.maximum(size, 1) - accused.mean())
        shuffled += sign * (drawn / np.maximum(size, 1) - accused.mean())
    tested = _with_both(calls) if len(names) > 1 else []
    at = np.searchsorted(names, tested)
    return tested, np.asarray((np.abs(shuffled) >= np.abs(gap) - 1e-12).sum(axis=0)[at].astype(float))


def _with_both(calls: Accusations) -> list[str]:
    """Groups that have both member and holdout rows, in order."""
    return [str(name) for name in np.intersect1d(calls.group[calls.member], calls.group[~calls.member])]


def _label(subject: str, name: str) -> str:
    return f"{subject}: {name}" if subject else name


def holm(p: Floats) -> Floats:
    """Holm's correction of p-values (G,): controls the probability of rejecting any true hypothesis.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    # Step-down: the smallest p-value is multiplied by G, the next by G - 1; a running maximum keeps them monotonic.
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected

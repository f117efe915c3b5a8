"""Whether some groups are more exposed than others, at one threshold for all: Kulynych et al. 2022 (arXiv 1906.00389).

A threshold for each group would measure how well each can be attacked by someone who knows it, and
overstates differences: the best of many thresholds is better by chance where rows are fewer.
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
    means="How much more often members of a group are accused than others of the same group.",
    remedy="Collect more examples of the most exposed group, or train with DP-SGD.",
    chance=0.0,
)
VULNERABILITY_GAP = Metric(
    "vulnerability_gap",
    title="how far the most exposed group exceeds everybody's vulnerability",
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
    title="p-value of a group's vulnerability against everybody's",
    unit="p-value",
    range=SHARE,
    worse="lower",
    resolves="Members and holdout examples of every class, group or client.",
    means="How often sampling noise alone sets a group this far apart; a small value means a real difference.",
    remedy="Look at the group with the smallest value, and treat it as vulnerability_gap says.",
)
METRICS = (
    VULNERABILITY,
    VULNERABILITY_GAP,
    DISPARITY_P_VALUE,
)


@dataclass(frozen=True)
class Accusations:
    """Who is above the one threshold; member rows first.

    accused, member, group (N,): above it, in the training set, and which group
    """

    accused: Bools
    member: Bools
    group: Names


def accusations(member: Floats, holdout: Floats, member_group: Names, holdout_group: Names, fpr: float) -> Accusations:
    """Rows above the lowest score that at most a share `fpr` of all holdout rows exceeds.

    member (m,) and holdout (n,) scores, larger accuse; their groups. Raises EvidenceError where
    scores and groups differ in number.
    """
    member, holdout = checked(member, holdout)
    for name, rows, groups in (("member", member, member_group), ("holdout", holdout, holdout_group)):
        if len(rows) != len(groups):
            raise EvidenceError(f"{name} has {len(rows)} scores and {len(groups)} groups, expected as many")
    threshold = np.sort(holdout)[::-1][int(fpr * len(holdout) + 1e-9)]
    scores = np.concatenate([member, holdout])
    return Accusations(scores > threshold, np.arange(len(scores)) < len(member), np.append(member_group, holdout_group))


def group_vulnerability(found: Accusations, confidence: float, subject: str = "") -> list[Measurement]:
    """V_g = P(accused | member of g) - P(accused | holdout of g) for each group, groups in order.

    The subject of each is "subject: group". Interval: of a difference of two proportions, squared
    distances to the Clopper-Pearson ends added (Newcombe 1998, method 10's principle), the threshold
    taken as given.
    """
    measurements = []
    for name in np.unique(found.group):
        label = _label(subject, str(name))
        sides = [found.accused[(found.group == name) & (found.member == side)] for side in (True, False)]
        if min(len(side) for side in sides) == 0:
            reason = f"needs member and holdout rows, found {len(sides[0])} and {len(sides[1])}"
            measurements.append(not_measured("vulnerability", reason, label))
            continue
        rates = [float(side.mean()) for side in sides]
        ends = [clopper_pearson(int(side.sum()), len(side), confidence) for side in sides]
        value = rates[0] - rates[1]
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


def vulnerability_gap(found: Accusations, confidence: float, subject: str = "") -> Measurement:
    """Largest V_g - V over the groups, V that of all rows together.

    The largest of many estimates is too large, so its interval is made from those of the groups (MOVER,
    Zou & Donner 2008, on Clopper-Pearson ends of the group and of the others): the true largest lies below
    the highest of their upper ends, each at the stated confidence, since its own group's does; and above
    the highest of their lower ends, which hold for all groups at once (Bonferroni). The threshold is
    taken as given.

    Not measured where a group has members and no holdout row: how exposed it is nobody knows, and it may be the most.
    A group without members has nobody to expose, and its holdout rows count as everyone's.
    """
    metric, names = "vulnerability_gap", _with_both(found)
    if len(unknown := np.setdiff1d(found.group[found.member], names)):
        told = f"{len(unknown):,} of {len(unknown) + len(names):,} have none, {str(unknown[0])!r} the first"
        return not_measured(metric, f"needs n >= 1 holdout rows of every group with members: {told}", subject)
    samples = f"{len(names):,} groups, {len(found.accused):,} rows"
    if len(np.unique(found.group)) < 2 or not names:
        return not_measured(metric, f"needs >= 2 groups, with members and holdout, found {len(names)}", subject)
    joint = 1 - (1 - confidence) / len(names)
    each = [(_distance(found, name, joint)[0], *_distance(found, name, confidence)[1:]) for name in names]
    low, value, high = (max(ends) for ends in zip(*each, strict=True))
    method = "simultaneous from below, the highest upper end above"
    return measured(VULNERABILITY_GAP, value, (low, high), confidence, method, samples, subject=subject)


def _distance(found: Accusations, name: str, confidence: float) -> tuple[float, float, float]:
    """V_g - V: low, value, high."""
    value = below = above = 0.0
    for sign, side in ((1, True), (-1, False)):
        mine, kind = found.group == name, found.member == side
        own, rest = found.accused[mine & kind], found.accused[~mine & kind]
        if not len(rest):
            continue
        # The rate of all is that of the group and of the rest, weighted: only the part that differs counts.
        part = len(rest) / (len(own) + len(rest))
        rates = (float(own.mean()), float(rest.mean()))
        ends = [clopper_pearson(int(rows.sum()), len(rows), confidence) for rows in (own, rest)]
        value += sign * part * (rates[0] - rates[1])
        down = part * np.hypot(rates[0] - ends[0][0], ends[1][1] - rates[1])
        up = part * np.hypot(ends[0][1] - rates[0], rates[1] - ends[1][0])
        below, above = (np.hypot(below, one) for one in ((down, up) if sign > 0 else (up, down)))
    return float(value - below), float(value), float(value + above)


def disparity_tests(
    found: Accusations, permutations: int, confidence: float, rng: np.random.Generator, subject: str = ""
) -> list[Measurement]:
    """disparity_p_value of each group, Holm-corrected over the groups: how often chance alone sets V_g so far from V.

    The interval is Clopper-Pearson's for the share of ALL shuffles of which `permutations` are a sample, its
    ends corrected like the estimate. Groups are shuffled among members and among holdout rows apart, which keeps
    each group's sizes and the leak, and breaks only its tie to the group.
    """
    names, extreme = _extremes(found, permutations, rng)
    ends = np.array([clopper_pearson(int(count), permutations, confidence) for count in extreme]).reshape(-1, 2)
    p, low, high = (holm(each) for each in ((extreme + 1) / (permutations + 1), ends[:, 0], ends[:, 1]))
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
    reason = "needs member and holdout rows of the group, and other groups"
    return [
        tested.get(name) or not_measured("disparity_p_value", reason, _label(subject, name))
        for name in np.unique(found.group).tolist()
    ]


def disparity_p_values(found: Accusations, permutations: int, rng: np.random.Generator) -> dict[str, float]:
    """The estimates of `disparity_tests` alone, by group; groups that cannot be tested are left out."""
    names, extreme = _extremes(found, permutations, rng)
    return dict(zip(names, holm((extreme + 1) / (permutations + 1)).tolist(), strict=True))


def _extremes(found: Accusations, permutations: int, rng: np.random.Generator) -> tuple[list[str], Floats]:
    """Groups that can be tested, and in how many of the shuffles each is at least as far from V as it is.

    A shuffle of the groups is told by how many of the accused each then has: a multivariate
    hypergeometric draw, whatever the number of rows.
    """
    names, code = np.unique(found.group, return_inverse=True)
    gap, shuffled = np.zeros(len(names)), np.zeros((permutations, len(names)))
    for sign, side in ((1, True), (-1, False)):
        mine, accused = code[found.member == side], found.accused[found.member == side]
        size = np.bincount(mine, minlength=len(names))
        drawn = rng.multivariate_hypergeometric(size, int(accused.sum()), permutations, method="marginals")
        gap += sign * (np.bincount(mine[accused], minlength=len(names)) / np.maximum(size, 1) - accused.mean())
        shuffled += sign * (drawn / np.maximum(size, 1) - accused.mean())
    tested = _with_both(found) if len(names) > 1 else []
    at = np.searchsorted(names, tested)
    return tested, np.asarray((np.abs(shuffled) >= np.abs(gap) - 1e-12).sum(axis=0)[at].astype(float))


def _with_both(found: Accusations) -> list[str]:
    """Groups with member and with holdout rows, in order."""
    return [str(name) for name in np.intersect1d(found.group[found.member], found.group[~found.member])]


def _label(subject: str, name: str) -> str:
    return f"{subject}: {name}" if subject else name


def holm(p: Floats) -> Floats:
    """p-values (G,) corrected so that none of G true hypotheses is rejected but with the stated probability.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected

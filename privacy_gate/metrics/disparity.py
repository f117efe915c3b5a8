"""Whether some groups are more exposed than others, at one threshold for all: Kulynych et al. 2022 (arXiv 1906.00389).

A threshold for each group would measure how well each can be attacked by someone who knows it, and
overstates differences: the best of many thresholds is better by chance where rows are fewer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy_gate.errors import EvidenceError
from privacy_gate.evidence import Bools, Floats
from privacy_gate.metrics.binomial import clopper_pearson
from privacy_gate.metrics.ranks import checked
from privacy_gate.verdict import Measurement, not_measured

Names = NDArray[np.str_]


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


def vulnerability(found: Accusations, confidence: float, subject: str = "") -> list[Measurement]:
    """V_g = P(accused | member of g) - P(accused | holdout of g) for each group, groups in order.

    The subject of each is "subject: group". Interval: of a difference of two proportions, squared
    distances to the Clopper-Pearson ends added (Newcombe 1998, method 10's principle), the threshold
    taken as given.
    """
    measurements = []
    for name in np.unique(found.group):
        label = f"{subject}: {name}" if subject else str(name)
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
            Measurement(
                metric="vulnerability",
                subject=label,
                value=value,
                low=float(max(-1.0, value - below)),
                high=float(min(1.0, value + above)),
                confidence=confidence,
                method="Clopper-Pearson ends, squared and added",
                samples=f"{len(sides[0]):,} members, {len(sides[1]):,} holdout",
            )
        )
    return measurements


def disparity_p_values(found: Accusations, permutations: int, rng: np.random.Generator) -> dict[str, float]:
    """For each group, how often chance alone sets its V_g as far from everyone's; Holm-corrected.

    Groups are shuffled among members and among holdout rows apart, which keeps each group's sizes and
    the leak, and breaks only its tie to the group. Groups without both kinds of rows are left out.
    """
    names, code = np.unique(found.group, return_inverse=True)
    sizes = [np.bincount(code[found.member == side], minlength=len(names)) for side in (True, False)]
    whole = [float(found.accused[found.member == side].mean()) for side in (True, False)]

    def distances(shuffle: bool) -> Floats:
        gap = np.full(len(names), whole[1] - whole[0])
        for sign, side, size in zip((1, -1), (True, False), sizes, strict=True):
            mine = code[found.member == side]
            order = rng.permutation(mine) if shuffle else mine
            caught = np.bincount(order[found.accused[found.member == side]], minlength=len(names))
            gap += sign * caught / np.maximum(size, 1)
        return np.asarray(np.abs(gap))

    observed, extreme = distances(shuffle=False), np.ones(len(names))
    for _ in range(permutations):
        extreme += distances(shuffle=True) >= observed - 1e-12
    whole_groups = np.flatnonzero(np.minimum(*sizes) > 0)
    return dict(
        zip(
            names[whole_groups].tolist(),
            holm(extreme[whole_groups] / (permutations + 1)).tolist(),
            strict=True,
        )
    )


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

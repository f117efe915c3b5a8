"""Does the candidate behave as a model of its recipe that was trained on its declared members?

Every figure is taken of each reference too, whose training set is known, against all other models, as
it is taken of the candidate. Were the dossier true, the candidate would be one of them: its figure
would lie among theirs, by Student's t. Rows of one model are dependent, models are not: what counts is the
number of references.

What cannot be seen: examples outside the table that the candidate was trained on besides its members, and
a wrong list of members where the recipe does not tell members from others at all. How much can be seen is
measured in every audit and said.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.metrics.controls.behaviour import MEMBERS, OTHERS, Behaviour, behaviour
from privacy_gate.metrics.controls.self_tests import LEVEL
from privacy_gate.verdict.judgement import Control

TESTS = 7
"""Level and spread on either side, doubt on either side and on both: each has its share of LEVEL."""

LEAST_REFERENCES = 8
"""Fewer say too little of how far models of one recipe differ."""

MOST_FREEDOM = 15
"""Degrees of freedom of t, at most, and half the references less 1 below: references come in groups that share
out the pool, and figures have longer tails than normal ones, whatever their number. By simulation."""

LEAST_USABLE = 10
"""Rows of each side on which every model must have others to compare with."""

SEEN, MARGIN = "9 times in 10", float(stats.norm.ppf(0.99))
"""How often what is said to be seen would be; deviations beyond the limit that this takes. The margin is for 99 %
of the references' own deviation; the rest is left to which rows happen to be wrong. By simulation."""


def plausibility(evidence: MembershipEvidence) -> list[Control]:
    """Level, spread and membership of the candidate against its references': three controls.

    Together they fail a true dossier at LEVEL. Empty where there are too few references, or rows are in
    too few of them for references to be held against each other.
    """
    pool, references = evidence.pool, len(evidence.reference)
    if references < LEAST_REFERENCES:
        return []
    phi = np.concatenate([evidence.target[None, pool], evidence.reference[:, pool]])
    included = np.concatenate([evidence.member[None, pool], evidence.included[:, pool]])
    found = behaviour(phi, included)
    if found.rows.min() < LEAST_USABLE:
        return []
    freedom = min(references / 2 - 1, MOST_FREEDOM)
    both_ways = float(stats.t.isf(LEVEL / TESTS / 2, freedom))
    upwards = float(stats.t.isf(LEVEL / TESTS, freedom))
    return [_level(found, both_ways), _spread(found, both_ways), _membership(found, upwards)]


def surprise(figure: Floats) -> float:
    """How far the candidate's figure lies from the references', in deviations of a new one: figure (M + 1,).

    Student's t with M - 1 degrees of freedom if the dossier is true and references are independent.
    """
    gap = float(figure[0] - figure[1:].mean())
    return gap / max(_deviation(figure), float(np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class Suspicion:
    """One way to look for wrong declarations: whose doubt, (M + 1,), and how it grows with their share.

    slope    what it would grow by if no member had been trained on; if all of the holdout had; if every
             member had been exchanged for a row of the holdout
    """

    figure: Floats
    slope: tuple[float, float, float]

    def seen_from(self, limit: float) -> tuple[float, float, float]:
        """Shares of each wrong that exceed `limit` about as often as SEEN; above 1: not even all of them."""
        need = (limit + MARGIN) * _deviation(self.figure)
        never, hidden, both = (need / slope if slope > 0 else np.inf for slope in self.slope)
        return never, hidden, both


def suspicions(found: Behaviour) -> list[Suspicion]:
    """Doubt about members, about the holdout, and about both.

    The references tell how it grows: their rows of one side, declared to be on the other, are in `exchanged`.
    """
    doubt, exchanged = found.doubt[:, 1:].mean(axis=1), found.exchanged[:, 1:].mean(axis=1)
    members, others = exchanged[OTHERS] - doubt[MEMBERS], exchanged[MEMBERS] - doubt[OTHERS]
    swapped = others * found.rows[MEMBERS, 0] / found.rows[OTHERS, 0]
    return [
        Suspicion(found.doubt[MEMBERS], (members, 0.0, members)),
        Suspicion(found.doubt[OTHERS], (0.0, others, swapped)),
        Suspicion(found.doubt.mean(axis=0), (members / 2, others / 2, (members + swapped) / 2)),
    ]


def _deviation(figure: Floats) -> float:
    """Of a new model's figure from the mean of the references': figure (M + 1,), the candidate first."""
    return float(figure[1:].std(ddof=1) * np.sqrt(1 + 1 / (len(figure) - 1)))


def _level(found: Behaviour, limit: float) -> Control:
    far = [surprise(figure) for figure in found.level]
    detail = f"confidence of members {far[0]:+.1f}, of holdout {far[1]:+.1f} {_UNIT} (limit {limit:.1f})"
    reach = (limit + MARGIN) * max(_deviation(figure) for figure in found.level)
    return _control("plausible level", far, limit, f"{detail}; {_OFTEN} a shift of {reach:.2g} of a row's deviation")


def _spread(found: Behaviour, limit: float) -> Control:
    far = [surprise(figure) for figure in found.spread]
    detail = f"differences from the references among members {far[0]:+.1f}, holdout {far[1]:+.1f} {_UNIT}"
    reach = np.expm1((limit + MARGIN) * max(_deviation(figure) for figure in found.spread))
    seen = f"{reach:.0%} larger ones" if reach < 10 else f"only ones {reach:.2g} times larger"
    return _control("plausible spread", far, limit, f"{detail} (limit {limit:.1f}); {_OFTEN} {seen}")


def _membership(found: Behaviour, limit: float) -> Control:
    """Where the references hardly tell members from others, doubt is noise, and is not judged."""
    name, able = "plausible membership", [way for way in suspicions(found) if min(way.seen_from(limit)) <= 1]
    if not able:
        return Control(name=name, held=True, detail=_BLIND)
    far = [surprise(way.figure) for way in able]
    shares = [min(each) for each in zip(*(way.seen_from(limit) for way in able), strict=True)]
    wrongs = ("of members never trained on", "of the holdout trained on", "of members exchanged for holdout")
    seen = ", ".join(f"{share:.0%} {wrong}" for share, wrong in zip(shares, wrongs, strict=True) if share <= 1)
    detail = (
        f"doubt about the declared members and holdout {max(far):+.1f} {_UNIT} (limit +{limit:.1f}); {_OFTEN} {seen}"
    )
    return _control(name, [max(value, 0.0) for value in far], limit, detail)


_BLIND = "no wrong list would be seen: the references do not tell members from others, whatever is declared"
_UNIT = "deviations from the references'"
_OFTEN = f"seen {SEEN}:"


def _control(name: str, far: list[float], limit: float, detail: str) -> Control:
    held = all(abs(value) <= limit for value in far)
    return Control(
        name=name, held=held, detail=detail if held else f"{detail}: the dossier does not describe this model"
    )

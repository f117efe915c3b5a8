"""Does the candidate behave like a model of its recipe that was trained on its declared members?

Every figure is computed for the candidate and for each reference, whose training set is known, each against all other
models. If the dossier is true, the candidate is one more such model, and its figure lies among theirs by Student's t.
Rows of one model are dependent, models are not, so the number of references determines the power.

Two things cannot be seen: training examples outside the table, and a wrong list of members if the recipe does not
separate members from others at all. Every audit measures how much it can see, and reports it.
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
"""Level and spread on each side, doubt on each side and on both: seven tests share LEVEL."""

LEAST_REFERENCES = 8
"""With fewer references, their own variation is too uncertain."""

MOST_FREEDOM = 15
"""Largest number of degrees of freedom of t; below it, half the references minus 1. References come in groups that
divide the pool, and figures have longer tails than normal ones, whatever the number of references. By simulation."""

LEAST_USABLE = 10
"""Rows of each side on which every model must have other models to be compared with."""

SEEN, MARGIN = "9 times in 10", float(stats.norm.ppf(0.99))
"""How often a fault that is reported as seen would be seen; standard deviations above the limit that this needs. The
margin is for 99 % of the references' own deviation; the rest depends on which rows are wrong. By simulation."""


def plausibility(evidence: MembershipEvidence) -> list[Control]:
    """Level, spread and membership of the candidate compared with its references: three controls.

    Together they fail a true dossier with probability LEVEL. Empty if there are too few references, or if rows are in
    too few of them for the references to be compared with each other.
    """
    pool, references = evidence.pool, len(evidence.reference)
    if references < LEAST_REFERENCES:
        return []
    phi = np.concatenate([evidence.target[None, pool], evidence.reference[:, pool]])
    included = np.concatenate([evidence.member[None, pool], evidence.included[:, pool]])
    measured = behaviour(phi, included)
    if measured.rows.min() < LEAST_USABLE:
        return []
    # See MOST_FREEDOM: references that divide the pool come in pairs, hence half of their number.
    freedom = min(references / 2 - 1, MOST_FREEDOM)
    both_ways = float(stats.t.isf(LEVEL / TESTS / 2, freedom))
    upwards = float(stats.t.isf(LEVEL / TESTS, freedom))
    return [_level(measured, both_ways), _spread(measured, both_ways), _membership(measured, upwards)]


def surprise(figure: Floats) -> float:
    """Distance of the candidate's figure from the references', in standard deviations of a new one: figure (M + 1,).

    Student's t with M - 1 degrees of freedom if the dossier is true and references are independent.
    """
    gap = float(figure[0] - figure[1:].mean())
    return gap / max(_deviation(figure), float(np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class Suspicion:
    """One test for wrong declarations: the doubt of each model, (M + 1,), and how it grows with the share of errors.

    slope    the growth of the doubt if no member had been trained on; if all holdout rows had been; if every
             member had been exchanged for a holdout row
    """

    figure: Floats
    slope: tuple[float, float, float]

    def seen_from(self, limit: float) -> tuple[float, float, float]:
        """The share of each kind of error that exceeds `limit` about as often as SEEN says; above 1: never seen."""
        # The doubt grows linearly with the share of errors: solve slope * share = need for the share.
        need = (limit + MARGIN) * _deviation(self.figure)
        never, hidden, both = (need / slope if slope > 0 else np.inf for slope in self.slope)
        return never, hidden, both


def suspicions(measured: Behaviour) -> list[Suspicion]:
    """Doubt about members, about the holdout, and about both.

    The slopes come from the references: their rows of one side, declared to be on the other, are in `exchanged`.
    """
    doubt, exchanged = measured.doubt[:, 1:].mean(axis=1), measured.exchanged[:, 1:].mean(axis=1)
    members, others = exchanged[OTHERS] - doubt[MEMBERS], exchanged[MEMBERS] - doubt[OTHERS]
    # As many holdout rows as members are exchanged, which is another share of the holdout.
    swapped = others * measured.rows[MEMBERS, 0] / measured.rows[OTHERS, 0]
    return [
        Suspicion(measured.doubt[MEMBERS], (members, 0.0, members)),
        Suspicion(measured.doubt[OTHERS], (0.0, others, swapped)),
        Suspicion(measured.doubt.mean(axis=0), (members / 2, others / 2, (members + swapped) / 2)),
    ]


def _deviation(figure: Floats) -> float:
    """Standard deviation of a new model's figure from the mean of the references': figure (M + 1,), candidate first."""
    return float(figure[1:].std(ddof=1) * np.sqrt(1 + 1 / (len(figure) - 1)))


def _level(measured: Behaviour, limit: float) -> Control:
    far = [surprise(figure) for figure in measured.level]
    detail = f"confidence of members {far[0]:+.1f}, of holdout {far[1]:+.1f} {_UNIT} (limit {limit:.1f})"
    reach = (limit + MARGIN) * max(_deviation(figure) for figure in measured.level)
    return _control("plausible level", far, limit, f"{detail}; {_OFTEN} a shift of {reach:.2g} of a row's deviation")


def _spread(measured: Behaviour, limit: float) -> Control:
    far = [surprise(figure) for figure in measured.spread]
    detail = f"differences from the references among members {far[0]:+.1f}, holdout {far[1]:+.1f} {_UNIT}"
    # The spread is a logarithm, so a shift of it is a factor: exp(shift) - 1 is the relative rise.
    reach = np.expm1((limit + MARGIN) * max(_deviation(figure) for figure in measured.spread))
    seen = f"{reach:.0%} larger ones" if reach < 10 else f"only ones {reach:.2g} times larger"
    return _control("plausible spread", far, limit, f"{detail} (limit {limit:.1f}); {_OFTEN} {seen}")


def _membership(measured: Behaviour, limit: float) -> Control:
    """If the references hardly separate members from others, doubt is noise and is not judged."""
    name, able = "plausible membership", [way for way in suspicions(measured) if min(way.seen_from(limit)) <= 1]
    if not able:
        return Control(name=name, held=True, detail=_BLIND)
    far = [surprise(way.figure) for way in able]
    shares = [min(column) for column in zip(*(way.seen_from(limit) for way in able), strict=True)]
    wrongs = ("of members never trained on", "of the holdout trained on", "of members exchanged for holdout")
    seen = ", ".join(f"{share:.0%} {wrong}" for share, wrong in zip(shares, wrongs, strict=True) if share <= 1)
    detail = (
        f"doubt about the declared members and holdout {max(far):+.1f} {_UNIT} (limit +{limit:.1f}); {_OFTEN} {seen}"
    )
    return _control(name, [max(value, 0.0) for value in far], limit, detail)


_BLIND = "no wrong list of members would be seen: the references do not separate members from others"
_UNIT = "deviations from the references'"
_OFTEN = f"seen {SEEN}:"


def _control(name: str, far: list[float], limit: float, detail: str) -> Control:
    held = all(abs(value) <= limit for value in far)
    return Control(
        name=name, held=held, detail=detail if held else f"{detail}: the dossier does not describe this model"
    )

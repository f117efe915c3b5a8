"""Does the candidate behave as a model of its recipe that was trained on its declared members?

Every figure is taken of each reference too, whose training set is known, against all other models, as
it is taken of the candidate. Were the dossier true, the candidate would be one of them: its figure
would lie among theirs, by Student's t. Rows of one model are dependent, models are not: what counts is the
number of references.

What cannot be seen: examples outside the table that the candidate was trained on besides its members, and
a wrong list of members where the recipe does not tell members from others at all. How much can be seen is
measured in every audit and said.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from privacy_gate.evidence import Bools, Floats, MembershipEvidence
from privacy_gate.metrics.controls import LEVEL
from privacy_gate.verdict import Control

TESTS = 7
"""Level and spread on either side, doubt on either side and on both: each has its share of LEVEL."""

LEAST_REFERENCES = 8
"""Fewer say too little of how far models of one recipe differ."""

MOST_FREEDOM = 15
"""Degrees of freedom of t, at most, and half the references less 1 below: references come in groups that share
out the pool, and figures have longer tails than normal ones, whatever their number. By simulation."""

LEAST_USABLE = 10
"""Rows of each side on which every model must have others to compare with."""

SUSPECTED = 0.02
"""Share of wrong declarations that doubt is made to find: weighs the few rows that can tell."""

RELATED = 4.0
"""Training sets whose correlation is beyond so many deviations of chance were drawn together."""

POWER = 0.9
"""How often what is said to be seen would be seen."""

LEAST_VARIANCE = 1e-12
"""Squared nats, for a row on which all models agree to the last digit."""

BLOCK_VALUES = 2**20
"""Values (models times rows) held in float64 at a time: 8 MiB for each temporary array."""

MEMBERS, OTHERS = 0, 1
"""Index of a side: rows that the model was trained on, by declaration, and the other audited rows."""


@dataclass(frozen=True)
class Behaviour:
    """How each model takes its two sides; arrays (2, M + 1): side, then model, the candidate first.

    level      mean of z, the row's phi in deviations from models on which the row has the same side
    spread     log of the mean of |z|
    doubt      mean evidence that a row is declared wrongly: the score of a mixture in which a share
               SUSPECTED of rows is on the other side
    exchanged  what doubt would be if every row were declared to be on the other side
    rows       that could be compared
    """

    level: Floats
    spread: Floats
    doubt: Floats
    exchanged: Floats
    rows: Floats


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


def behaviour(phi: Floats, included: Bools) -> Behaviour:
    """How every model behaves beside the others; phi (nats) and training sets (M + 1, N), candidate first."""
    others = unrelated(included).astype(np.float64)
    others[1:, 0] = 0.0  # the candidate has no say in what it is measured by
    total = np.zeros((5, 2, len(phi)))
    for rows in _blocks(*phi.shape):
        z, ratio, usable = compare(phi[:, rows].astype(np.float64), included[:, rows], others)
        for side, chosen in enumerate((included[:, rows] & usable, ~included[:, rows] & usable)):
            for place, values in enumerate((usable, z, np.abs(z), _doubt(ratio), _doubt(-ratio))):
                total[place, side] += np.where(chosen, values, 0.0).sum(axis=1)
    rows_used = total[0]
    level, magnitude, doubt, exchanged = total[1:] / np.maximum(rows_used, 1)
    return Behaviour(level, np.log(np.maximum(magnitude, LEAST_VARIANCE)), doubt, exchanged, rows_used)


def compare(phi: Floats, included: Bools, others: Floats) -> tuple[Floats, Floats, Bools]:
    """Each model's rows against the other models with the row on the same side and on the other.

    phi, included (M + 1, N); others (M + 1, M + 1), 1 where the column is held against the row. Returns,
    each (M + 1, N): z = (phi - mean) / deviation, by models of the same side; the log likelihood ratio
    of the other side over it, nats; where both are defined. Both sides share a row's variance, so
    that a row in few training sets has one too; the error of a mean of n models adds 1/n of it.
    """
    phi = phi - phi[1:].mean(axis=0)
    sides = []
    for chosen in (included.astype(np.float64), (~included).astype(np.float64)):
        count = others @ chosen
        mean = others @ (chosen * phi) / np.maximum(count, 1)
        sides.append((count, mean, others @ (chosen * phi**2) - count * mean**2))
    (count_in, mean_in, squares_in), (count_out, mean_out, squares_out) = sides
    freedom = np.maximum(count_in + count_out - 2, 1)
    variance = np.maximum((squares_in + squares_out) / freedom, LEAST_VARIANCE)
    scale_in, scale_out = (variance * (1 + 1 / np.maximum(count, 1)) for count in (count_in, count_out))
    z_in, z_out = (phi - mean_in) / np.sqrt(scale_in), (phi - mean_out) / np.sqrt(scale_out)
    out_over_in = (z_in**2 - z_out**2 + np.log(scale_in / scale_out)) / 2
    ratio = np.where(included, out_over_in, -out_over_in)
    return np.where(included, z_in, z_out), ratio, (count_in > 0) & (count_out > 0)


def unrelated(included: Bools) -> Bools:
    """Which models (columns) to hold against each model (rows): (M, M); not itself, nor those drawn with it.

    included (M, N). References that share out the pool deviate against each other row by row; the candidate
    has no such relative, so no reference may be judged by its own.
    """
    models, rows = included.shape
    overlap = np.zeros((models, models))
    for part in _blocks(models, rows):
        values = included[:, part].astype(np.float32)
        overlap += values @ values.T
    share = np.diag(overlap) / rows
    deviation = np.sqrt(np.outer(share * (1 - share), share * (1 - share)))
    alone = np.abs(overlap / rows - np.outer(share, share)) <= RELATED / np.sqrt(rows) * deviation
    return np.asarray(alone & ~np.eye(models, dtype=bool))


def surprise(figure: Floats) -> float:
    """How far the candidate's figure lies from the references', in deviations of a new one: figure (M + 1,).

    Student's t with M - 1 degrees of freedom if the dossier is true and references are independent.
    """
    gap = float(figure[0] - figure[1:].mean())
    return gap / max(_deviation(figure), float(np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class Suspicion:
    """One way to look for wrong declarations: whose doubt, (M + 1,), and how it grows with their share.

    slope    what all members never trained on, all the holdout trained on, and both would add; 0: nothing
    """

    figure: Floats
    slope: tuple[float, float, float]

    def seen_from(self, limit: float) -> tuple[float, float, float]:
        """Shares of each wrong that exceed `limit` with probability POWER; above 1: not even all of them."""
        need = (limit + float(stats.norm.ppf(POWER))) * _deviation(self.figure)
        never, hidden, both = (need / slope if slope > 0 else np.inf for slope in self.slope)
        return never, hidden, both


def suspicions(found: Behaviour) -> list[Suspicion]:
    """Doubt about members, about the holdout, and about both.

    The references tell how it grows: their rows of one side, declared to be on the other, are in `exchanged`.
    """
    doubt, exchanged = found.doubt[:, 1:].mean(axis=1), found.exchanged[:, 1:].mean(axis=1)
    members, others = exchanged[OTHERS] - doubt[MEMBERS], exchanged[MEMBERS] - doubt[OTHERS]
    return [
        Suspicion(found.doubt[MEMBERS], (members, 0.0, members)),
        Suspicion(found.doubt[OTHERS], (0.0, others, others)),
        Suspicion(found.doubt.mean(axis=0), (members / 2, others / 2, (members + others) / 2)),
    ]


def _doubt(ratio: Floats) -> Floats:
    """Score of the share of wrong declarations at SUSPECTED, from log likelihood ratios, nats.

    Derivative of log(1 - s + s L) over s; between -1 / (1 - s) and 1 / s.
    """
    odds = np.exp(np.clip(ratio, -50, 50))
    return np.asarray((odds - 1) / (1 - SUSPECTED + SUSPECTED * odds))


def _deviation(figure: Floats) -> float:
    """Of a new model's figure from the mean of the references': figure (M + 1,), the candidate first."""
    return float(figure[1:].std(ddof=1) * np.sqrt(1 + 1 / (len(figure) - 1)))


def _level(found: Behaviour, limit: float) -> Control:
    far = [surprise(figure) for figure in found.level]
    detail = f"confidence of members {far[0]:+.1f}, of holdout {far[1]:+.1f} {_UNIT} (limit {limit:.1f})"
    reach = (limit + float(stats.norm.ppf(POWER))) * max(_deviation(figure) for figure in found.level)
    return _control("plausible level", far, limit, f"{detail}; {_OFTEN} a shift of {reach:.2g} of a row's deviation")


def _spread(found: Behaviour, limit: float) -> Control:
    far = [surprise(figure) for figure in found.spread]
    detail = f"differences from the references among members {far[0]:+.1f}, holdout {far[1]:+.1f} {_UNIT}"
    reach = np.expm1((limit + float(stats.norm.ppf(POWER))) * max(_deviation(figure) for figure in found.spread))
    return _control("plausible spread", far, limit, f"{detail} (limit {limit:.1f}); {_OFTEN} {reach:.0%} larger ones")


def _membership(found: Behaviour, limit: float) -> Control:
    """Where the references hardly tell members from others, doubt is noise, and is not judged."""
    name, able = "plausible membership", [way for way in suspicions(found) if min(way.seen_from(limit)) <= 1]
    if not able:
        return Control(name=name, held=True, detail=f"not even a list that is all wrong would be seen{_BLIND}")
    far = [surprise(way.figure) for way in able]
    shares = [min(each) for each in zip(*(way.seen_from(limit) for way in able), strict=True)]
    wrongs = ("of members never trained on", "of the holdout trained on", "of both exchanged")
    seen = ", ".join(f"{share:.0%} {wrong}" for share, wrong in zip(shares, wrongs, strict=True) if share <= 1)
    detail = (
        f"doubt about the declared members and holdout {max(far):+.1f} {_UNIT} (limit +{limit:.1f}); {_OFTEN} {seen}"
    )
    return _control(name, [max(value, 0.0) for value in far], limit, detail)


_BLIND = ": the references hardly tell members from others, as they would not for a wrong list either"
_UNIT = "deviations from the references'"
_OFTEN = f"would be seen {POWER:.0%} of the time:"


def _control(name: str, far: list[float], limit: float, detail: str) -> Control:
    held = all(abs(value) <= limit for value in far)
    return Control(
        name=name, held=held, detail=detail if held else f"{detail}: the dossier does not describe this model"
    )


def _blocks(models: int, rows: int) -> Iterator[slice]:
    """Consecutive slices over `rows`, each of at most BLOCK_VALUES values or one row."""
    step = max(1, BLOCK_VALUES // max(models, 1))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))

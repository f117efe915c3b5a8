"""The likelihood-ratio attack (LiRA): is phi more typical of models trained on the row, or of models without it?

phi is the logit-scaled confidence, nearly Gaussian over retrained models. The way its variance is estimated determines
how many references are needed:

    per_example  each row's own variance, for each side: good from about 24 models on a side
    pooled       one variance for each side, from every audited row's deviations from its own mean: good with a handful
                 of models, but ignores that some rows vary more than others
    bavaria      each row's own variance shrunk towards the others by empirical Bayes; see bavaria.py
"""

from typing import Literal

import numpy as np

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.bavaria import log_predictive
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.moments import Moments, medians, moments
from privacy_gate.errors import EvidenceError

Centre = Literal["mean", "median"]
Variance = Literal["per_example", "pooled"]

ENOUGH = 24
"""Models on each side of every row from which `auto` uses a row's own variance. From about this number on it identifies
more members than the pooled one (tests/bench/power_law.py)."""

LEAST_VARIANCE = 1e-12
"""Squared nats: keeps scores finite if all models agree to the last digit."""


def lira_online(
    evidence: MembershipEvidence,
    *,
    variance: Variance | Literal["auto", "bavaria"] = "auto",
    centre: Centre = "mean",
) -> Floats:
    """log N(phi; in) - log N(phi; out), (N,) nats: Carlini et al. 2022 (arXiv 2112.03570), algorithm 1.

    NaN in population rows: no reference was trained on them. `auto` uses each row's own variance if every audited row
    has ENOUGH models on both sides, else the pooled one. The paper centres on the mean, its released code on the
    median.
    Raises EvidenceError if `pooled` or `bavaria` finds no row with two models on a side.
    """
    phi, pool = evidence.target.astype(np.float64), evidence.pool
    inside, outside = (moments(evidence.reference, side) for side in (evidence.included, ~evidence.included))
    if variance == "bavaria":
        # BaVarIA replaces the Gaussians by predictive densities; the ratio stays the same.
        return log_predictive(phi, inside, pool) - log_predictive(phi, outside, pool)
    chosen = enough(pool, inside, outside) if variance == "auto" else variance
    spread_in, spread_out = (variances(side, pool, chosen) for side in (inside, outside))
    if centre == "median":
        mean_in, mean_out = (medians(evidence.reference, side) for side in (evidence.included, ~evidence.included))
    else:
        mean_in, mean_out = inside.mean, outside.mean
    return log_ratio(phi, mean_in, spread_in, mean_out, spread_out)


def lira_offline(
    evidence: MembershipEvidence,
    *,
    variance: Variance | Literal["auto"] = "auto",
    centre: Centre = "mean",
) -> Floats:
    """(phi - mean_out) / deviation_out, (N,): Carlini et al. 2022, the offline attack.

    The paper's score is the Gaussian distribution function of this value. It is left out, since it keeps the order and
    rounds to 1 from 8.3 on. One-sided: a row that the candidate knows far less well than models trained without it is
    not a member. Scores population rows too.
    """
    outside = moments(evidence.reference, ~evidence.included)
    chosen = enough(evidence.pool, outside) if variance == "auto" else variance
    mean = medians(evidence.reference, ~evidence.included) if centre == "median" else outside.mean
    return np.asarray((evidence.target - mean) / np.sqrt(variances(outside, evidence.pool, chosen)))


def log_ratio(phi: Floats, mean_in: Floats, variance_in: Floats, mean_out: Floats, variance_out: Floats) -> Floats:
    """log N(phi; mean_in, variance_in) - log N(phi; mean_out, variance_out), nats; shapes broadcast."""
    with_it = (phi - mean_in) ** 2 / variance_in + np.log(variance_in)
    without_it = (phi - mean_out) ** 2 / variance_out + np.log(variance_out)
    return np.asarray((without_it - with_it) / 2)


def enough(pool: Bools, *sides: Moments) -> Variance:
    """The variance that `auto` uses: the row's own if every audited row has ENOUGH models on each side, else pooled."""
    return "per_example" if min(side.count[pool].min() for side in sides) >= ENOUGH else "pooled"


def variances(side: Moments, pool: Bools, kind: Variance) -> Floats:
    """Variance of phi over the models of one side, squared nats, (N,).

    per_example divides by the count, as the paper's code does. pooled sums over audited rows and divides by the degrees
    of freedom: a row with one model does not deviate from its mean and adds no information.
    """
    if kind == "per_example":
        # A row without models on this side has 0 / 0: NaN marks it as not scored.
        with np.errstate(invalid="ignore"):
            return np.maximum(side.squares / side.count, LEAST_VARIANCE)
    freedom = float(np.maximum(side.count[pool] - 1, 0.0).sum())
    if freedom == 0:
        raise EvidenceError("no audited row has two models on the same side: use more references")
    pooled = max(float(side.squares[pool].sum()) / freedom, LEAST_VARIANCE)
    return np.full(side.count.shape, pooled)

"""Lower bounds of epsilon from the scores of one candidate, and their comparison with a claimed epsilon.

Each is a confidence bound: it exceeds the true epsilon with a probability of at most `level`. Its threshold, or its
number of guesses, was fixed before the scores that it counts were seen. The best of many thresholds, which other
tools report, is above 0 in most audits of models that leak nothing.
"""

from collections.abc import Iterable

import numpy as np

from privacy_gate.arrays import Bools, Floats
from privacy_gate.metrics.epsilon import (
    epsilon_bound,
    gaussian_epsilon,
    gaussian_mu_bound,
    highest_rates,
    one_run_epsilon,
    one_run_gaussian_epsilon,
)
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import ANY, POSITIVE, Metric, measured

EPSILON_BOUND = Metric(
    "epsilon_bound",
    title="lower bound of epsilon that the attack proves",
    unit="epsilon",
    range=POSITIVE,
    worse="higher",
    resolves="At least 20 members and holdout examples in each half of the table, or 20 canaries.",
    means="The privacy loss that the attack has demonstrated; the true one may be larger.",
    remedy="Train with more noise or stronger clipping, and state the epsilon that the accountant gives.",
)
EPSILON_EXCESS = Metric(
    "epsilon_excess",
    title="demonstrated epsilon minus the claimed one",
    unit="epsilon",
    range=ANY,
    worse="higher",
    resolves="A claim in the dossier, and as many examples or canaries as epsilon_bound needs.",
    means="If it is above 0, the promise of differential privacy made to people is false.",
    remedy="Withdraw the claim, look for the error in the private training, and train again.",
)
METRICS = (
    EPSILON_BOUND,
    EPSILON_EXCESS,
)

FEWEST = 20
"""With fewer rows of each kind, or fewer canaries, no bound above 0 is possible."""

BY_RATES = ("Clopper-Pearson", "mu-GDP (model-based)")
BY_CANARIES = ("one run", "one run, f-DP (model-based)")


def bounds_by_rates(
    fixing: Floats, member: Floats, holdout: Floats, fpr: float, delta: float, level: float
) -> list[Measurement]:
    """Bounds from error rates at a threshold that separate holdout rows, `fixing`, put at `fpr`.

    Scores (n,) of three disjoint sets; larger = more likely a member. Rows are treated as independent trials. Rows of
    one training run are only nearly independent; canaries need no such assumption.
    """
    least = min(len(fixing), len(member), len(holdout))
    if least < FEWEST:
        reason = f"needs {FEWEST} members and holdout rows in each half of the table, found {least}"
        return [not_measured("epsilon_bound", reason, name) for name in BY_RATES]
    # Set on rows that are not counted below, so the rates hold as if the threshold were known beforehand.
    threshold = float(np.quantile(fixing, 1 - fpr))
    caught, accused = int((member > threshold).sum()), int((holdout > threshold).sum())
    rates = highest_rates(caught, len(member), accused, len(holdout), level)
    samples = f"{caught} of {len(member):,} members and {accused} of {len(holdout):,} holdout accused"
    values = (epsilon_bound(*rates, delta), gaussian_epsilon(gaussian_mu_bound(*rates), delta))
    return [_bound(value, delta, level, name, samples) for value, name in zip(values, BY_RATES, strict=True)]


def bounds_by_canaries(scores: Floats, member: Bools, guesses: float, delta: float, level: float) -> list[Measurement]:
    """Bounds from canaries (m,) that a fair coin included or not: Steinke et al. 2023; Mahloujifar et al. 2024.

    The attacker guesses on a share `guesses` of them: the highest scores as members, as many of the lowest as not.
    """
    half = round(len(scores) * guesses / 2)
    if len(scores) < FEWEST or not half:
        reason = f"needs >= {FEWEST} canaries, found {len(scores)}: set columns: {{canary: ...}} in the data manifest"
        return [not_measured("epsilon_bound", reason, name) for name in BY_CANARIES]
    # The number of guesses is fixed by `guesses`, not chosen from the scores: the bound needs that.
    order = np.argsort(scores, kind="stable")
    right = int(member[order[-half:]].sum() + (~member[order[:half]]).sum())
    run = (len(scores), 2 * half, right, delta, level)
    samples = f"{right} of {2 * half} guesses right, of {len(scores):,} canaries"
    values = (one_run_epsilon(*run), one_run_gaussian_epsilon(*run))
    return [_bound(value, delta, level, name, samples) for value, name in zip(values, BY_CANARIES, strict=True)]


def excess(bounds: Iterable[Measurement], claimed: float | None) -> Measurement:
    """The largest bound that assumes no model, minus the claimed epsilon; above 0, the claim is false."""
    if claimed is None:
        return not_measured("epsilon_excess", "the dossier claims no epsilon: attach claim.yaml")
    model_free = [one for one in bounds if one.subject in (BY_RATES[0], BY_CANARIES[0])]
    valid = [one for one in model_free if one.value is not None and one.confidence is not None]
    if not valid:
        return not_measured(
            "epsilon_excess", next((one.reason for one in model_free if one.reason), "no bound was measured")
        )
    value = max(one.value or 0.0 for one in valid) - claimed
    # The largest of several bounds fails if any of them does, so their errors add (Bonferroni).
    level = sum(1 - (one.confidence or 0.0) for one in valid)
    method = f"largest bound less the claimed {claimed:g}, Bonferroni"
    return _figure(EPSILON_EXCESS, value, level, "", method, f"{len(valid)} bounds")


def _bound(value: float, delta: float, level: float, subject: str, samples: str) -> Measurement:
    return _figure(EPSILON_BOUND, value, level, subject, f"lower confidence bound at delta {delta:g}", samples)


def _figure(metric: Metric, value: float, level: float, subject: str, method: str, samples: str) -> Measurement:
    """A measurement whose value is itself the end of a one-sided interval."""
    return measured(metric, value, (value, value), 1 - level, method, samples, subject=subject)

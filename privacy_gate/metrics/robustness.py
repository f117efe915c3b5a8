"""How much byzantine clients harm a federation, over seeds: the poisoning threats of arXiv 2402.01857 as figures."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from privacy_gate.arrays import Floats
from privacy_gate.metrics.intervals.fewest import fewest
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judged_status, not_measured
from privacy_gate.verdict.metric import DIFFERENCE, Metric, measured


def _loss_record(name: str, title: str, means: str, remedy: str) -> Metric:
    """The record of an `accuracy_loss`."""
    return Metric(
        name,
        title=title,
        unit="difference",
        range=DIFFERENCE,
        worse="higher",
        resolves="At least 3 seeds; with 5 seeds 130 holdout examples for a limit of 0.03.",
        means=means,
        remedy=remedy,
        chance=0.0,
    )


BREAKDOWN_POINT = Metric(
    "breakdown_point",
    title="smallest share of hostile clients that breaks the aggregation rule",
    unit="share",
    range=(0.0, 0.5),
    worse="lower",
    resolves="The same as byzantine_drop, for every number of hostile clients tried.",
    means="How many clients must turn hostile before the model gets much worse for everyone else.",
    remedy="Use a more robust aggregation rule with a higher `tolerates`, or vet who may join.",
)
FEDERATED_BACKDOOR = Metric(
    "federated_backdoor",
    title="rise of a class's rate under a trigger that hostile clients planted",
    unit="difference",
    range=(-2.0, 1.0),  # a difference of two differences, the second never below 0
    worse="higher",
    resolves="At least 3 seeds, and holdout images of classes other than the target.",
    means="How far hostile clients can plant a trigger that makes the model give the answer they chose.",
    remedy="Use a robust aggregation rule and clipped updates, or vet who may join.",
    chance=0.0,
)
BYZANTINE_DROP = _loss_record(
    "byzantine_drop",
    "accuracy lost to hostile clients",
    "How much worse the model gets for everyone if some clients send harmful updates.",
    "Use a robust aggregation rule, set `tolerates` to the number of hostile clients, or vet who may join.",
)
METRICS = (
    BYZANTINE_DROP,
    _loss_record(
        "robustness_tax",
        "accuracy that the robust rule costs",
        "How much accuracy everyone gives up for protection from hostile clients while there are none.",
        "Use a rule that costs less, or lower `tolerates`.",
    ),
    BREAKDOWN_POINT,
    FEDERATED_BACKDOOR,
    _loss_record(
        "heterogeneity_drop",
        "accuracy lost if clients hold very different data",
        "How much worse the model gets if clients' data differ strongly.",
        "Use fewer local steps, a smaller learning rate, or a server optimizer.",
    ),
    _loss_record(
        "gone_drop",
        "accuracy lost if some clients never take part",
        "How much worse the model gets if some clients are left out for good.",
        "Find out which clients drop out and why, or give the others more rounds.",
    ),
    _loss_record(
        "absent_drop",
        "accuracy lost if some clients do not answer",
        "How much worse the model gets if some clients miss each round.",
        "Use more rounds, or ask more clients in each.",
    ),
    _loss_record(
        "stale_drop",
        "accuracy lost if some updates arrive late",
        "How much worse the model gets if some updates arrive a round late.",
        "Wait longer for updates, discard late ones, or use a smaller learning rate.",
    ),
)

FEWEST_SEEDS = 3

FREEDOM = 4
"""Upper limit of a loss's degrees of freedom. If only a few rows differ, more would miss the truth twice too often."""


def byzantine_drop(
    clean: Floats, attacked: Mapping[str, Floats], confidence: float, *, blind: float = 0.0
) -> Measurement:
    """Accuracy of the plain mean without an attack, minus accuracy of the recipe's rule under the worst attack.

    clean (S, T) and each value of attacked (S, T): see `accuracy_loss`, also for blind. The subject names the attack
    with the largest mean drop. Interval: see `_worst`.
    """
    return _worst(
        accuracy_loss(BYZANTINE_DROP, clean, after, confidence, name, blind=blind) for name, after in attacked.items()
    )


class Called(NamedTuple):
    """How far heads of S seeds predict a backdoor's target for T holdout rows of other classes; (S, T) in 0 .. 1."""

    shown: Floats
    """With the trigger."""
    plain: Floats
    """Without."""


def called(features: Floats, head: Floats, target: int) -> Floats:
    """How far a head (C, D + 1), bias last, predicts the target for each of T rows (T, D): (T,). Ties are shared."""
    logits = features @ head[:, :-1].T + head[:, -1]
    best = logits == logits.max(axis=1, keepdims=True)
    return np.asarray(best[:, target] / best.sum(axis=1), dtype=np.float64)


def federated_backdoor(planted: Mapping[str, Called], unattacked: Called, confidence: float) -> Measurement:
    """How much more often the federation's head predicts the backdoor's target for rows with its trigger, beyond the
    trigger's effect on the head of the same federation without an attack.

    A frozen backbone may be fragile to the trigger before any client is hostile. Hostile clients do not cause that, and
    no aggregation rule can repair it, so it is subtracted. If the trigger makes the unattacked head predict the target
    less often, nothing is added.

    planted  by adversary, for the same seeds and rows as `unattacked`; the worst adversary counts. Interval: see
             `_worst`
    """
    fragile = unattacked.shown - unattacked.plain
    # A negative effect on the unattacked head must not be credited to, or charged to, the attackers.
    if fragile.mean() <= 0:
        fragile = np.zeros_like(fragile)
    return _worst(
        accuracy_loss(FEDERATED_BACKDOOR, shown - plain, fragile, confidence, name)
        for name, (shown, plain) in planted.items()
    )


def _worst(losses: Iterable[Measurement]) -> Measurement:
    """The largest loss over several attacks, or the first that could not be measured.

    Interval: the largest low end and the largest high end of the attacks' own intervals, see `accuracy_loss`. So trying
    one more attack never makes the recipe look better: an attack with a smaller mean drop may vary more over seeds. The
    high end keeps its confidence, since it is never below that of the truly worst attack. The low end, the largest of
    several, lies above the truth slightly more often than stated.
    """
    measurements = list(losses)
    for loss in measurements:
        if not loss.measured:
            return loss
    worst = max(measurements, key=lambda loss: -math.inf if loss.value is None else loss.value)
    low = max(loss.low for loss in measurements if loss.low is not None)
    high = max(loss.high for loss in measurements if loss.high is not None)
    count = len(measurements)
    method = f"{worst.method}; the largest ends of {count} attacks" if count > 1 else worst.method
    return worst.model_copy(update={"low": low, "high": high, "method": method})


def accuracy_loss(
    metric: Metric,
    before: Floats,
    after: Floats,
    confidence: float,
    subject: str = "",
    *,
    blind: float = 0.0,
    same: bool = False,
) -> Measurement:
    """Mean of before - after: how far the models of S seeds are right on each of T rows, (S, T) each and paired.

    blind: the accuracy of always naming one class. If `before` is not significantly above it on this number of rows,
    there is nothing to lose, and nothing is measured.
    same: before and after are the identical federations, not merely equally accurate ones: 0 by definition.

    Interval: seeds and rows are both samples, so their variances add: the variance of the seeds' means over S, and that
    of the rows' means over T. Each is scaled by its own quantile of Student's t, with min(S - 1, FREEDOM) and with
    FREEDOM degrees of freedom; squares of both reaches add (Zou & Donner 2008, Statistics in Medicine 27). The noise
    of a single seed on a single row is in both terms, which makes the interval conservative. Rows on which both models
    are equally right add nothing. Two rows are added, one lost and one won, so that a few identical rows prove little.
    """
    before, after = (np.asarray(hits, dtype=np.float64) for hits in (before, after))
    seeds, rows = before.shape
    if seeds < FEWEST_SEEDS:
        return not_measured(metric.name, f"needs >= {FEWEST_SEEDS} seeds, found {seeds}", subject)
    # One-sided normal test: is the accuracy before significantly above that of naming one class?
    if blind and float(before.mean()) <= blind + float(ndtri(confidence)) * math.sqrt(blind * (1 - blind) / rows):
        reason = (
            f"the federation learns nothing that it could lose: accuracy {before.mean():.3f} before, {blind:.3f} by "
            "always naming one class; train longer"
        )
        return not_measured(metric.name, reason, subject)
    if same:
        samples = f"{seeds} seeds, {rows:,} rows"
        loss = measured(metric, 0.0, (0.0, 0.0), confidence, "the same federations: 0 by definition", samples)
    else:
        lost = before - after
        # The same losses averaged both ways. (1, -1) are the two added rows, one lost and one won.
        of_seeds, of_rows = lost.mean(axis=1), np.append(lost.mean(axis=0), (1.0, -1.0))
        variances = float(of_seeds.var(ddof=1)) / seeds, float(of_rows.var(ddof=1)) / len(of_rows)
        loss = _loss(metric, float(lost.mean()), variances, (seeds, rows), confidence)
    return loss.model_copy(update={"subject": subject})


def _loss(
    metric: Metric, value: float, variances: tuple[float, float], shape: tuple[int, int], confidence: float
) -> Measurement:
    """The mean loss over seeds and rows as a measurement; variances: the parts of its variance from seeds and rows."""
    (seeds, rows), (of_seeds, of_rows) = shape, variances
    by_seeds, by_rows = (float(stdtrit(n, (1 + confidence) / 2)) for n in (min(seeds - 1, FREEDOM), FREEDOM))
    # Each part has its own quantile, so the reaches are added in squares, not the variances (MOVER).
    reach = math.sqrt(by_seeds**2 * of_seeds + by_rows**2 * of_rows)
    ends, method = (value - reach, value + reach), "t over seeds, rows paired and a sample"
    return measured(metric, value, ends, confidence, method, f"{seeds} seeds, {rows:,} rows")


def needed_holdout(limits: Mapping[str, Limit], seeds: int, confidence: float) -> dict[str, int | None]:
    """Rows below which a loss misses its limit even if every seed is right on the same rows before and after.

    By metric, for limits on an `accuracy_loss` with a `max` above 0. Models that differ on some rows need more.

    >>> needed_holdout({"robustness_tax": Limit(max=0.03)}, 5, 0.95)
    {'robustness_tax': 130}
    """

    def least(limit: Limit) -> int | None:
        def meets(rows: int) -> bool:
            # Only the two added rows, one lost and one won, vary among so many identical rows.
            least = 2 / ((rows + 1) * (rows + 2))
            return (
                judged_status(_loss(BYZANTINE_DROP, 0.0, (0.0, least), (seeds, rows), confidence), limit) is Status.MET
            )

        return fewest(meets)

    bounded = {metric: limit for metric, limit in limits.items() if limit.max is not None and limit.max > 0}
    return {metric: least(limit) for metric, limit in bounded.items()}


def breakdown_point(drops: Mapping[int, Measurement], clients: int, limit: float, confidence: float) -> Measurement:
    """Smallest share of byzantine clients whose drop exceeds `limit`; .5 if none does.

    drops: `byzantine_drop` by number of byzantine clients. low and high: the shares at which the drop's upper and lower
    ends exceed the limit. It cannot be above .5: with a hostile majority no rule can tell who is honest.
    """
    if any(not drop.measured for drop in drops.values()):
        reason = next(drop.reason for drop in drops.values() if not drop.measured)
        return not_measured("breakdown_point", reason or "")
    tried = f"f = {min(drops)} to {max(drops)} of {clients} clients, drop above {limit:g}"

    def first(end: str) -> float:
        over = [f for f, drop in sorted(drops.items()) if getattr(drop, end) > limit]
        return over[0] / clients if over else 0.5

    # A high drop breaks down early: the upper ends of the drops give the lower end of the share.
    ends, method = (first("high"), first("low")), "ends of the drops' intervals"
    return measured(BREAKDOWN_POINT, first("value"), ends, confidence, method, tried)

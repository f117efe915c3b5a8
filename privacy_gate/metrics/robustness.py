"""What byzantine clients cost a federation, over seeds: arXiv 2402.01857's poisoning threats as figures."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from scipy.special import ndtri, stdtrit

from privacy_gate.evidence import Floats
from privacy_gate.metrics.bootstrap import measured
from privacy_gate.metrics.fewest import fewest
from privacy_gate.verdict import Limit, Measurement, Status, judged_status, not_measured

FEWEST_SEEDS = 3


def byzantine_drop(
    clean: Floats, attacked: Mapping[str, Floats], rows: int, confidence: float, *, blind: float = 0.0
) -> Measurement:
    """Accuracy of the plain mean without an attack, minus that of the recipe's rule under the worst attack.

    clean (S,) and each of attacked (S,): accuracies by seed, on so many holdout rows. The subject names the attack with
    the largest mean drop. blind: see `accuracy_loss`; interval: see `_worst`.
    """
    return _worst(
        accuracy_loss("byzantine_drop", clean, left, rows, confidence, name, blind=blind)
        for name, left in attacked.items()
    )


def federated_backdoor(planted: Mapping[str, tuple[Floats, Floats]], rows: int, confidence: float) -> Measurement:
    """How much more often the federation's head calls rows the backdoor's target once they show its trigger.

    planted  by adversary: shares (S,) by seed of so many holdout `rows` of other classes that are called the target,
             with the trigger and without; the worst adversary counts. Interval: see `_worst`
    """
    return _worst(
        accuracy_loss("federated_backdoor", *shares, rows, confidence, name) for name, shares in planted.items()
    )


def _worst(losses: Iterable[Measurement]) -> Measurement:
    """The largest loss of some attacks, or the first that could not be measured.

    Interval: the largest of the low and of the high ends of each attack's own, see `accuracy_loss`. So no attack tried
    beside others ever makes the recipe look better: the drop under one of a smaller mean may scatter more over seeds.
    The upper end keeps its confidence, since it is never below that of the attack which is truly worst; the lower end,
    the largest of several, lies above the truth a little oftener.
    """
    found = list(losses)
    for loss in found:
        if not loss.measured:
            return loss
    worst = max(found, key=lambda loss: -math.inf if loss.value is None else loss.value)
    low = max(loss.low for loss in found if loss.low is not None)
    high = max(loss.high for loss in found if loss.high is not None)
    method = f"{worst.method}; the largest ends of {len(found)} attacks" if len(found) > 1 else worst.method
    return worst.model_copy(update={"low": low, "high": high, "method": method})


def accuracy_loss(
    metric: str,
    before: Floats,
    after: Floats,
    rows: int,
    confidence: float,
    subject: str = "",
    *,
    blind: float = 0.0,
    same: bool = False,
) -> Measurement:
    """Mean over seeds of before - after, (S,) each and paired: share of rows.

    blind: the share that a model has right which always names the same class. Where `before` is not beyond what so many
    rows make of it by chance, there is nothing to lose, and nothing is measured.
    same: before and after are of the very same federations, not only of as accurate ones: 0 by definition, on any rows.

    Interval: Student's t with S - 1 degrees of freedom over the seeds, and the holdout as a sample: the variance of a
    difference of two proportions on `rows` rows is added, as if the models' errors were independent (they agree, so
    this is on the safe side). It counts a row more of each kind, so that few rows all alike prove little.
    """
    seeds = len(before)
    if seeds < FEWEST_SEEDS:
        return not_measured(metric, f"needs >= {FEWEST_SEEDS} seeds, found {seeds}", subject)
    if blind and float(before.mean()) <= blind + float(ndtri(confidence)) * math.sqrt(blind * (1 - blind) / rows):
        reason = (
            f"the federation learns nothing that could be lost: {before.mean():.3f} right before, and {blind:.3f} by "
            "naming one class; train longer"
        )
        return not_measured(metric, reason, subject)
    samples = f"{seeds} seeds, {rows:,} rows"
    if same:
        found = measured(metric, 0.0, (0.0, 0.0), confidence, "the same federations: 0 by definition", samples)
        return found.model_copy(update={"subject": subject})
    gap = before - after
    value = float(gap.mean())
    shares = [(float(rate.mean()) * rows + 1) / (rows + 2) for rate in (before, after)]
    sampling = sum(share * (1 - share) for share in shares) / rows
    error = math.sqrt(float(gap.var(ddof=1)) / seeds + sampling)
    reach = float(stdtrit(seeds - 1, (1 + confidence) / 2)) * error
    ends = (max(-1.0, value - reach), min(1.0, value + reach))
    found = measured(metric, value, ends, confidence, "t over seeds, holdout as a sample", samples)
    return found.model_copy(update={"subject": subject})


def needed_holdout(limits: Mapping[str, Limit], seeds: int, confidence: float) -> dict[str, int | None]:
    """Rows below which a loss does not meet its limit even where every row is right, before and after, in every seed.

    By metric of those limits on an `accuracy_loss` that is not to be above some share; models that are wrong on some
    rows need more.

    >>> needed_holdout({"robustness_tax": Limit(max=0.03)}, 5, 0.95)
    {'robustness_tax': 130}
    """
    right = np.ones(seeds)

    def least(metric: str, limit: Limit) -> int | None:
        def meets(rows: int) -> bool:
            return judged_status(accuracy_loss(metric, right, right, rows, confidence), limit) is Status.MET

        return fewest(meets)

    bounded = {metric: limit for metric, limit in limits.items() if limit.max is not None and limit.max > 0}
    return {metric: least(metric, limit) for metric, limit in bounded.items()}


def breakdown_point(drops: Mapping[int, Measurement], clients: int, limit: float, confidence: float) -> Measurement:
    """Smallest share of byzantine clients whose drop exceeds `limit`; .5 where none tried does.

    drops: `byzantine_drop` by number of byzantine clients. low and high: where the drop's own upper and lower ends
    exceed it. It cannot be larger than .5: beyond, no rule knows who is honest.
    """
    if any(not drop.measured for drop in drops.values()):
        reason = next(drop.reason for drop in drops.values() if not drop.measured)
        return not_measured("breakdown_point", reason or "")
    tried = f"f = {min(drops)} to {max(drops)} of {clients} clients, drop above {limit:g}"

    def first(end: str) -> float:
        over = [f for f, drop in sorted(drops.items()) if getattr(drop, end) > limit]
        return over[0] / clients if over else 0.5

    ends = (first("high"), first("low"))
    return measured("breakdown_point", first("value"), ends, confidence, "ends of the drops' intervals", tried)

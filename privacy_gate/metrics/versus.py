"""How far the candidate lies above or below the champion, with both evaluated on the same rows."""

from collections.abc import Mapping

import numpy as np
from scipy.special import ndtri

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.catalogue import METRICS
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.intervals.bootstrap import DRAWS, percentile
from privacy_gate.metrics.intervals.fewest import MOST, fewest
from privacy_gate.metrics.intervals.paired import paired_interval
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judged_status, not_measured
from privacy_gate.verdict.metric import SUFFIX, Metric, measured, versus_champion

Answers = tuple[Bools, Mapping[str, Bools]]
"""Whether a model is right on each of R rows, without corruption (R,) and under each corruption by name (R,)."""


def versus(metric: str) -> str:
    """The name of the difference in a metric, candidate minus champion.

    >>> versus("robust_accuracy")
    'robust_accuracy_vs_champion'
    """
    return metric + SUFFIX


def not_compared(metric: str, reason: str) -> Measurement:
    """A difference that is not measured, for a reason that lies with the champion."""
    return not_measured(versus(metric), f"of the champion: {reason}")


def unlearnt(right: Bools, label: Ints, confidence: float) -> str | None:
    """Why a champion that is right on these rows (R,) of labels (R,) cannot serve for comparison; None if it can.

    A champion that is not significantly better than always naming the largest class was probably trained for other
    images, other classes, or another order of the classes. Any candidate would pass a comparison with it.
    """
    rows = len(right)
    if rows == 0:
        return "there are no rows to compare on"
    largest = int(np.bincount(label).max())
    if _surely_learnt(int(right.sum()), largest, rows, confidence):
        return None
    return (
        f"it is right on {right.mean():.0%} of the rows, not significantly above {largest / rows:.0%} from naming the "
        "largest class: check that it belongs to this table and has its classes in this order"
    )


def _surely_learnt(right: int, largest: int, rows: int, confidence: float) -> bool:
    """Whether a model right on so many rows is significantly better than always naming the largest class."""
    return clopper_pearson(right, rows, confidence)[0] > largest / rows


def share_versus(figures: tuple[Measurement, Measurement], rows: tuple[Bools, Bools], confidence: float) -> Measurement:
    """Difference of two shares of the same rows (R,), candidate minus champion; figures: each share on its own.

    Interval: Tango's, paired, so rows on which both agree do not widen it. Not measured if one of the two shares isn't.
    """
    (own, champion), (candidate_right, champion_right) = figures, rows
    name = versus(own.metric)
    if not (own.measured and champion.measured):
        return _absent(own, champion)
    if candidate_right.shape != champion_right.shape:
        raise EvidenceError(
            f"{name}: the candidate has rows {candidate_right.shape}, the champion {champion_right.shape}"
        )
    won, lost = int((candidate_right & ~champion_right).sum()), int((champion_right & ~candidate_right).sum())
    return _difference(METRICS[own.metric], won, lost, len(candidate_right), confidence, champion.value)


def _difference(
    own: Metric, won: int, lost: int, rows: int, confidence: float, champion: float | None = None
) -> Measurement:
    """The difference of shares `own`, on `rows` rows; `won` count only for the candidate, `lost` for the champion."""
    low, high = paired_interval(np.array([won]), np.array([lost]), np.array([rows]), confidence)
    return measured(
        versus_champion(own),
        (won - lost) / rows,
        (float(low[0]), float(high[0])),
        confidence,
        "Tango's interval of paired shares",
        f"{rows:,} rows, of which {won:,} are the candidate's alone and {lost:,} the champion's alone",
        champion=champion,
    )


def rows_to_agree(limit: Limit, confidence: float, most: int = MOST) -> int | None:
    """Rows from which on a candidate that agrees with the champion on every row meets a limit on the difference of
    their shares; None if even `most` rows are too few.

    For a champion that is always right, and a table in which no two rows have the same class. A weaker champion may
    need a few more rows to be usable at all, see `unlearnt`.

    >>> rows_to_agree(Limit(min=-0.05), 0.95), rows_to_agree(Limit(max=0.0), 0.95)
    (73, None)
    """

    def meets(rows: int) -> bool:
        agreed = _difference(METRICS["holdout_accuracy"], 0, 0, rows, confidence)
        return _surely_learnt(rows, 1, rows, confidence) and judged_status(agreed, limit) is Status.MET

    return fewest(meets, most)


def rows_to_keep_ratio(limit: Limit, confidence: float, most: int) -> int | None:
    """The same as `rows_to_agree`, for a limit on the difference of ratios of models that are always right. Models
    with errors need more rows."""

    def meets(rows: int) -> bool:
        # Two models that are always right: the narrowest interval that this number of rows can give.
        right = np.ones(rows, dtype=bool)
        one = measured(METRICS["corruption_ratio"], 1.0, (1.0, 1.0), confidence, "", "")
        agreed = ratio_versus((one, one), ((right, {"any": right}),) * 2, confidence, np.random.default_rng(0))
        return _surely_learnt(rows, 1, rows, confidence) and judged_status(agreed, limit) is Status.MET

    return fewest(meets, most)


def ratio_versus(
    figures: tuple[Measurement, Measurement],
    answers: tuple[Answers, Answers],
    confidence: float,
    rng: np.random.Generator,
) -> Measurement:
    """Difference of two ratios of accuracies on the same rows (R,), candidate minus champion; see `corruption_ratio`.
    figures: each ratio on its own.

    Interval: percentile bootstrap over rows, with both models' answers to a row kept together. If no row distinguishes
    the models, resampling shows no variation at all; so the interval is never narrower than that of shares. Not
    measured if one of the two ratios is not.
    """
    own, champion = figures
    name = versus(own.metric)
    if own.value is None or champion.value is None:
        return _absent(own, champion)
    rows, other = (len(right) for right, _ in answers)
    if rows != other:
        raise EvidenceError(f"{name}: the candidate has {rows} rows, the champion {other}")
    # The same resampled rows for both models, so that what they share cancels.
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS)
    drawn = _ratios(answers[0], weights) - _ratios(answers[1], weights)
    value = own.value - champion.value
    # The reach of Wilson's interval at an observed difference of 0, on the scale of the ratio.
    reach = float(ndtri((1 + confidence) / 2)) ** 2
    least = reach / (rows + reach) / min(float(right.mean()) for right, _ in answers)
    low, high = percentile(drawn[np.isfinite(drawn)], confidence)
    return measured(
        versus_champion(METRICS[own.metric]),
        value,
        (min(low, value - least), max(high, value + least)),
        confidence,
        "percentile bootstrap over rows, both models together",
        own.samples,
        champion=champion.value,
    )


def _ratios(answers: Answers, weights: Ints) -> Floats:
    """The ratio on each of the resampled tables (DRAWS, R); not finite if none of its rows is right."""
    right, spoiled = answers
    corrupted = np.mean([hits.astype(np.float64) for hits in spoiled.values()], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ corrupted) / (weights @ right))


def _absent(own: Measurement, champion: Measurement) -> Measurement:
    """A difference that is not measured, since one of the two figures is missing."""
    if not own.measured:
        return not_measured(versus(own.metric), str(own.reason))
    return not_compared(own.metric, str(champion.reason))

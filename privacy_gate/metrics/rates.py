"""Metrics at a false positive rate: the list of rates, the form of the names, and the records filled in for a rate."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace

from privacy_gate.verdict.metric import Metric

FPRS = (0.1, 0.01, 0.001)
"""The false positive rates at which rates are measured."""

BEST = (0.01, 0.1)
"""The rates that `best_fpr` chooses from, the preferred one first."""

ROUNDING = 1e-9
"""Tolerance in counts: 0.001 * 3000 must count as 3 despite rounding."""

# For example tpr_at_0.01_fpr or slope_at_1e-05_fpr, the forms that `%g` gives.
_NAME = re.compile(r"(.+)_at_(0\.\d+|\d+e-\d+)_fpr\Z")


def at(kind: str, fpr: float) -> str:
    """The name of a metric at a false positive rate.

    >>> at("tpr", 0.01)
    'tpr_at_0.01_fpr'
    """
    return f"{kind}_at_{fpr:g}_fpr"


def kind_and_fpr(name: str) -> tuple[str, float] | None:
    """The parts that `at` joined; None if the name has another form.

    >>> kind_and_fpr("recipe_tpr_at_0.01_fpr"), kind_and_fpr("auc")
    (('recipe_tpr', 0.01), None)
    """
    match = _NAME.match(name)
    return (match[1], float(match[2])) if match else None


def needed_holdout(fpr: float) -> int:
    """Holdout rows below which a false positive rate is not resolved: ten rows must be expected above the threshold.

    >>> needed_holdout(0.001)
    10000
    """
    return math.ceil(10 / fpr - ROUNDING)


def best_fpr(holdout: int) -> float:
    """The first rate of BEST that so many holdout rows resolve; the last one if they resolve none.

    >>> best_fpr(1000), best_fpr(999), best_fpr(10)
    (0.01, 0.1, 0.1)
    """
    return next((fpr for fpr in BEST if needed_holdout(fpr) <= holdout), BEST[-1])


def at_fpr(family: Metric, fpr: float) -> Metric:
    """A family's metric at one false positive rate; {fpr} and {rows} in its sentences are filled in.

    Guessing reaches a share equal to the false positive rate; slopes have no such level.
    """
    filled = _filled(family, f"{round(100 * fpr, 10):.10g} %", f"{needed_holdout(fpr):,}")
    return replace(filled, name=at(family.name, fpr), chance=fpr if family.unit == "share" else None)


def at_any_fpr(family: Metric) -> Metric:
    """A family's metric with X in place of the false positive rate, for glossaries."""
    return replace(_filled(family, "X", "10 / X"), name=f"{family.name}_at_X_fpr")


def _filled(family: Metric, fpr: str, rows: str) -> Metric:
    texts = ("title", "resolves", "means", "remedy")
    return replace(family, **{text: getattr(family, text).format(fpr=fpr, rows=rows) for text in texts})


def at_each_fpr(families: Iterable[Metric]) -> tuple[Metric, ...]:
    """Every family at every rate of FPRS."""
    return tuple(at_fpr(family, fpr) for family in families for fpr in FPRS)

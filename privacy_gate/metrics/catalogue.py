"""Every metric by its name: the records next to the measuring functions, joined into one mapping."""

from itertools import chain

from privacy_gate.metrics import (
    accuracy,
    backdoor,
    claims,
    corruption,
    evasion,
    inversion,
    membership,
    power_law,
    rank_correlation,
    recipe,
    robustness,
    trajectory,
    triggers,
    vulnerability,
)
from privacy_gate.metrics.intervals import clustered
from privacy_gate.metrics.parties import benefit, disparity, fairness, groups
from privacy_gate.metrics.rates import at_each_fpr, at_fpr, kind_and_fpr
from privacy_gate.verdict.metric import SUFFIX, Metric, versus_champion

FAMILIES: dict[str, Metric] = {
    family.name: family
    for family in (*membership.FAMILIES, *recipe.FAMILIES, *power_law.FAMILIES, *vulnerability.FAMILIES)
}
"""Metrics that exist at every false positive rate, by the part of the name before `_at_`."""

_RECORDS = chain(
    at_each_fpr(FAMILIES.values()),
    membership.METRICS,
    vulnerability.METRICS,
    rank_correlation.METRICS,
    disparity.METRICS,
    claims.METRICS,
    triggers.METRICS,
    backdoor.METRICS,
    evasion.METRICS,
    corruption.METRICS,
    robustness.METRICS,
    inversion.METRICS,
    trajectory.METRICS,
    fairness.METRICS,
    groups.METRICS,
    benefit.METRICS,
    accuracy.METRICS,
    clustered.METRICS,
)

METRICS: dict[str, Metric] = {record.name: record for record in _RECORDS}

REPORT_ONLY = frozenset(
    {
        "contribution_match",
        "group_gap_part",
        "jain",
        "gini",
        "entropy",
        "inherited_client_std",
        "inherited_worst_decile_gap",
        "inherited_group_gap",
        "inherited_equalized_odds",
        "left_out_accuracy",
        "left_out_accuracy_gain",
    }
)
"""Metrics that appear in reports and that no policy can limit."""


def find(name: str) -> Metric | None:
    """The record of a metric, also at any false positive rate and as a difference from the champion; None if unknown.

    >>> find("tpr_at_0.05_fpr").title, find("tpr_at_noon_fpr")
    ('members identified at a false positive rate of 5 %', None)
    """
    if name in METRICS:
        return METRICS[name]
    if name.endswith(SUFFIX):
        own = find(name.removesuffix(SUFFIX))
        return own and versus_champion(own)
    parts = kind_and_fpr(name)
    return at_fpr(FAMILIES[parts[0]], parts[1]) if parts and parts[0] in FAMILIES else None

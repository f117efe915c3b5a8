"""Notes on the evidence tier E0 to E3: how much the dossier says about training, clients and groups.

They also say how to reach the next tier, and which metrics could not be measured for lack of evidence.
"""

from collections.abc import Iterable

from privacy_gate.checks import AnyCheck
from privacy_gate.checks.base.check import Subject
from privacy_gate.verdict.judgement import CheckResult, Measurement

Ran = tuple[AnyCheck, CheckResult]
"""A check of the policy, and its result."""

EVIDENCE = (
    "a checkpoint and labelled rows",
    "client or group columns",
    "the federation's recipe",
    "the federation's recipe and its round log",
)
"""The evidence of each tier: E0, E1, E2, E3."""


def evidence_notes(subject: Subject, ran: Iterable[Ran]) -> list[str]:
    """The tier that the candidate's evidence reached, how to reach the next, and what each check could not measure.

    Empty if the policy has no tiered check. A round log only counts if a check could measure something with it.
    """
    tiered = [(check, result) for check, result in ran if check.tiered]
    if not tiered:
        return []
    tier = _tier(subject, tiered)
    return [f"evidence tier E{tier}, {EVIDENCE[tier]}{_next(tier, tiered)}", *_unmeasured(tiered)]


def _tier(subject: Subject, tiered: list[Ran]) -> int:
    # A round log that no check could use is no evidence, so it does not raise the tier.
    if subject.recipe.federation is not None:
        return 3 if any(check.reads_rounds and _figures(result) for check, result in tiered) else 2
    return 0 if subject.data.client is None and subject.data.group is None else 1


def _next(tier: int, tiered: list[Ran]) -> str:
    """How to reach the next tier; empty at the last."""
    if tier == 0:
        return ": name client or group columns in the data manifest to reach E1 (fairness)"
    if tier == 1:
        return ": declare the federation in the recipe, if there was one, to reach E2"
    if tier > 2:
        return ""
    reasons = [m.reason for check, result in tiered if check.reads_rounds for m in result.measurements]
    return f"; not E3: {reasons[0]}" if reasons else ": add the check trajectory to read its round log (tier E3)"


def _unmeasured(tiered: list[Ran]) -> list[str]:
    """For each check, one line per reason with the metrics that could not be measured.

    A check that measured something lists only its limits; a check that measured nothing lists all its metrics.
    """
    lines = []
    for check, result in tiered:
        absent = [m for m in result.measurements if not m.measured]
        if _figures(result):
            absent = [m for m in absent if m.metric in check.bounds]
        for reason in dict.fromkeys(str(m.reason) for m in absent):
            metrics = dict.fromkeys(m.metric for m in absent if m.reason == reason)
            lines.append(f"not measured by {check.name}: {', '.join(metrics)}: {reason}")
    return lines


def _figures(result: CheckResult) -> list[Measurement]:
    return [m for m in result.measurements if m.measured]

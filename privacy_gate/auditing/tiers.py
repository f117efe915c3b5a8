"""How much evidence of training, clients and groups there is, what it left unmeasured, and what would give more."""

from collections.abc import Iterable

from privacy_gate.checks import AnyCheck
from privacy_gate.checks.base.check import Subject
from privacy_gate.verdict.judgement import CheckResult, Measurement

Ran = tuple[AnyCheck, CheckResult]
"""A check of the policy, and what it brought."""

EVIDENCE = (
    "a checkpoint and labelled rows",
    "client or group columns",
    "the federation's recipe",
    "the federation's recipe and its round log",
)
"""What there is, by tier: E0, E1, E2, E3."""


def evidence_notes(subject: Subject, ran: Iterable[Ran]) -> list[str]:
    """The tier that the candidate's evidence reached, what reaches the next, and which checks lacked what.

    Nothing where the policy has no tiered check. A round log counts only where it was fit to be judged.
    """
    tiered = [each for each in ran if each[0].tiered]
    if not tiered:
        return []
    tier = _tier(subject, tiered)
    return [f"evidence tier E{tier}, {EVIDENCE[tier]}{_next(tier, tiered)}", *_unmeasured(tiered)]


def _tier(subject: Subject, tiered: list[Ran]) -> int:
    if subject.recipe.federation is not None:
        return 3 if any(check.reads_rounds and _figures(result) for check, result in tiered) else 2
    return 0 if subject.data.client is None and subject.data.group is None else 1


def _next(tier: int, tiered: list[Ran]) -> str:
    """What reaches the next tier; empty at the last."""
    if tier == 0:
        return ": name client or group columns in the data manifest to reach E1 (fairness)"
    if tier == 1:
        return ": declare the federation in the recipe, if there was one, to reach E2"
    if tier > 2:
        return ""
    why = [one.reason for check, result in tiered if check.reads_rounds for one in result.measurements]
    return f"; not E3, since {why[0]}" if why else ": add the check trajectory to read its rounds (tier E3)"


def _unmeasured(tiered: list[Ran]) -> list[str]:
    """For each check the limits, or where it measured nothing all figures, that it could not measure, by reason."""
    lines = []
    for check, result in tiered:
        absent = [one for one in result.measurements if not one.measured]
        if _figures(result):
            absent = [one for one in absent if one.metric in check.bounds]
        for reason in dict.fromkeys(str(one.reason) for one in absent):
            metrics = dict.fromkeys(one.metric for one in absent if one.reason == reason)
            lines.append(f"not measured by {check.name}: {', '.join(metrics)}: {reason}")
    return lines


def _figures(result: CheckResult) -> list[Measurement]:
    return [one for one in result.measurements if one.measured]

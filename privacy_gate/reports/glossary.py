"""The glossary of metrics and attacks, written from their records; a test keeps docs/glossary.md equal to it."""

import textwrap
from collections.abc import Iterable
from typing import Any, get_args

from privacy_gate.attacks import ATTACKS
from privacy_gate.checks import AnyCheck
from privacy_gate.metrics.catalogue import FAMILIES, METRICS, REPORT_ONLY
from privacy_gate.metrics.rates import FPRS, at_any_fpr, kind_and_fpr
from privacy_gate.reports.words import check_title, number, percent, points
from privacy_gate.verdict.metric import Metric

HEAD = """# Glossary

Every metric that a check measures, and every attack. This file is written by `privacy_gate.reports.glossary`; change
the records beside the measuring functions, not this file.

- **member**: an example that the model was trained on. **Holdout example**: one like it that the model never saw.
- **true positive rate**: the share of members that an attacker identifies. **False positive rate**: the share of
  holdout examples that the attacker wrongly calls members.
- Every figure has an interval. A limit is met if the whole interval is on the right side of it.
- A limit relative to the promoted version (`champion_drop`, `champion_rise`) is judged on the metric's name followed by
  `_vs_champion`: the candidate's figure minus the champion's.
"""

WIDTH = 120

ATTACK_HEAD = "| attack | least release | source | assumes | needs | extra cost |\n|---|---|---|---|---|---|\n"


def glossary() -> str:
    """The whole text, in Markdown."""
    kinds: tuple[Any, ...] = get_args(get_args(AnyCheck)[0])
    parts = [HEAD, "## Metrics that a policy can limit\n"]
    for kind in kinds:
        limitable = get_args(get_args(kind.model_fields["limits"].annotation)[0])
        name = kind.model_fields["check"].default
        parts.append(f"### {check_title(name)} (`{name}`)\n")
        parts.append(_entries(METRICS[metric] for metric in limitable))
    parts += ["## Metrics that reports show and no policy limits\n"]
    parts.append(_entries(record for name, record in METRICS.items() if name in REPORT_ONLY))
    rows = (
        f"| `{one.name}` | {one.view} | {one.source} | {one.assumes} | {one.needs} | {one.cost} |"
        for one in ATTACKS.values()
    )
    parts.append("## Attacks\n\nEach scores every example; a higher score means more likely a member.\n")
    parts.append(ATTACK_HEAD + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _entries(records: Iterable[Metric]) -> str:
    """The records as a list; a metric at several false positive rates once, with X for the rate."""
    return "".join(dict.fromkeys(_entry(record) for record in records))


def _entry(record: Metric) -> str:
    parts = kind_and_fpr(record.name)
    shown = at_any_fpr(FAMILIES[parts[0]]) if parts else record
    worse = {"lower": "lower is worse", "higher": "higher is worse", "neither": "no direction is worse"}[record.worse]
    facts = f"{record.unit}, {_range(record)}; {worse}{_at_x(record) if parts else _chance(record)}"
    advice = "What helps" if record.name in REPORT_ONLY else "If the limit is violated"
    return (
        _item(f"- **`{shown.name}`**: {shown.title} ({facts}). {shown.means}", "  ")
        + _item(f"  - Needs: {shown.resolves}", "    ")
        + _item(f"  - {advice}: {shown.remedy}", "    ")
    )


def _item(text: str, indent: str) -> str:
    """One item of a list, in lines of at most WIDTH letters."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) + "\n"


def _range(record: Metric) -> str:
    least, most = (None if end is None else _amount(record, end) for end in record.range)
    if least is None:
        return "any number" if most is None else f"at most {most}"
    return f"at least {least}" if most is None else f"{least} to {most}"


def _chance(record: Metric) -> str:
    if record.chance is None:
        return ""
    amount = _amount(record, record.chance)
    return f"; guessing reaches {amount}" if record.chance else f"; {amount} means no effect"


def _at_x(record: Metric) -> str:
    rates = ", ".join(f"{fpr:g}" for fpr in FPRS[:-1])
    return f"{'; guessing reaches X' if record.chance is not None else ''}; X is {rates} or {FPRS[-1]:g}"


def _amount(record: Metric, value: float) -> str:
    value = float(f"{value:.3g}")
    if record.unit == "difference":
        return points(value)
    return percent(value) if record.percent else number(value)

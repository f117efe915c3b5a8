"""A federation under hostile clients: accuracy against their number, and which rules would pass at what tax."""

from privacy_gate.reports.pictures import Axis, Chart, Line, Mark, Tick, length, polyline, styled
from privacy_gate.reports.words import number, percent, plain, shown
from privacy_gate.verdict.exhibits import ByzantinePlot
from privacy_gate.verdict.judgement import Limit, RuleTable, RuleTrial
from privacy_gate.verdict.report import CheckRecord

RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

HEADS = ("Rule", "Passes", "Worst attack", "Accuracy without attack", "Tax", "Lost to the worst attack")


def byzantine_chart(plot: ByzantinePlot) -> Chart:
    """Points are measured: worst accuracy of any attack tried; the recipe's own rule is the first line."""
    most = max(max(line.byzantine) for line in plot.lines)
    x, y = Axis(0, most, 64, 496), Axis(0, 1, 304, 16)
    lines, marks = [], []
    for index, line in enumerate(plot.lines):
        points = [(x.at(f), y.at(rate)) for f, rate in zip(line.byzantine, line.accuracy, strict=True)]
        lines.append(Line(plain(line.rule), polyline(points), *styled(index)))
        marks += [Mark(length(left), length(top), str(styled(index)[0])) for left, top in points]
    return Chart(
        *(64, 504, 16, 304),
        x_ticks=tuple(Tick(length(x.at(f)), number(float(f))) for f in range(most + 1)),
        y_ticks=tuple(Tick(length(y.at(rate)), percent(rate)) for rate in RATES),
        lines=tuple(lines),
        marks=tuple(marks),
        note=f"of {plot.clients:,} clients",
    )


def tried(check: CheckRecord) -> RuleTable | None:
    """The check's table of rules; None where it has none."""
    return next((one for one in check.result.exhibits if isinstance(one, RuleTable)), None)


def cells(table: RuleTable, trial: RuleTrial) -> tuple[str, ...]:
    """One rule as text, in the order of HEADS."""
    drop = shown(trial.drop, Limit(max=table.drop_limit))
    tax = shown(trial.tax, None if table.tax_limit is None else Limit(max=table.tax_limit))
    return (
        plain(trial.rule) + (" (the recipe's own)" if trial is table.rules[0] else ""),
        "yes" if trial.passes else "no",
        plain(trial.drop.subject).replace("_", " "),
        f"{100 * trial.clean:.1f} %",
        str(tax) if tax else f"not measured: {plain(trial.tax.reason)}",
        str(drop) if drop else f"not measured: {plain(trial.drop.reason)}",
    )


def caption(table: RuleTable) -> str:
    """What the table is, and when a rule passes."""
    taxed = "" if table.tax_limit is None else f" and the tax at most {percent(table.tax_limit)}"
    return (
        f"Where {table.byzantine:,} of {table.clients:,} clients are hostile, a rule passes if the worst attack takes "
        f"at most {percent(table.drop_limit)} of accuracy{taxed}, by the upper ends of their intervals. The loss and "
        "the tax are counted from plain averaging without an attack."
    )

"""A federation with hostile clients: its accuracy by their number, and which aggregation rules would pass."""

from privacy_gate.reports.pictures import Axis, Chart, Line, Mark, Tick, length, polyline, styled
from privacy_gate.reports.words import number, percent, plain, points, shown
from privacy_gate.verdict.exhibits import ByzantinePlot
from privacy_gate.verdict.judgement import Limit, RuleTable, RuleTrial
from privacy_gate.verdict.report import CheckRecord

RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

HEADS = ("Rule", "Passes", "Worst attack", "Accuracy without attack", "Robustness tax", "Accuracy lost to it")


def byzantine_chart(plot: ByzantinePlot) -> Chart:
    """Lowest accuracy under any attack, by the number of hostile clients. The recipe's own rule is the first line."""
    most = max(max(line.byzantine) for line in plot.lines)
    x, y = Axis(0, most, 64, 496), Axis(0, 1, 304, 16)
    lines, marks = [], []
    for index, line in enumerate(plot.lines):
        # Marks show which numbers of hostile clients were simulated; the lines between them are only a guide.
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
    """The check's table of aggregation rules; None if it has no table."""
    return next((exhibit for exhibit in check.result.exhibits if isinstance(exhibit, RuleTable)), None)


def cells(table: RuleTable, trial: RuleTrial) -> tuple[str, ...]:
    """The cells of one rule, in the order of HEADS."""
    # With their limits, so that rounding does not contradict `passes`.
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
    """An explanation of the table, and the condition for a rule to pass."""
    taxed = "" if table.tax_limit is None else f" and the robustness tax is at most {points(table.tax_limit)}"
    return (
        f"With {table.byzantine:,} of {table.clients:,} clients hostile, a rule passes if it loses at most "
        f"{points(table.drop_limit)} of accuracy to the worst attack{taxed}, at the upper ends of the intervals. Both "
        "are differences from plain averaging without an attack."
    )

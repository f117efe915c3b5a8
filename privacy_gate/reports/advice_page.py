"""The table of alternatives as one self-contained page, and as lines for a terminal."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privacy_gate.auditing.advice import Advice, Row, Target
from privacy_gate.reports import words
from privacy_gate.reports.html_page import SYMBOLS, page_environment
from privacy_gate.reports.scatter import Dot, Scatter, scatter
from privacy_gate.verdict.judgement import Limit, Measurement, judged_status

SERIES = {"as-is": 7, "epochs": 1, "weight-decay": 2, "label-smoothing": 3, "drop": 4, "dp-sgd": 6}
"""The colour of each family."""

NOTES = (
    "Rates are those of the recipe: every reference in turn attacked by LiRA with all the others. A retrained model is "
    "judged by itself, by all attacks of the policy, and with wider intervals: run privacy-gate check on it.",
    "Each interval holds for its own line. The best of many lines owes some of it to luck.",
    "Everything but the change named is left as the recipe has it; a learning rate tuned to the change may do better.",
    "Accuracy is that on examples of the pool, members and holdout, which a reference was not trained on; every "
    "example counts the same, also those that a line drops.",
)

ONION = (
    "Dropped examples are the most vulnerable under the recipe as it is. The rates are of those that stay: dropping "
    "some may expose others, which then show more than they did before. They were chosen by the references that tell "
    "what they showed before, so a small rise may be chance."
)

PRIVATE = (
    "The ε of DP-SGD is of one training run with Poisson sampling; it does not cover choosing a recipe by results "
    "on the same data."
)


@dataclass(frozen=True)
class Rate:
    """A rate as text, None where not measured, and how its limit fares: met, violated, missing, or no limit at all."""

    shown: words.Shown | None
    symbol: str


@dataclass(frozen=True)
class Line:
    """One row as shown: figures with their intervals as text, None where not measured."""

    row: Row
    series: int
    accuracy: words.Shown | None
    gain: words.Shown | None
    leak: tuple[Rate, ...]
    aside: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """The alternatives at one false positive rate."""

    title: str
    chart: Scatter


def render(advice: Advice) -> str:
    """The page. Everything from the registry is escaped, on one line, and free of control characters."""
    environment = page_environment()
    css = "".join(environment.get_template(name).render() for name in ("report.css", "advice.css"))
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return environment.get_template("advice.html.jinja").render(
        advice=advice,
        css=Markup(css),  # noqa: S704 - the package's own files
        css_digest=Markup(digest),  # noqa: S704 - base64
        sentence=sentence(advice),
        lines=[_line(row, advice.targets) for row in advice.rows],
        pictures=_pictures(advice),
        limited=any(target.limit is not None for target in advice.targets),
        notes=notes(advice),
        words=words,
    )


def table(advice: Advice) -> str:
    """The table in plain text, with the sentence that sums it up; the last line ends with a line break."""
    heads = ["recipe", "accuracy left out", "change", *(f"tpr at {words.percent(t.fpr)} fpr" for t in advice.targets)]
    limits = [words.percent(t.limit) if t.limit is not None else "none" for t in advice.targets]
    cells = [[*heads, ""], ["", "", "limit", *limits, ""]]
    cells += [_cells(_line(row, advice.targets), row.name == advice.choice) for row in advice.rows]
    wide = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    body = ["  ".join(text.ljust(w) for text, w in zip(row, [*wide, 0], strict=True)).rstrip() for row in cells]
    return "\n".join([*body, "", sentence(advice)]) + "\n"


def _cells(line: Line, chosen: bool) -> list[str]:
    gain = str(line.gain).replace(" %", "") if line.gain else ""
    if line.reason:
        return [line.row.name, "not measured", "", *("" for _ in line.leak), line.reason]
    marks = ["meets the limits"] if line.row.meets else []
    marks += ["best of these"] if chosen else ["not dominated"] if line.row.best else []
    leak = [str(rate.shown) if rate.shown else "not measured" for rate in line.leak]
    return [line.row.name, str(line.accuracy), gain, *leak, ", ".join(marks)]


def sentence(advice: Advice) -> str:
    """What the table says, in a sentence or two."""
    others = [row for row in advice.rows[1:] if row.accuracy.measured]
    if all(target.limit is None for target in advice.targets):
        best = ", ".join(row.name for row in advice.rows if row.best)
        return f"The policy limits no rate of membership inference. Not dominated by any other line: {best}."
    chosen = next((row for row in advice.rows if row.name == advice.choice), None)
    if chosen is None:
        least = min(others, key=_lowest, default=None)
        tail = ""
        if least:
            tail = (
                f" {words.capital(least.name)} leaks least: {_rates(least)}; accuracy changes by {_points(least.gain)}."
            )
        count = (
            f"None of the {len(others)} alternatives measured would meet every limit shown"
            if others
            else "Nothing but the recipe as it is was measured, which would not meet every limit shown"
        )
        return (
            f"{count} at the unfavourable end of its interval.{tail} More examples per class help every recipe, and "
            "changes can be combined."
        )
    if chosen.family == "as-is":
        return (
            f"The recipe as it is would meet every limit shown: {_rates(chosen)}. No change of it is as accurate and "
            "does."
        )
    meeting = sum(bool(row.meets) for row in advice.rows)
    already = "The recipe as it is would meet every limit shown already. " if advice.rows[0].meets else ""
    return (
        f"{already}Trained with {chosen.name} it would meet every limit shown: {_rates(chosen)}. Its accuracy changes "
        f"by {_points(chosen.gain)}; of {meeting} line{'s' if meeting > 1 else ''} that would, it is the most accurate."
    )


def notes(advice: Advice) -> list[str]:
    """How to read the table, as far as it has such lines."""
    families = {row.family for row in advice.rows}
    return [*NOTES, *([ONION] if "drop" in families else []), *([PRIVATE] if "dp-sgd" in families else [])]


def _lowest(row: Row) -> tuple[float, ...]:
    """Rates at the lowest false positive rate first; what was not measured comes last."""
    return tuple(found.value if found.value is not None else 2.0 for found in reversed(row.leak))


def _rates(row: Row) -> str:
    return ", ".join(
        f"{words.metric(found.metric).title.partition(', ')[0]} {shown}"
        for found in row.leak
        if (shown := words.shown(found))
    )


def _points(gain: Measurement | None) -> str:
    """A difference of shares, in percentage points."""
    figure = words.shown(gain) if gain else None
    return str(figure).replace(" %", "") + " percentage points" if figure else "an unknown amount"


def _line(row: Row, targets: Sequence[Target]) -> Line:
    return Line(
        row=row,
        series=SERIES[row.family],
        accuracy=words.shown(row.accuracy),
        gain=words.shown(row.gain) if row.gain else None,
        leak=tuple(_rate(found, target.limit) for found, target in zip(row.leak, targets, strict=True)),
        aside=_aside(row),
        reason=row.accuracy.reason or "",
    )


def _rate(found: Measurement, most: float | None) -> Rate:
    if most is None:
        return Rate(words.shown(found), "")
    limit = Limit(max=most)
    return Rate(words.shown(found, limit), SYMBOLS[judged_status(found, limit)])


def _aside(row: Row) -> str:
    """What dropping did to those that stay."""
    if not row.dropped:
        return ""
    figures = (words.shown(found) for found in row.before)
    before = " and ".join(str(figure) if figure else "not measured" for figure in figures)
    count, members = len(row.dropped), row.dropped_members
    return (
        f"{count:,} example{'s' if count > 1 else ''} dropped, {members:,} of them "
        f"{'a member' if members == 1 else 'members'}. Those that stay, before any were dropped: {before}"
    )


def _pictures(advice: Advice) -> list[Picture]:
    pictures = []
    for place, target in enumerate(advice.targets):
        dots = [
            Dot(row.name, row.accuracy, row.leak[place], SERIES[row.family], row.best, row.name == advice.choice)
            for row in advice.rows
        ]
        if chart := scatter(dots, target.fpr, target.limit):
            pictures.append(Picture(f"Members found at {words.percent(target.fpr)} false alarms", chart))
    return pictures

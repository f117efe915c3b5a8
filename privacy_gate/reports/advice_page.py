"""The table of alternatives as one self-contained HTML page, and as text for a terminal."""

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

SERIES = {
    "as-is": 7,
    "release": 5,
    "random-start": 4,
    "epochs": 1,
    "weight-decay": 2,
    "label-smoothing": 3,
    "drop": 4,
    "dp-sgd": 6,
}
"""Number of the colour of each family."""

NOTES = (
    "The rates describe the recipe, not one model: the strongest attack that the release allows is made on every "
    "reference model, with the help of all the others. "
    "A retrained model is judged alone, with all attacks of the policy and wider intervals: run privacy-gate check on "
    "it.",
    "Each interval is for its own line. The best of many lines is partly best by chance.",
    "Only the named change differs from the recipe. A learning rate tuned to the change may give better results.",
    "Accuracy is measured on the examples of the pool (members and holdout) that a reference model was not trained on. "
    "Every example counts the same, including those that a line drops.",
)

ONION = (
    "The dropped examples are the most vulnerable under the unchanged recipe, and the rates are those of the remaining "
    "examples. Dropping some examples can expose others, which shows as a higher rate than before. The examples were "
    "selected with the same reference models that gave the rates before, so a small increase may be chance."
)

PRIVATE = (
    "The ε of DP-SGD is for one training run with Poisson sampling. It does not cover the choice of a recipe by "
    "results on the same data."
)


@dataclass(frozen=True)
class Rate:
    """A rate as text, or None if not measured. `symbol`: met, violated or missing; empty without a limit."""

    shown: words.Shown | None
    symbol: str


@dataclass(frozen=True)
class Line:
    """One row of the table: figures with their intervals as text, None if not measured."""

    row: Row
    series: int
    accuracy: words.Shown | None
    gain: words.Shown | None
    leak: tuple[Rate, ...]
    aside: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """A chart of the alternatives at one false positive rate."""

    title: str
    chart: Scatter


def render(advice: Advice) -> str:
    """The page. Texts from the registry are escaped, on one line, and free of control characters."""
    environment = page_environment()
    # As in the report, the security policy of the page allows this style sheet alone, by its hash.
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
    """The table in plain text and a summary; the last line ends with a line break."""
    heads = ["recipe", "unseen accuracy", "change", *(f"tpr at {words.percent(t.fpr)} fpr" for t in advice.targets)]
    limits = [words.percent(t.limit) if t.limit is not None else "none" for t in advice.targets]
    # The last column holds remarks and reasons, and has no head.
    cells = [[*heads, ""], ["", "", "limit", *limits, ""]]
    cells += [_cells(_line(row, advice.targets), row.name == advice.choice) for row in advice.rows]
    # The remarks need no width: nothing comes after them.
    wide = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    body = ["  ".join(text.ljust(w) for text, w in zip(row, [*wide, 0], strict=True)).rstrip() for row in cells]
    return "\n".join([*body, "", sentence(advice)]) + "\n"


def _cells(line: Line, chosen: bool) -> list[str]:
    gain = str(line.gain).replace(" points", "") if line.gain else ""
    # A line without figures keeps empty cells, so that its reason is below the other remarks.
    if line.reason:
        return [line.row.name, "not measured", "", *("" for _ in line.leak), line.reason]
    remarks = ["meets the limits"] if line.row.meets else []
    remarks += ["best of these"] if chosen else ["not dominated"] if line.row.best else []
    leak = [str(rate.shown) if rate.shown else "not measured" for rate in line.leak]
    return [line.row.name, str(line.accuracy), gain, *leak, ", ".join(remarks)]


def sentence(advice: Advice) -> str:
    """A summary of the table in a few sentences."""
    # The first row is the unchanged recipe.
    others = [row for row in advice.rows[1:] if row.accuracy.measured]
    if all(target.limit is None for target in advice.targets):
        best = ", ".join(row.name for row in advice.rows if row.best)
        return f"The policy has no limit on membership inference. Not dominated by any other line: {best}."
    chosen = next((row for row in advice.rows if row.name == advice.choice), None)
    # No line meets the limits: name the one that leaks least, which may help in combination with others.
    if chosen is None:
        least = min(others, key=_lowest, default=None)
        least_leak = ""
        if least:
            name, gain = words.capital(least.name), _points(least.gain)
            least_leak = f" {name} leaks least: {_rates(least)}. Accuracy changes by {gain}."
        count = (
            f"None of the {len(others)} measured alternatives would meet every limit shown"
            if others
            else "Only the unchanged recipe was measured, and it would not meet every limit shown"
        )
        return (
            f"{count} with its whole interval.{least_leak} More examples per class help every recipe, and changes can "
            "be combined."
        )
    # The unchanged recipe is the best choice: there is nothing to advise.
    if chosen.family == "as-is":
        return (
            f"The unchanged recipe would meet every limit shown: {_rates(chosen)}. No alternative that meets them is "
            "more accurate."
        )
    meeting = sum(bool(row.meets) for row in advice.rows)
    already = "The unchanged recipe would already meet every limit shown. " if advice.rows[0].meets else ""
    rank = f"Of the {meeting} lines that would, it is the most accurate." if meeting > 1 else "No other line would."
    return (
        f"{already}{_with(chosen)}, the model would meet every limit shown: {_rates(chosen)}. Accuracy "
        f"{_gain(chosen)}. {rank}"
    )


def notes(advice: Advice) -> list[str]:
    """Explanations of the table, only those that apply to its lines."""
    families = {row.family for row in advice.rows}
    return [*NOTES, *([ONION] if "drop" in families else []), *([PRIVATE] if "dp-sgd" in families else [])]


def _lowest(row: Row) -> tuple[float, ...]:
    """Sort key: the rate at the lowest false positive rate first. A missing rate counts as 2, above every rate."""
    return tuple(rate.value if rate.value is not None else 2.0 for rate in reversed(row.leak))


def _rates(row: Row) -> str:
    return ", ".join(
        # The title goes on with ", over all models of the recipe", which is true of every line here.
        f"{words.metric(rate.metric).title.partition(', ')[0]} {figure}"
        for rate in row.leak
        if (figure := words.shown(rate))
    )


def _gain(row: Row) -> str:
    return "stays as it is" if row.family == "release" else f"changes by {_points(row.gain)}"


def _with(row: Row) -> str:
    return f"With a release of {row.name}" if row.family == "release" else f"Trained with {row.name}"


def _points(gain: Measurement | None) -> str:
    """A difference of shares, in percentage points."""
    figure = words.shown(gain) if gain else None
    return str(figure) if figure else "an unknown amount"


def _line(row: Row, targets: Sequence[Target]) -> Line:
    return Line(
        row=row,
        series=SERIES[row.family],
        accuracy=words.shown(row.accuracy),
        gain=words.shown(row.gain) if row.gain else None,
        leak=tuple(_rate(rate, target.limit) for rate, target in zip(row.leak, targets, strict=True)),
        aside=_aside(row),
        reason=row.accuracy.reason or "",
    )


def _rate(measured: Measurement, most: float | None) -> Rate:
    if most is None:
        return Rate(words.shown(measured), "")
    limit = Limit(max=most)
    return Rate(words.shown(measured, limit), SYMBOLS[judged_status(measured, limit)])


def _aside(row: Row) -> str:
    """The effect of dropping examples on the remaining ones."""
    if not row.dropped:
        return ""
    figures = (words.shown(rate) for rate in row.before)
    before = " and ".join(str(figure) if figure else "not measured" for figure in figures)
    count, members = len(row.dropped), row.dropped_members
    return (
        f"{count:,} example{'s' if count > 1 else ''} dropped, {members:,} of them "
        f"{'a member' if members == 1 else 'members'}. The remaining examples before dropping: {before}"
    )


def _pictures(advice: Advice) -> list[Picture]:
    pictures = []
    for place, target in enumerate(advice.targets):
        dots = [
            Dot(row.name, row.accuracy, row.leak[place], SERIES[row.family], row.best, row.name == advice.choice)
            for row in advice.rows
        ]
        if chart := scatter(dots, target.fpr, target.limit):
            title = f"Members identified at a false positive rate of {words.percent(target.fpr)}"
            pictures.append(Picture(title, chart))
    return pictures

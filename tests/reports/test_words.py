"""Figures, names and times as text."""

import doctest
import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy_gate.reports import coverage, details, markdown, pictures, story, words
from privacy_gate.reports.words import bound, metric, moment, number, percent, plain, shown
from privacy_gate.verdict.judgement import Limit, Measurement, Status, judge, not_measured

RATE = st.floats(0, 1, allow_nan=False)


def figure(low: float, value: float, high: float, name: str = "tpr_at_0.01_fpr") -> Measurement:
    return Measurement(metric=name, value=value, low=low, high=high, confidence=0.95)


@pytest.mark.parametrize("module", [words, markdown, story, details, coverage, pictures], ids=lambda m: m.__name__)
def test_examples_in_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("measurement", "expected"),
    [
        (figure(0.0221, 0.031, 0.0436), "3.1 % [2.2 %, 4.4 %]"),
        (figure(0.0, 0.0, 0.0), "0.0 % [0.0 %, 0.0 %]"),
        (figure(0.00012, 0.0005, 0.0019), "0.05 % [0.01 %, 0.19 %]"),
        (figure(0.768, 0.795, 0.819, "auc"), "0.795 [0.768, 0.819]"),
        (figure(-0.672, -0.56, -0.448, "slope_at_0.01_fpr"), "−0.560 [−0.672, −0.448]"),
        (figure(-1e-9, 0.0, 1234.5, "epsilon"), "0.000 [−0.001, 1,234.500]"),
        (figure(-1e300, 0.0, 1e300, "epsilon"), "0.000000e+00 [−1.000000e+300, 1.000000e+300]"),
    ],
)
def test_figures_are_written_for_people(measurement: Measurement, expected: str) -> None:
    assert str(shown(measurement)) == expected


def test_a_missing_measurement_has_no_figure() -> None:
    assert shown(not_measured("auc", "no rows")) is None


@given(st.tuples(RATE, RATE, RATE).map(sorted), RATE, st.booleans(), st.sampled_from(["tpr_at_0.1_fpr", "auc"]))
def test_rounding_never_contradicts_the_judgement_nor_narrows_the_interval(
    ends: list[float], edge: float, upper: bool, name: str
) -> None:
    limit = Limit(max=edge) if upper else Limit(min=edge)
    finding = judge("membership", figure(*ends, name), limit)
    text = shown(finding.measurement, limit)
    assert text is not None
    low, value, high, line = (
        Decimal(part.strip("≤≥ %").replace("−", "-")) for part in (text.low, text.value, text.high, bound(finding))
    )
    exact = [Decimal(repr(end)) * (100 if name != "auc" else 1) for end in ends]
    assert low <= exact[0]
    assert exact[2] <= high
    assert low <= value <= high
    if edge == 0 or edge > 1e-6:  # below, limits are written with four digits
        assert (high <= line if upper else low >= line) == (finding.status is Status.MET)


@given(RATE)
def test_percentages_are_exact(rate: float) -> None:
    if rate == 0 or rate > 1e-6:
        assert Decimal(percent(rate).removesuffix(" %")) == Decimal(repr(rate)) * 100


def test_numbers_have_true_minus_signs_thousands_and_no_idle_zeros() -> None:
    assert [number(value) for value in (0.0, -0.0, 1e6, 0.25, -1.5, 3e20)] == [
        "0", "−0", "1,000,000", "0.25", "−1.5", "3.000e+20",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["tpr_at_0.1_fpr", "tpr_at_0.01_fpr", "recipe_tpr_at_0.001_fpr", "tpr_at_1e-05_fpr"])
def test_guessing_reaches_the_false_positive_rate(name: str) -> None:
    assert metric(name).chance == float(name.removesuffix("_fpr").rpartition("_")[2])
    assert metric(name).percent


def test_an_unknown_metric_goes_by_its_own_name() -> None:
    assert metric("left_handed").title == "left handed"
    assert metric("tpr_at_noon_fpr").title == "tpr at noon fpr"


@given(st.text())
def test_plain_text_is_one_line_without_control_characters(text: str) -> None:
    line = plain(text)
    assert len(line.splitlines()) <= 1
    assert line == plain(line)
    assert not any(letter in line for letter in "\0\x1b\u202e\u2066\u200b\r\n\t")


@given(st.text(max_size=60))
def test_prose_in_markdown_is_read_as_the_text_it_is(text: str) -> None:
    from html.parser import HTMLParser

    from markdown_it import MarkdownIt

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []
            self.words = ""

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.tags.append(tag)

        def handle_data(self, data: str) -> None:
            self.words += data

    rendered = (
        MarkdownIt("commonmark")
        .enable("table")
        .render(
            f"- {markdown.prose(text)}\n\n| a | b |\n| --- | --- |\n"
            f"| {markdown.prose(text)} | {markdown.code(text)} |\n"
        )
    )
    reader = Reader()
    reader.feed(rendered)
    assert reader.tags == ["ul", "li", "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td", "code"]
    expected = "".join((plain(text) + "ab" + plain(text) * 2).split())
    assert "".join(reader.words.replace("\u200b", "").split()) == expected


def test_times_are_in_utc_and_other_text_is_unchanged() -> None:
    assert moment("2026-11-23T10:41:27+01:00") == "2026-11-23 09:41:27 UTC"
    assert moment("2026-11-23T10:41:27") == "2026-11-23 10:41:27"
    assert moment("yester\nday") == "yester day"


def test_references_have_a_date_known_ids_and_no_link() -> None:
    import datetime
    import re

    known = coverage.references()
    assert datetime.date.fromisoformat(known.as_of)
    assert all(re.fullmatch(r"NISTAML\.\d{3}", name) for attacks in known.attacks for name in attacks.nist)
    assert all(re.fullmatch(r"AML\.T\d{4}(\.\d{3})?", name) for attacks in known.attacks for name in attacks.atlas)
    assert "http" not in json.dumps(known.model_dump(mode="json"))

"""The page that people read."""

import base64
import hashlib
import itertools
import re

import pytest

from privacy_gate.reports.html_page import render
from privacy_gate.verdict.report import Report

VERDICTS = ("blocked", "approved", "undecided")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_page_loads_nothing_and_runs_nothing(samples: dict[str, Report], verdict: str) -> None:
    page = render(samples[verdict])
    assert not re.search(r"<(script|link|img|iframe|object|embed|form|base|image|use|foreignObject)\b", page)
    assert not re.search(r"\s(src|srcset|style|on\w+|xlink:href|action|data)\s*=", page)
    assert not re.search(r"@import|url\(|https?:", page)
    assert set(re.findall(r'href="([^"]*)"', page)) == {"#findings"}


def test_the_policy_of_the_page_admits_its_own_style_and_nothing_else(samples: dict[str, Report]) -> None:
    page = render(samples["blocked"])
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}';" in page


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_page_can_be_read_by_a_screen_reader(samples: dict[str, Report], verdict: str) -> None:
    page = render(samples[verdict])
    assert '<html lang="en">' in page
    assert len(re.findall(r"<(main|header|footer)\b", page)) == 3
    assert len(re.findall(r"<h1\b", page)) == 1
    headings = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert {name for names in re.findall(r'aria-labelledby="([^"]+)"', page) for name in names.split()} <= set(ids)
    for head in re.findall(r"<svg [^>]*>", page):
        assert 'aria-hidden="true"' in head or 'role="img" aria-labelledby=' in head
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert all("<thead>" in table for table in tables)
    assert all("scope=" in cell for cell in re.findall(r"<th\b[^>]*>", page))


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_comes_first_in_words_and_in_a_shape_of_its_own(samples: dict[str, Report], verdict: str) -> None:
    page = render(samples[verdict])
    assert page.index(f">{verdict.capitalize()}</h1>") < page.index("<table")
    shapes = [re.search(r'<svg class="icon".*?</svg>', render(report), re.DOTALL) for report in samples.values()]
    assert len({shape[0] for shape in shapes if shape}) == 3
    order = ["findings-title", "measurements", "identity", "coverage", "rerun", "references", "signatures"]
    places = [page.index(f'id="{name}"') for name in order]
    assert places == sorted(places)


def schemes() -> dict[str, dict[str, str]]:
    """Colours by name on light and on dark screens."""
    from importlib import resources

    css = resources.files("privacy_gate.reports").joinpath("templates", "report.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", part)) for part in css.split("@media screen")[:2])
    return {"light": light, "dark": light | dark}


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: (lighter + .05) / (darker + .05)."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_4_5_and_lines_of_3(scheme: str) -> None:
    colours = schemes()[scheme]
    text = [(ink, paper) for ink in ("ink", "soft") for paper in ("paper", "page", "wash", "met-wash", "bad-wash")]
    text += [(ink, "paper") for ink in ("met", "bad", "open")] + [
        (ink, f"{ink}-wash") for ink in ("met", "bad", "open")
    ]
    lines = [(f"c{i}", "wash") for i in range(8)] + [("member", "paper"), ("holdout", "paper")]
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in text}
    assert {pair: found for pair, found in low.items() if found < 4.5} == {}
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in lines}
    assert {pair: found for pair, found in low.items() if found < 3} == {}

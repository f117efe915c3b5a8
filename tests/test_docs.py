"""The pages for maintainers are right: their links, paths and floors exist, and versions stand the same everywhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DECISIONS = sorted((ROOT / ".github" / "decisions").glob("*.md"))
PAGES = [
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / ".github").rglob("*.md"),
    ROOT / "CHANGELOG.md",
    ROOT / "README.md",
]


def read(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_of_text_are_short_enough_to_read(page: Path) -> None:
    long = [line for line in read(page).splitlines() if len(line) > 150]
    assert [line for line in long if not line.startswith("|") and "://" not in line] == []


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_every_decision_has_the_same_form(page: Path) -> None:
    text = read(page)
    assert text.startswith(f"# {int(page.stem[:4])}. ")
    assert re.search(r"^Status: (proposed|accepted|replaced).* Date: \d{4}-\d{2}-\d{2}", text, re.MULTILINE)
    sections = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert sections == ["Context", "Decision", "Alternatives", "Consequences"]


def test_the_floors_in_the_architecture_are_those_that_the_tests_enforce() -> None:
    source = re.search(r"^FLOORS = (\[.*?^\])", read("tests/test_layers.py"), re.MULTILINE | re.DOTALL)
    assert source
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", read("docs/architecture.md"), re.MULTILINE)
    written = [re.findall(r"`(\w+)`", names) for _, names in sorted(rows, key=lambda row: int(row[0]))]
    assert written == yaml.safe_load(source[1])


def test_every_file_that_the_architecture_names_exists() -> None:
    for word in re.findall(r"`([\w./]+\.(?:py|json|yaml|md))`", read("docs/architecture.md")):
        assert any((ROOT / folder / word).exists() for folder in ("", "privacy_gate")) or word in OUTPUT, word


OUTPUT = {"report.json", "report.md", "steps.py", "run.py"}
"""Files that a run writes, and files that a row of the table of wings names without their folder."""


def test_the_changelog_says_of_each_version_which_stored_results_it_computes_again() -> None:
    for version in read("CHANGELOG.md").split("\n## ")[1:]:
        assert re.search(r"^Stored results recomputed: ", version, re.MULTILINE), version.splitlines()[0]


def test_hooks_and_ci_use_the_versions_that_the_project_pins() -> None:
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    ruff = next(repo["rev"] for repo in hooks if "ruff" in repo["repo"])
    assert f"ruff=={ruff.removeprefix('v')}" in read("constraints.txt")
    ci: Any = yaml.safe_load(read(".github/workflows/ci.yml"))
    versions = re.findall(r"Python :: (3\.\d+)", read("pyproject.toml"))
    assert ci["jobs"]["ci"]["strategy"]["matrix"]["python"] == versions
    assert all(
        re.search(r"@[0-9a-f]{40} # v", line)
        for line in read(".github/workflows/ci.yml").splitlines()
        if "uses:" in line
    )

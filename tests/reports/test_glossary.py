"""The committed glossary is the one that the records make."""

import os
from pathlib import Path

from privacy_gate.attacks import ATTACKS
from privacy_gate.reports.glossary import glossary

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"


def test_the_committed_glossary_is_what_the_records_say() -> None:
    if os.environ.get("PRIVACY_GATE_GOLDEN") == "write":
        GLOSSARY.write_text(glossary(), encoding="utf-8")
    same = GLOSSARY.read_text(encoding="utf-8") == glossary()
    assert same, "docs/glossary.md is out of date: run with PRIVACY_GATE_GOLDEN=write, look at it, and commit it"


def test_every_attack_has_a_line_and_no_placeholder_is_left() -> None:
    text = glossary()
    assert all(f"| `{name}` |" in text for name in ATTACKS)
    assert "{" not in text

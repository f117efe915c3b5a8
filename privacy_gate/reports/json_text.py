"""The report itself: sorted, indented, plain ASCII, the same bytes for the same report."""

import json
import re

from privacy_gate.documents import Record

_NUMBERS = re.compile(r"\[\n\s*([-+0-9.eE,\s]*?)\n\s*\]")
"""A list of numbers spread over lines. No string of a JSON text holds a raw line break, so none can match."""


def render(report: Record) -> str:
    """JSON that reads back equal; lists of numbers stand on one line."""
    text = json.dumps(report.model_dump(mode="json"), sort_keys=True, indent=2, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"

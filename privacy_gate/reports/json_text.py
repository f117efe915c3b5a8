"""The report as JSON: sorted, indented, plain ASCII, and the same bytes for the same report."""

import json
import re

from privacy_gate.documents import Record

_NUMBERS = re.compile(r"\[\n\s*([-+0-9.eE,\s]*?)\n\s*\]")
"""A list of numbers over several lines. Strings in JSON contain no raw line breaks, so no string can match."""


def render(report: Record) -> str:
    """JSON that reads back as an equal record, with each list of numbers on one line."""
    # allow_nan=False: NaN is no JSON, and other programs could not read the report.
    text = json.dumps(report.model_dump(mode="json"), sort_keys=True, indent=2, allow_nan=False)
    return _NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"

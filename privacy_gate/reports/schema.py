"""The JSON Schema of reports: what other programs may rely on."""

import json

from privacy_gate.verdict.report import Report


def schema() -> str:
    """The schema, written to `report.schema.json` beside this file; a test keeps the two equal."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:privacy-gate:report:1",
        **Report.model_json_schema(mode="validation"),
    }
    return json.dumps(document, sort_keys=True, indent=2) + "\n"

"""The JSON Schema of reports, for other programs that read them."""

import json

from privacy_gate.verdict.report import Report


def schema() -> str:
    """The schema. A test holds that `report.schema.json` in this folder is equal to it."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:privacy-gate:report:1",
        **Report.model_json_schema(mode="validation"),
    }
    return json.dumps(document, sort_keys=True, indent=2) + "\n"

"""The published schema, and the contradictions that a report refuses."""

import json
from importlib import resources

import jsonschema
import pytest
from pydantic import ValidationError

from privacy_gate.reports import json_text
from privacy_gate.reports.schema import schema
from privacy_gate.verdict.exhibits import Histogram, LawPlot, Roc
from privacy_gate.verdict.report import Report

PUBLISHED = resources.files("privacy_gate.reports").joinpath("report.schema.json").read_text(encoding="utf-8")
VERDICTS = ("blocked", "approved", "undecided")


def test_the_published_schema_is_the_one_of_the_model() -> None:
    same = schema() == PUBLISHED
    assert same, "write privacy_gate.reports.schema.schema() to privacy_gate/reports/report.schema.json"


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_report_follows_the_published_schema(samples: dict[str, Report], verdict: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(PUBLISHED))
    validator.check_schema(json.loads(PUBLISHED))
    document = json.loads(json_text.render(samples[verdict]))
    assert list(validator.iter_errors(document)) == []
    assert list(validator.iter_errors(document | {"surprise": 1})) != []
    assert list(validator.iter_errors(document | {"verdict": "fine"})) != []


@pytest.mark.parametrize("verdict", VERDICTS)
def test_json_is_sorted_ascii_with_numbers_on_one_line_and_absent_figures_null(
    samples: dict[str, Report], verdict: str
) -> None:
    text = json_text.render(samples[verdict])
    document = json.loads(text)
    assert text.isascii()
    assert json.dumps(document, sort_keys=True) == json.dumps(document)
    assert document == samples[verdict].model_dump(mode="json")
    assert not any(line.strip(" ,").replace(".", "").isdigit() for line in text.splitlines())
    for check in document["checks"]:
        for measurement in check["result"]["measurements"]:
            assert (measurement["value"] is None) == bool(measurement["reason"])


def test_brackets_and_line_breaks_in_names_do_not_disturb_the_lists(samples: dict[str, Report]) -> None:
    report = samples["approved"].model_copy(update={"notes": ("[\n  1,\n  2\n]", "\\[\\n 1 ]")})
    assert json.loads(json_text.render(report))["notes"] == list(report.notes)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Roc, {"attack": "a", "fpr": (0.0, 1.0), "tpr": (0.0,)}, "expected equally many"),
        (Roc, {"attack": "a", "fpr": (0.5, 0.1), "tpr": (0.0, 1.0)}, "expected fpr and tpr to ascend"),
        (Roc, {"attack": "a", "fpr": (0.0, 1.5), "tpr": (0.0, 1.0)}, "less than or equal to 1"),
        (Histogram, {"attack": "a", "edges": (0.0, 1.0), "member": (1, 2), "holdout": (1,)}, "one more edge"),
        (Histogram, {"attack": "a", "edges": (0.0, 0.0), "member": (1,), "holdout": (1,)}, "edges to ascend"),
        (Histogram, {"attack": "a", "edges": (0.0, 1.0), "member": (-1,), "holdout": (1,)}, "greater than or equal"),
        (LawPlot, {"fpr": 0.1, "shots": (1.0,), "excess": (), "slope": -1.0, "intercept": 0.0}, "as many shots"),
        (LawPlot, {"fpr": 0.1, "shots": (0.0,), "excess": (1.0,), "slope": -1.0, "intercept": 0.0}, "greater than 0"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_at_birth(
    kind: type[Roc | Histogram | LawPlot], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        kind(**fields)

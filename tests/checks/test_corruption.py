"""The corruption check on a real network: same rows, notes by corruption, and missing evidence is no pass."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.corruption import CORRUPTIONS, Corruption
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.kinds import Corrupt, Job, Score
from privacy_gate.verdict.judgement import Limit, Status, judged_status

ROWS = 400


def subject() -> Subject:
    split = np.full(ROWS, Split.HOLDOUT, dtype=np.int8)
    split[:50] = Split.MEMBER
    data = AuditData(
        digest="d" * 64,
        ids=np.array([f"p{row}" for row in range(ROWS)]),
        label=np.arange(ROWS) % 4,
        split=split,
        image=lambda row: b"",
    )
    recipe = Recipe(
        backbone=Backbone(name="test_resnet", weights=PublicWeights(uri="w", sha256="0" * 64)),
        input=Input(size=32, mean=(0.5,) * 3, std=(0.5,) * 3),
        classes=4,
        optimizer=Sgd(name="sgd", lr=0.1),
        epochs=1,
        batch_size=8,
    )
    return Subject(recipe=recipe, artifact="a" * 64, data=data, logged={})


def check(**settings: Any) -> Corruption:
    return parse({"check": "corruption", **settings}, Corruption, "policy")


def answers(job: Job) -> dict[str, np.ndarray]:
    """Always right, but for fog, under which it names class 0, and severity 5, where half the rows go wrong."""
    match job:
        case Score():
            return {"logits": np.eye(4)[np.arange(ROWS) % 4]}
        case Corrupt():
            label = np.array(job.rows) % 4
            if job.corruption == "fog":
                return {"predicted": np.zeros_like(label)}
            return {"predicted": np.where((job.severity == 5) & (np.array(job.rows) % 8 < 4), (label + 1) % 4, label)}
    raise AssertionError(job)


def test_the_ratio_is_over_all_and_the_note_names_the_worst() -> None:
    jobs = [job for job in check().jobs(subject()) if isinstance(job, Corrupt)]
    assert len(jobs) == 45
    assert len({job.rows for job in jobs}) == 1
    assert len(jobs[0].rows) == 300
    assert min(jobs[0].rows) >= 50
    result = check().measure(subject(), answers, 0.95)
    (found,) = result.measurements
    assert found.value == pytest.approx((14 * (1 + 1 + 0.5) / 3 + 0.25) / 15, abs=0.02)
    assert judged_status(found, Limit(min=0.7)) is Status.MET
    assert judged_status(found, Limit(min=0.9)) is Status.VIOLATED
    assert "by corruption: fog 0.2" in result.notes[0]
    assert all(name in result.notes[0] for name in CORRUPTIONS)


def test_without_images_nothing_is_measured() -> None:
    embeddings = replace(subject().data, image=None, embedding=np.zeros((ROWS, 3), dtype=np.float32))
    judged = replace(subject(), data=embeddings)
    assert check().jobs(judged) == []
    (found,) = check().measure(judged, answers, 0.95).measurements
    assert judged_status(found, Limit(min=0.0)) is Status.NOT_MEASURED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruptions": ["rain"]}, "no corruption is called 'rain'"),
        ({"severities": [1, 1]}, "a severity is listed twice"),
        ({"severities": [6]}, "less than or equal to 5"),
    ],
)
def test_unknown_corruptions_and_severities_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check(**settings)

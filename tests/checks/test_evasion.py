"""The evasion check: what it asks for, and that what was not measured is no pass."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.evasion import FEWEST, Evasion
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.kinds import Evade, Job, Universal
from privacy_gate.verdict.judgement import Limit, Status, judged_status

ROWS = 300


def subject(rows: int = ROWS, public: bool = True) -> Subject:
    data = AuditData(
        digest="d" * 64,
        ids=np.array([f"p{row}" for row in range(rows)]),
        label=np.arange(rows) % 4,
        split=np.full(rows, Split.HOLDOUT, dtype=np.int8),
        image=lambda row: b"",
    )
    weights = PublicWeights(uri="w", sha256="0" * 64) if public else None
    recipe = Recipe(
        backbone=Backbone(name="test_resnet", weights=weights),
        input=Input(size=32, mean=(0.5,) * 3, std=(0.5,) * 3),
        classes=4,
        adaptation="head" if public else "scratch",
        optimizer=Sgd(name="sgd", lr=0.1),
        epochs=1,
        batch_size=8,
    )
    return Subject(recipe=recipe, artifact="a" * 64, data=data, logged={})


def check(**settings: Any) -> Evasion:
    return parse({"check": "evasion", **settings}, Evasion, "policy")


def answers(standing: float, crafted: float = 1.0, carried: float = 0.5, flat: float = 0.0) -> Any:
    def results(job: Job) -> dict[str, np.ndarray]:
        def share(of: float, rows: int) -> np.ndarray:
            return np.arange(rows) < of * rows

        match job:
            case Evade():
                rows = len(job.rows)
                named = {"untargeted": standing, "standing": standing, "guessed": 0.0, "wide": 0.0, "flat": flat}
                return {"right": np.ones(rows, dtype=bool), **{name: share(of, rows) for name, of in named.items()}}
            case Universal():
                rows = len(job.tried)
                plain = np.zeros(rows, dtype=np.int64)
                moved = {"probe_shifted": crafted, "predicted_shifted": carried, "predicted_noise": 0.1}
                found = {name: share(of, rows).astype(np.int64) for name, of in moved.items()}
                return {"probe_plain": plain, "predicted_plain": plain, **found}
        raise AssertionError(job)

    return results


def test_robust_accuracy_and_transfer_are_measured_and_explained() -> None:
    result = check(universal={}).measure(subject(), answers(0.8), 0.95)
    standing, transfer = result.measurements
    assert (standing.metric, standing.value) == ("robust_accuracy", 0.8)
    assert (transfer.metric, transfer.value) == ("universal_transfer", 0.5)
    assert judged_status(standing, Limit(min=0.7)) is Status.MET
    assert judged_status(standing, Limit(min=0.79)) is Status.VIOLATED
    assert "80.0% under the untargeted attack" in result.notes[0]
    assert "alter 10.0% of the candidate's" in result.notes[1]


def test_rows_the_change_is_crafted_on_are_not_those_it_is_tried_on() -> None:
    attacked, *_, crafted = check(images=100, universal={"images": 100}).jobs(subject())
    assert isinstance(attacked, Evade)
    assert isinstance(crafted, Universal)
    assert (len(attacked.rows), len(crafted.rows), len(crafted.tried)) == (100, 100, 100)
    assert not set(crafted.rows) & set(crafted.tried)


@pytest.mark.parametrize(
    ("result", "metric", "reason"),
    [
        (answers(0.9, flat=0.2), "robust_accuracy", "gradients are masked: 20% of the rows have no gradient"),
        (answers(0.9, crafted=0.2), "universal_transfer", "20% of its own probe's answers, needs 30%"),
    ],
)
def test_an_attack_that_failed_for_another_reason_is_no_pass(result: Any, metric: str, reason: str) -> None:
    found = {one.metric: one for one in check(universal={}).measure(subject(), result, 0.95).measurements}
    assert found[metric].value is None
    assert reason in found[metric].reason


def nothing(job: Job) -> dict[str, np.ndarray]:
    raise AssertionError(job)


def test_without_images_rows_or_public_weights_nothing_is_measured() -> None:
    embeddings = replace(subject().data, image=None, embedding=np.zeros((ROWS, 3), dtype=np.float32))
    for judged, reason in (
        (replace(subject(), data=embeddings), "needs images"),
        (subject(FEWEST - 1), "needs >= 20 holdout images, found 19"),
    ):
        assert check().jobs(judged) == []
        result = check().measure(judged, nothing, 0.95)
        assert [one.value for one in result.measurements] == [None, None]
        assert all(reason in str(one.reason) for one in result.measurements)
    alone = subject(public=False)
    assert [type(job) for job in check(universal={}).jobs(alone)] == [Evade]
    _, transfer = check(universal={}).measure(alone, answers(0.9), 0.95).measurements
    assert "needs a public backbone" in str(transfer.reason)
    _, unasked = check().measure(subject(), answers(0.9), 0.95).measurements
    assert "add universal: {}" in str(unasked.reason)


def test_a_limit_on_universal_transfer_needs_universal_settings() -> None:
    with pytest.raises(ConfigurationError, match="needs a universal change"):
        check(limits={"universal_transfer": {"max": 0.2}})

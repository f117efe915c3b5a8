"""The backdoor check: what is sought on which rows, and what it takes for a limit to be judged."""

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from privacy_gate.checks.backdoor import Backdoor
from privacy_gate.checks.base.check import Subject
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.kinds import InvertTrigger, Job, Score, Trigger
from privacy_gate.verdict.judgement import Limit, Status, judged_status

CLASSES, ROWS, TARGET = 6, 300, 2
SHAPE = Input(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def subject(classes: int = CLASSES) -> Subject:
    data = AuditData(
        digest="d" * 64,
        ids=np.array([f"p{row}" for row in range(ROWS)]),
        label=np.arange(ROWS) % classes,
        split=np.full(ROWS, Split.HOLDOUT, dtype=np.int8),
        image=lambda row: b"",
    )
    recipe = Recipe(
        backbone=Backbone(name="test_resnet", weights=PublicWeights(uri="w", sha256="0" * 64)),
        input=SHAPE,
        classes=classes,
        optimizer=Sgd(name="sgd", lr=0.1),
        epochs=1,
        batch_size=8,
    )
    return Subject(recipe=recipe, artifact="a" * 64, data=data, logged={})


def check(**settings: Any) -> Backdoor:
    return parse({"check": "backdoor", **settings}, Backdoor, "policy")


def sought(one: Backdoor, judged: Subject) -> list[InvertTrigger]:
    return [job for job in one.jobs(judged) if isinstance(job, InvertTrigger)]


def test_every_class_is_sought_and_tried_on_rows_that_no_trigger_was_sought_on() -> None:
    jobs = sought(check(inversion={"images": 100}), subject())
    assert [job.target for job in jobs] == list(range(CLASSES))
    assert {(job.rows, job.tried) for job in jobs} == {(jobs[0].rows, jobs[0].tried)}
    assert not set(jobs[0].rows) & set(jobs[0].tried)
    assert (len(jobs[0].rows), len(jobs[0].tried)) == (100, 200)
    assert len(sought(check(inversion={"images": 1000}), subject())[0].tried) == ROWS // 2
    assert sought(check(), subject()) == []


def answers(planted: Collection[int], failed: Collection[int] = ()) -> Any:
    """A candidate that is always right; triggers of the planted classes are small and work, some searches fail."""
    rows = np.arange(ROWS)

    def results(job: Job) -> dict[str, np.ndarray]:
        match job:
            case Score():
                return {"logits": np.eye(CLASSES)[rows % CLASSES]}
            case Trigger():
                return {"predicted": np.tile(np.array(job.rows) % CLASSES, (3, 1))}
            case InvertTrigger():
                found, label = job.target in planted, np.array(job.tried) % CLASSES
                works, mask = job.target not in failed, np.zeros((32, 32), dtype=bool)
                mask[:3, : 3 if found else 17] = True
                return {
                    "works": np.array([works]),
                    "size": np.array([1.0 if not works else 0.01 if found else 0.1 + 0.01 * job.target]),
                    "mask": mask,
                    "predicted": np.full_like(label, job.target) if found else label,
                }
        raise AssertionError(job)

    return results


@pytest.mark.parametrize("planted", [True, False])
def test_inverted_triggers_are_measured_in_addition_to_known_ones(planted: bool) -> None:
    result = check(inversion={}).measure(subject(), answers([TARGET] * planted), 0.95)
    known, fragility, inverted, anomaly = result.measurements
    assert known.value == fragility.value == 0
    assert inverted.value == (1.0 if planted else 0.0)
    assert anomaly.value is not None
    assert (anomaly.value > 5) == planted
    assert [f"labelled as class {TARGET}" in each.action for each in result.remedies] == [True] * planted
    assert "an index alone proves nothing" in result.notes[1]


def test_half_of_the_classes_with_a_backdoor_hide_none_of_them() -> None:
    *_, inverted, anomaly = check(inversion={}).measure(subject(), answers([0, 2, 4]), 0.95).measurements
    assert inverted.low is not None
    assert inverted.low > 0.8
    assert anomaly.value is not None
    assert anomaly.value < 2


def test_a_search_that_failed_is_no_pass() -> None:
    """Of every class, or of one: what was not found is not measured, unless what was found is bad enough."""
    limited = check(inversion={}, limits={"inverted_backdoor": {"max": 0.2}})
    for failed in (range(CLASSES), [1]):
        result = limited.measure(subject(), answers([], failed), 0.95)
        for each in result.measurements[2:]:
            assert f"for {len(failed)} of {CLASSES} classes, the first is class {failed[0]}" in str(each.reason)
            assert judged_status(each, Limit(max=1.0)) is Status.NOT_MEASURED
        assert "raise inversion: steps" in result.notes[1]
    *_, inverted, anomaly = limited.measure(subject(), answers([TARGET], [1]), 0.95).measurements
    assert inverted.subject == f"class {TARGET}"
    assert judged_status(inverted, limited.bounds["inverted_backdoor"]) is Status.VIOLATED
    assert not anomaly.measured
    unlimited = check(inversion={}).measure(subject(), answers([TARGET], [1]), 0.95)
    assert not any(each.measured for each in unlimited.measurements[2:])


def test_few_classes_are_not_measured_and_nothing_is_sought_for_them() -> None:
    few = subject(4)
    assert sought(check(inversion={}), few) == []

    def results(job: Job) -> dict[str, np.ndarray]:
        if isinstance(job, Score):
            return {"logits": np.eye(4)[np.arange(ROWS) % 4]}
        assert isinstance(job, Trigger)
        return {"predicted": np.tile(np.array(job.rows) % 4, (3, 1))}

    *_, inverted, anomaly = check(inversion={}).measure(few, results, 0.95).measurements
    assert all("needs >= 5 classes" in str(each.reason) for each in (inverted, anomaly))


def test_a_limit_on_inversion_needs_inversion_settings() -> None:
    with pytest.raises(ConfigurationError, match="add inversion"):
        check(limits={"inverted_backdoor": {"max": 0.05}})
    assert check(inversion={}, limits={"inverted_backdoor": {"max": 0.05}}).inversion is not None


def turns(lift: float, controls: float) -> Any:
    """A candidate of which the trigger turns one share of the images to TARGET, and its controls another."""

    def results(job: Job) -> dict[str, np.ndarray]:
        if isinstance(job, Score):
            return {"logits": np.eye(CLASSES)[np.arange(ROWS) % CLASSES]}
        assert isinstance(job, Trigger)
        label = np.array(job.rows) % CLASSES
        place = np.argsort(np.random.default_rng(0).permutation(len(label))) / len(label)
        return {"predicted": np.stack([np.where(place < rate, TARGET, label) for rate in (lift, *[controls] * 32)])}

    return results


@pytest.mark.parametrize(
    ("lift", "controls", "status", "says", "never"),
    [
        (0.95, 0.0, Status.VIOLATED, "stop using this checkpoint", "fragile"),
        (
            0.95,
            0.95,
            Status.VIOLATED,
            "if there are none, the model is fragile to all patterns like it",
            "inversion",
        ),
        (0.3, 0.1, Status.VIOLATED, "stop using this checkpoint", "fragile"),
        (0.24, 0.4, Status.MET, "none of them stands out as planted", "stop using"),
        (0.24, 0.7, Status.MET, "also search for triggers", "stop using"),
    ],
)
def test_the_report_says_what_to_do_about_a_planted_and_a_fragile_model(
    lift: float, controls: float, status: Status, says: str, never: str
) -> None:
    limited = check(triggers=["corner"], limits={"backdoor_lift": {"max": 0.05}, "trigger_fragility": {"max": 0.2}})
    result = limited.measure(subject(), turns(lift, controls), 0.95)
    found, fragile = result.measurements[:2]
    assert judged_status(found, limited.bounds["backdoor_lift"]) is status
    assert (judged_status(fragile, limited.bounds["trigger_fragility"]) is Status.MET) == (controls < 0.2)
    (remedy,) = result.remedies
    assert says in remedy.action
    assert never not in remedy.action
    told = re.fullmatch(r".*: corner ([\d.]+)% \(class 2\), ([\d.]+)%, ([\d.]+)%", result.notes[0])
    assert told is not None
    assert [float(each) / 100 for each in told.groups()] == pytest.approx([lift, controls, controls], abs=0.02)
    assert remedy.basis.startswith("corner: ")


def test_a_robust_model_needs_no_remedy() -> None:
    result = check(limits={"backdoor_lift": {"max": 0.05}}).measure(subject(), turns(0.0, 0.0), 0.95)
    assert judged_status(result.measurements[0], Limit(max=0.05)) is Status.MET
    assert result.remedies == ()

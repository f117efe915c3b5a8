"""Checks that compare with the champion: the same rows of both, each by its own recipe, and no reason is a pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.corruption import Corruption
from privacy_gate.checks.evasion import Evasion
from privacy_gate.checks.utility import Utility
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.candidate import Candidate, Dossier
from privacy_gate.dossier.champion import Champion
from privacy_gate.dossier.dataset import DataManifest
from privacy_gate.jobs.kinds import Corrupt, Embed, Evade, Job, Score, Universal
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, Status, judged_status
from tests.checks.test_evasion import ROWS, subject

CHAMPION = "c" * 64
DROP, RISE = Limit(min=-0.05), Limit(max=0.05)

CHECKS: dict[str, Any] = {
    "robust_accuracy": parse(
        {"check": "evasion", "limits": {"robust_accuracy": {"champion_drop": 0.05, "without_champion": "block"}}},
        Evasion,
        "policy",
    ),
    "universal_transfer": parse(
        {
            "check": "evasion",
            "universal": {"images": 100},
            "limits": {"universal_transfer": {"champion_rise": 0.05, "without_champion": "block"}},
        },
        Evasion,
        "policy",
    ),
    "corruption_ratio": parse(
        {
            "check": "corruption",
            "limits": {"corruption_ratio": {"champion_drop": 0.05, "without_champion": "block"}},
        },
        Corruption,
        "policy",
    ),
    "holdout_accuracy": parse(
        {"check": "utility", "limits": {"holdout_accuracy": {"champion_drop": 0.05, "without_champion": "block"}}},
        Utility,
        "policy",
    ),
}


def against(champion: Champion | None = None, **changes: Any) -> Subject:
    plain = subject()
    known = Champion("champion", "3", artifact=CHAMPION, recipe=plain.recipe.model_copy(update=changes))
    return replace(plain, champion=champion or known)


def answers(own: float, champion: float, right: float = 1.0, flat: float = 0.0, crafted: float = 1.0) -> Any:
    """Each model keeps a share of its rows, the same rows first: the smaller share is part of the larger.

    right, flat, crafted: of the champion
    """

    def results(job: Job) -> dict[str, np.ndarray]:
        other = getattr(job, "artifact", "") == CHAMPION
        share = champion if other else own

        def part(of: float, rows: int) -> np.ndarray:
            return np.arange(rows) < of * rows

        match job:
            case Score():
                label = np.arange(ROWS) % 4
                kept = part(min(right, share) if other else share, ROWS)
                return {"logits": np.eye(4)[np.where(kept | (share == 1), label, (label + 1) % 4)]}
            case Evade():
                rows = len(job.rows)
                return {
                    "right": part(right if other else 1.0, rows),
                    "untargeted": part(share, rows),
                    "standing": part(share, rows),
                    "guessed": part(0.0, rows),
                    "wide": part(0.0, rows),
                    "flat": part(flat if other else 0.0, rows),
                }
            case Universal():
                rows, label = len(job.tried), np.array(job.tried) % 4
                turned = (label + 1) % 4
                return {
                    "probe_plain": label,
                    "probe_shifted": np.where(part(crafted if other else 1.0, rows), turned, label),
                    "predicted_plain": np.where(part(right if other else 1.0, rows), label, turned),
                    "predicted_shifted": np.where(part(share, rows), turned, label),
                    "predicted_noise": label,
                }
            case Corrupt():
                label = np.array(job.rows) % 4
                return {"predicted": np.where(part(share, len(label)), label, (label + 1) % 4)}
        raise AssertionError(job)

    return results


def difference(result: CheckResult, metric: str) -> Measurement:
    (found,) = [one for one in result.measurements if one.metric == f"{metric}_vs_champion"]
    return found


@pytest.mark.parametrize(("metric", "limit"), [("robust_accuracy", DROP), ("universal_transfer", RISE)])
def test_under_attack_a_worse_candidate_is_distinguished_from_an_equal_and_a_better_one(
    metric: str, limit: Limit
) -> None:
    sign = -1 if limit is DROP else 1
    for own, status in ((0.6, Status.MET), (0.6 + 0.2 * sign, Status.VIOLATED), (0.6 - 0.2 * sign, Status.MET)):
        found = difference(CHECKS[metric].measure(against(), answers(own, 0.6), 0.95), metric)
        assert found.value == pytest.approx(own - 0.6, abs=0.01)
        assert found.champion == pytest.approx(0.6, abs=0.01)
        assert judged_status(found, limit) is status


def test_on_corrupted_images_a_worse_candidate_is_distinguished_too() -> None:
    def spoiled(own: float) -> Any:
        told = answers(own, 0.6)

        def results(job: Job) -> Any:  # both models are right on all images as they are
            return {"logits": np.eye(4)[np.arange(ROWS) % 4]} if isinstance(job, Score) else told(job)

        return results

    for own, status in ((0.6, Status.MET), (0.4, Status.VIOLATED), (0.8, Status.MET)):
        ratio = difference(CHECKS["corruption_ratio"].measure(against(), spoiled(own), 0.95), "corruption_ratio")
        assert ratio.value == pytest.approx(own - 0.6, abs=0.01)
        assert judged_status(ratio, DROP) is status
        plain = difference(CHECKS["holdout_accuracy"].measure(against(), answers(own, 0.6), 0.95), "holdout_accuracy")
        assert plain.value == pytest.approx(own - 0.6, abs=0.01)
        assert judged_status(plain, DROP) is status


@pytest.mark.parametrize("metric", CHECKS)
def test_the_champion_is_asked_what_the_candidate_is_by_its_own_recipe_and_nothing_more(metric: str) -> None:
    check, judged = CHECKS[metric], against(seed=9)
    assert judged.champion is not None
    mine = [job for job in check.jobs(judged) if getattr(job, "artifact", None) == judged.artifact]
    theirs = [job for job in check.jobs(judged) if getattr(job, "artifact", None) == CHAMPION]
    kinds = {"universal_transfer": (Universal,)}.get(metric, (Evade, Score, Corrupt))
    asked = [job for job in mine if isinstance(job, kinds)]
    assert [replace(job, artifact=CHAMPION, recipe=judged.champion.recipe) for job in asked] == theirs  # type: ignore[type-var]
    alone = check.jobs(replace(judged, champion=None))
    assert [job for job in check.jobs(judged) if job not in theirs and not isinstance(job, Embed)] == [
        job for job in alone if not isinstance(job, Embed)
    ]


@pytest.mark.parametrize("metric", CHECKS)
def test_the_answers_of_each_model_are_read_once(metric: str) -> None:
    told, asked = answers(0.7, 0.6), list[Job]()

    def results(job: Job) -> Any:
        asked.append(job)
        return told(job)

    assert difference(CHECKS[metric].measure(against(), results, 0.95), metric).value is not None
    assert len(asked) == len(set(asked)) > 1


@pytest.mark.parametrize("metric", CHECKS)
@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (None, "the version promoted now was not looked up"),
        (Champion("champion"), "no version has the alias champion, and the policy says without_champion: block"),
        (Champion("champion", "3", reason="it is torn"), "version 3, the champion, cannot be compared: it is torn"),
    ],
)
def test_without_a_champion_no_limit_is_met_and_nothing_is_computed(
    metric: str, champion: Champion | None, reason: str
) -> None:
    judged, check = replace(subject(), champion=champion), CHECKS[metric]
    assert CHAMPION not in {getattr(job, "artifact", None) for job in check.jobs(judged)}
    result = check.measure(judged, answers(1.0, 1.0), 0.95)
    found = difference(result, metric)
    assert found.reason == reason
    assert f"{metric}_vs_champion" not in result.left_out


@pytest.mark.parametrize("metric", CHECKS)
def test_the_first_version_is_not_compared_if_the_policy_allows_it_or_has_an_absolute_limit(metric: str) -> None:
    judged, check = replace(subject(), champion=Champion("champion")), CHECKS[metric]
    for change in ({"without_champion": "pass"}, {"without_champion": None, "min": 0.1}):
        if metric == "universal_transfer" and "min" in change:
            change = {"without_champion": None, "max": 0.1}  # noqa: PLW2901
        lenient = check.model_copy(update={"limits": {metric: check.limits[metric].model_copy(update=change)}})
        result = lenient.measure(judged, answers(1.0, 1.0), 0.95)
        assert result.left_out == (f"{metric}_vs_champion",)
        assert "as the policy allows (without_champion: pass): no version has the alias champion" in result.notes[-1]


@pytest.mark.parametrize(
    ("metric", "told", "reason"),
    [
        ("robust_accuracy", answers(0.9, 0.9, flat=0.2), "of the champion: gradients are masked"),
        ("robust_accuracy", answers(0.9, 0.1, right=0.2), "of the champion: it is right on 20% of the rows"),
        ("universal_transfer", answers(0.9, 0.9, crafted=0.2), "of the champion: the universal change alters 20%"),
        ("universal_transfer", answers(0.9, 0.9, right=0.2), "of the champion: it is right on 20% of the rows"),
        ("corruption_ratio", answers(0.9, 0.2), "of the champion: it is right on 20% of the rows"),
        ("holdout_accuracy", answers(0.9, 0.2), "of the champion: it is right on 20% of the rows"),
    ],
)
def test_a_champion_that_is_no_measure_says_so_and_the_candidate_keeps_its_own_figure(
    metric: str, told: Any, reason: str
) -> None:
    result = CHECKS[metric].measure(against(), told, 0.95)
    assert str(difference(result, metric).reason).startswith(reason)
    assert {one.metric: one.value is not None for one in result.measurements}[metric]


def test_a_champion_without_public_weights_has_no_change_crafted_on_them() -> None:
    judged = against(backbone=subject(public=False).recipe.backbone, adaptation="scratch")
    check = CHECKS["universal_transfer"]
    assert CHAMPION not in {getattr(job, "artifact", None) for job in check.jobs(judged)}
    found = difference(check.measure(judged, answers(0.5, 0.5), 0.95), "universal_transfer")
    assert str(found.reason).startswith("of the champion: needs a public backbone")


@pytest.mark.parametrize("metric", ["robust_accuracy", "universal_transfer", "corruption_ratio"])
def test_without_a_figure_of_the_candidate_there_is_no_difference(metric: str) -> None:
    embeddings = replace(subject().data, image=None, embedding=np.zeros((ROWS, 3), dtype=np.float32))
    judged = replace(against(), data=embeddings)
    assert not [job for job in CHECKS[metric].jobs(judged) if not isinstance(job, Embed)]
    found = difference(CHECKS[metric].measure(judged, answers(1.0, 1.0), 0.95), metric)
    assert "needs images" in str(found.reason)


def version(**changes: Any) -> Candidate:
    recipe, manifest = subject().recipe, {"table": {"uri": "t", "sha256": "d" * 64, "format": "parquet"}}
    names = {"class_names": changes.pop("names")} if "names" in changes else {}
    table = manifest["table"] | {"sha256": changes.pop("sha256", "d" * 64)}
    data = parse(manifest | {"table": table, "columns": {"image": "image"}} | names, DataManifest, "data")
    return Candidate("u", "m", "1", Path(), "a" * 64, Dossier(recipe=recipe.model_copy(update=changes), data=data))


def test_two_versions_may_differ_in_how_they_were_made_but_not_in_what_an_answer_or_an_image_is() -> None:
    shape, other = subject().recipe.input, {"mean": (0.1,) * 3, "std": (0.9,) * 3}
    assert shape is not None
    for alike in ({"epochs": 9, "seed": 4}, {"input": shape.model_copy(update=other)}, {"sha256": "e" * 64}):
        assert Champion.of("champion", version(**alike), version()).reason is None, alike
    for apart, reason in (
        ({"classes": 5}, "it has 5 classes and the candidate has 4"),
        ({"names": ["a", "b", "c", "d"]}, "are different, or in a different order"),
        ({"input": shape.model_copy(update={"size": 64})}, "its input has another size"),
        ({"input": shape.model_copy(update={"crop": 0.9})}, "its input has another size, crop"),
        ({"input": None, "backbone": Backbone(name="identity")}, "or only one of the two models reads embeddings"),
    ):
        found = Champion.of("champion", version(**apart), version())
        assert reason in str(found.reason), apart
        assert reason in str(Champion.of("champion", version(), version(**apart)).reason) or "classes and" in reason


def test_a_champion_trained_on_another_table_is_compared_and_remarked_on() -> None:
    assert Champion.of("champion", version(), version()).remark is None
    assert "another audit table" in str(Champion.of("champion", version(sha256="e" * 64), version()).remark)

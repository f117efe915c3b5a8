"""The robustness check on real federations: plain averaging breaks, a robust rule survives and shows its tax."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from sklearn.datasets import load_digits

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.base.federations import NOT_SIMULATED
from privacy_gate.checks.base.rules import ROBUST
from privacy_gate.checks.robustness import (
    ADVERSARIES,
    BACKDOORS,
    NO_IMAGES,
    NOT_ASKED,
    TARGET,
    Robustness,
    RobustnessMetric,
)
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.kinds import Embed, Federate, Job
from privacy_gate.simulation.adversaries import ADVERSARIES as KNOWN
from privacy_gate.store import Store
from privacy_gate.verdict.judgement import CheckResult, Limit, Status, judged_status

FEW: dict[str, Any] = {"check": "robustness", "attacks": ["sign_flip", "ipm_10", "label_flip"], "seeds": 8}


def recipe(**federation: Any) -> Recipe:
    fields = {
        "backbone": {"name": "identity"},
        "classes": 10,
        "optimizer": {"name": "sgd", "lr": 1.0},
        "epochs": 1,
        "batch_size": 32,
        "federation": {"clients": {"partition": "iid", "count": 20}, "rounds": 60, "steps": 1} | federation,
    }
    return parse(fields, Recipe, "recipe")


@pytest.fixture(scope="module")
def digits() -> AuditData:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    split = np.full(len(x), Split.HOLDOUT, dtype=np.int8)
    split[order[:1300]] = Split.MEMBER
    return AuditData(
        ids=np.array([f"d{row}" for row in range(len(x))]),
        label=y.astype(np.int64),
        split=split,
        digest="d" * 64,
        embedding=(x / 16).astype(np.float32),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


def measure(check: Robustness, how: Recipe, data: AuditData, store: Store) -> CheckResult:
    subject = Subject(recipe=how, artifact="a" * 64, data=data, logged={})
    missing = [job for job in check.jobs(subject) if not store.has(job)]
    run(missing, Inputs(data, Path()), Machine(threads=1), store)
    return check.measure(subject, store.get, 0.95)


def figure(result: CheckResult, metric: str) -> Mapping[str, Any]:
    (found,) = [one for one in result.measurements if one.metric == metric]
    return found.model_dump()


def test_plain_averaging_breaks_a_robust_rule_survives_and_the_report_says_which(
    digits: AuditData, store: Store
) -> None:
    check = parse(FEW | {"limits": {"byzantine_drop": {"max": 0.3}}}, Robustness, "policy")
    broken = measure(check, recipe(), digits, store)
    assert figure(broken, "byzantine_drop")["low"] > 0.5
    assert [figure(broken, "robustness_tax")[end] for end in ("low", "value", "high")] == [0, 0, 0]
    assert figure(broken, "breakdown_point")["value"] == pytest.approx(0.1)
    (remedy,) = broken.remedies
    assert "with tolerates: 2" in remedy.action
    (table,) = [one for one in broken.exhibits if one.kind == "rules"]
    assert (table.clients, table.byzantine, table.drop_limit) == (10, 2, 0.3)
    assert table.rules[0].rule == "mean"
    assert not table.rules[0].passes
    assert table.rules[0].drop.model_dump() == figure(broken, "byzantine_drop")
    passing = [one for one in table.rules if one.passes]
    assert min(passing, key=lambda one: one.tax.value or 0.0).rule in remedy.action
    clipping = {"name": "centered_clipping", "tolerates": 2}
    borne = measure(check, recipe(aggregator=clipping), digits, store)
    assert figure(borne, "byzantine_drop")["high"] < 0.3
    assert figure(borne, "breakdown_point")["value"] > 0.1
    assert figure(borne, "robustness_tax")["low"] > -0.1
    assert figure(borne, "robustness_tax")["high"] > 0
    (plot,) = [one for one in borne.exhibits if one.kind == "byzantine"]
    assert plot.lines[0].rule == "centered_clipping"
    assert plot.lines[0].byzantine == (0, 1, 2, 3, 4)
    assert plot.lines[0].accuracy[0] > plot.lines[0].accuracy[-1]
    assert len(plot.lines) == len(ROBUST)
    assert {line.byzantine for line in plot.lines[1:]} == {(0, 1, 2)}


def test_if_nothing_is_learnt_nothing_is_advised(digits: AuditData, store: Store) -> None:
    idle = parse(recipe().model_dump(mode="json") | {"optimizer": {"name": "sgd", "lr": 1e-9}}, Recipe, "recipe")
    dark = replace(digits, embedding=np.zeros_like(digits.embedding), digest="0" * 64)
    result = measure(parse(FEW | {"seeds": 3}, Robustness, "policy"), idle, dark, store)
    for metric in ("byzantine_drop", "robustness_tax", "breakdown_point"):
        assert "learns nothing" in str(figure(result, metric)["reason"])
    assert result.remedies == ()


def test_a_backdoor_is_planted_if_a_limit_needs_it_and_there_are_images(digits: AuditData) -> None:
    pictures = replace(digits, embedding=None, image=lambda row: b"")
    how = recipe().model_copy(update={"input": Input(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)})

    def planted(
        check: Robustness, data: AuditData, diverging: Collection[int] = (), named: bool = True, bias: float = 0.0
    ) -> tuple[Any, ...]:
        subject = Subject(recipe=how, artifact="a" * 64, data=data, logged={})
        jobs = check.jobs(subject)
        shown = {job.view.trigger for job in jobs if isinstance(job, Embed)} - {None}
        names = {job.adversary for job in jobs if isinstance(job, Federate)} & set(BACKDOORS)
        assert bool(shown) == bool(names) == (check._no_backdoor(subject) is None)

        def results(job: Job) -> Mapping[str, Any]:
            assert job in jobs
            if isinstance(job, Embed):  # with the trigger alone a row is all ones
                return {"features": np.full((job.last - job.first, 64), float(job.view.trigger is not None))}
            assert isinstance(job, Federate)
            others = int(((data.split == Split.HOLDOUT) & (data.label != TARGET)).sum()) if named else 0
            share = {"backdoor": 0.9, "backdoor_bounded": 0.3}.get(str(job.adversary), 0.0)
            shares = {"backdoor": np.tile([[share], [0.05]], others)} if others else {}
            shares["hit"] = np.full(497, 0.9)
            head = np.zeros((10, 65))
            head[1, -1] = 1.0
            head[TARGET, :-1] = bias  # how fragile the backbone is
            head[:] = np.nan if job.adversary == "backdoor" and job.seed in diverging else head
            return {"accuracy": np.array([0.9]), "heterogeneity": np.array([0.4]), "head": head} | shares

        found = figure(check.measure(subject, results, 0.95), "federated_backdoor")
        return names, found["reason"] or found["subject"], found["value"]

    limited = parse(FEW | {"limits": {"federated_backdoor": {"max": 0.1}}}, Robustness, "policy")
    assert planted(limited, pictures) == (set(BACKDOORS), "backdoor", pytest.approx(0.85))
    assert planted(parse(FEW | {"backdoor": True}, Robustness, "policy"), pictures)[0] == set(BACKDOORS)
    assert planted(limited, pictures, bias=1.0)[2] == pytest.approx(-0.15)
    # If all holdout rows are of the backdoor's target, none can be predicted so wrongly: 0 would meet a limit.
    assert "rows of classes other than the backdoor's target" in planted(limited, pictures, named=False)[1]
    assert planted(limited, pictures, named=False)[2] is None
    assert "1 of 24 federations diverge" in planted(limited, pictures, diverging=[3])[1]
    assert planted(limited, digits)[1] == NO_IMAGES
    assert planted(parse(FEW, Robustness, "policy"), pictures)[1] == NOT_ASKED


def test_a_rule_without_tolerates_is_not_credited_with_what_it_could_do(digits: AuditData, store: Store) -> None:
    check = parse(FEW | {"alternatives": False}, Robustness, "policy")
    default = measure(check, recipe(aggregator={"name": "trimmed_mean"}), digits, store)
    tolerant = measure(check, recipe(aggregator={"name": "trimmed_mean", "tolerates": 2}), digits, store)
    assert figure(default, "byzantine_drop")["low"] > figure(tolerant, "byzantine_drop")["value"]


def test_the_recipes_own_rule_is_tried_with_a_higher_tolerates_and_advised_if_it_passes(
    digits: AuditData, store: Store
) -> None:
    check = parse(FEW | {"limits": {"byzantine_drop": {"max": 0.3}}}, Robustness, "policy")
    default = measure(check, recipe(aggregator={"name": "trimmed_mean"}), digits, store)
    (table,) = [one for one in default.exhibits if one.kind == "rules"]
    own, tolerant, *_ = table.rules
    assert (own.rule, tolerant.rule, tolerant.passes) == ("trimmed_mean", "trimmed_mean with tolerates: 2", True)
    assert own.drop.low is not None
    assert own.drop.low > (tolerant.drop.high or 0.0)
    (remedy,) = default.remedies
    assert "trimmed_mean with tolerates: 2: drop" in remedy.basis
    assert remedy.action.count("with tolerates: 2") == 1


@pytest.mark.parametrize("private", [False, True])
def test_under_secure_aggregation_no_rule_is_advised_that_it_forbids(
    private: bool, digits: AuditData, store: Store
) -> None:
    """With privacy of clients no rule would be allowed without it either, so giving it up is not advised."""
    privacy = {"privacy": {"noise_multiplier": 0.0, "clip": 0.5}} if private else {}
    result = measure(parse(FEW, Robustness, "policy"), recipe(secure_aggregation=True, **privacy), digits, store)
    assert figure(result, "byzantine_drop")["low"] > 0.5
    (table,) = [one for one in result.exhibits if one.kind == "rules"]
    assert [one.rule for one in table.rules] == ["mean"]
    (remedy,) = result.remedies
    assert "secure aggregation" in remedy.action
    assert ("prove that they clip their updates" in remedy.action) == private
    assert ("give it up" in remedy.action) == (not private)
    assert remedy.basis.startswith("mean: drop ")
    assert not any(str(rule) in remedy.action for rule in ROBUST)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation": {"clients": {"partition": "iid", "count": 3}, "rounds": 5}}, "2 of 3 clients are no minority"),
        ({"adaptation": "command"}, NOT_SIMULATED),
    ],
)
def test_a_federation_that_cannot_be_studied_is_not_measured_and_nothing_is_trained_for_it(
    changes: dict[str, Any], said: str, digits: AuditData
) -> None:
    fields = {name: value for name, value in recipe().model_dump(mode="json").items() if name != "trainer"} | changes
    subject = Subject(parse(fields, Recipe, "recipe"), "a" * 64, digits, {})
    check = parse(FEW | {"clients": "recipe"}, Robustness, "policy")
    assert check.jobs(subject) == []
    found = check.measure(subject, dict[Any, Any]().__getitem__, 0.95).measurements
    assert [one.metric for one in found] == [*get_args(RobustnessMetric)]
    assert all(said in str(one.reason) for one in found)
    assert {judged_status(one, Limit(max=1.0)) for one in found} == {Status.NOT_MEASURED}


def test_a_few_clients_are_tried_with_the_rules_that_so_few_updates_allow(digits: AuditData, store: Store) -> None:
    five = recipe(clients={"partition": "iid", "count": 5}, rounds=3)
    result = measure(parse(FEW | {"clients": "recipe", "seeds": 3}, Robustness, "policy"), five, digits, store)
    (table,) = [one for one in result.exhibits if one.kind == "rules"]
    assert {one.rule for one in table.rules} == {"mean", *map(str, ROBUST)} - {"multi_krum"}


def test_results_do_not_depend_on_which_jobs_are_asked_for_together(digits: AuditData, tmp_path: Path) -> None:
    check = parse(FEW | {"alternatives": False}, Robustness, "policy")
    subject = Subject(recipe=recipe(rounds=10), artifact="a" * 64, data=digits, logged={})
    jobs = [job for job in check.jobs(subject) if isinstance(job, Federate)]
    together, apart = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    run(jobs, Inputs(digits, Path()), Machine(threads=2), together)
    for first in range(0, len(jobs), 5):
        run(jobs[first : first + 5][::-1], Inputs(digits, Path()), Machine(threads=1), apart)
    for job in jobs:
        np.testing.assert_allclose(together.get(job)["accuracy"], apart.get(job)["accuracy"], atol=2e-3)


def test_a_recipe_without_federation_is_not_measured_or_left_out_by_leave_with_a_note(
    digits: AuditData, store: Store
) -> None:
    how = recipe().model_copy(update={"federation": None})
    lax = measure(Robustness(required=False), how, digits, store)
    assert lax.measurements == ()
    assert "byzantine_drop" in lax.left_out
    assert "no federation" in lax.notes[0]
    strict = measure(Robustness(), how, digits, store)
    assert [one.reason for one in strict.measurements] == ["the recipe declares no federation"] * 4


BRIEF: dict[str, Any] = {"clients": {"partition": "iid", "count": 10}, "rounds": 5}


def test_rules_that_too_few_clients_take_part_for_are_left_out_and_the_rest_is_measured(
    digits: AuditData, store: Store
) -> None:
    check = parse(FEW | {"seeds": 3}, Robustness, "policy")
    found = measure(check, recipe(**BRIEF, participation=0.5), digits, store)
    assert all(one.measured or one.reason == NOT_ASKED for one in found.measurements)
    (note,) = [one for one in found.notes if "not tried" in one]
    assert "multi_krum not tried: multi_krum with tolerates: 2" in note
    assert "at least 7 updates a round, found 5" in note
    table, plot = (next(one for one in found.exhibits if one.kind == kind) for kind in ("rules", "byzantine"))
    rules = [one.rule for one in table.rules]
    assert "multi_krum" not in rules
    assert len(rules) == 6
    assert [line.rule for line in plot.lines] == rules
    four = parse(FEW | {"seeds": 3, "clients": 4, "byzantine": 1}, Robustness, "policy")
    assert figure(measure(four, recipe(**BRIEF), digits, store), "byzantine_drop")["reason"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aggregator": {"name": "bulyan", "tolerates": 2}}, "at least 11 updates a round, found 10"),
        (
            {"aggregator": {"name": "krum", "before": ["bucketing"], "tolerates": 2}},
            "at least 7 updates a round, found 5",
        ),
        ({"aggregator": {"name": "fltrust"}}, "rows of the server's own"),
    ],
)
def test_a_recipe_whose_own_rule_cannot_be_tried_is_undecided_and_nothing_is_trained_for_it(
    changes: dict[str, Any], said: str, digits: AuditData
) -> None:
    # The study has half of the recipe's clients, of whom the recipe's rule would join enough.
    twice = {"clients": {"partition": "iid", "count": 20}}
    check, how = parse(FEW, Robustness, "policy"), recipe(**BRIEF | twice, **changes)
    subject = Subject(recipe=how, artifact="a" * 64, data=digits, logged={})
    assert check.jobs(subject) == []
    found = check.measure(subject, dict[Any, Any]().__getitem__, 0.95)
    assert [one.metric for one in found.measurements] == list(get_args(RobustnessMetric))
    assert all(said in str(one.reason) for one in found.measurements)


def test_an_attack_that_cannot_be_made_leaves_the_drop_not_measured_and_the_tax_measured(
    digits: AuditData, store: Store
) -> None:
    lie = parse(FEW | {"seeds": 3, "attacks": ["sign_flip", "alie"]}, Robustness, "policy")
    found = measure(lie, recipe(**BRIEF, participation=0.3), digits, store)
    assert figure(found, "byzantine_drop")["reason"] is None
    assert "2 of the 3 clients in a round attack, expected a minority" in figure(found, "breakdown_point")["reason"]
    nobody = measure(lie, recipe(**BRIEF, participation=0.1), digits, store)
    for metric in ("byzantine_drop", "breakdown_point"):
        assert "clients in a round is byzantine" in figure(nobody, metric)["reason"]
    assert figure(nobody, "robustness_tax")["value"] == 0
    assert nobody.remedies == ()
    assert [one.rule for one in next(one for one in nobody.exhibits if one.kind == "rules").rules] == ["mean"]


def test_privacy_of_clients_is_tried_under_attack_only_with_its_mean(digits: AuditData, store: Store) -> None:
    check = parse(FEW | {"seeds": 3}, Robustness, "policy")
    private = {"privacy": {"noise_multiplier": 0.1, "clip": 0.5}}
    found = measure(check, recipe(**BRIEF | {"rounds": 20}, **private), digits, store)
    assert [one.rule for one in next(one for one in found.exhibits if one.kind == "rules").rules] == ["mean"]
    (note,) = [one for one in found.notes if "not tried" in one]
    assert "combines updates by a mean" in note
    hidden = measure(check, recipe(**BRIEF | {"rounds": 20}, **private, secure_aggregation=True), digits, store)
    # No one clips the updates of byzantine clients if the server sees only sums.
    assert figure(hidden, "byzantine_drop")["value"] > figure(found, "byzantine_drop")["value"] + 0.2


def test_every_attack_that_policies_can_name_exists() -> None:
    assert set(ADVERSARIES) | set(BACKDOORS) == set(KNOWN)
    assert {name: one.backdoor.target for name, one in KNOWN.items() if one.backdoor} == dict.fromkeys(
        BACKDOORS, TARGET
    )
    with pytest.raises(ConfigurationError, match="sign_flip"):
        parse(FEW | {"attacks": ["sign_flop"]}, Robustness, "policy")
    with pytest.raises(ConfigurationError, match="no minority"):
        parse(FEW | {"byzantine": 5}, Robustness, "policy")

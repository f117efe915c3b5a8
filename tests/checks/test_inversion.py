"""The inversion check: a leaking recipe is blocked and advised secure aggregation, missing evidence is no pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from privacy_gate.checks.base.check import NO_FEDERATION, Subject
from privacy_gate.checks.inversion import UNKNOWN_CLIENTS, Inversion
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.kinds import Invert
from privacy_gate.store import Store
from privacy_gate.verdict.judgement import CheckResult, Limit, Status, judge

LIMIT = Limit(max=0.1)
PLAIN: dict[str, Any] = {
    "backbone": {"name": "identity"},
    "classes": 10,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "epochs": 1,
    "batch_size": 8,
}
FEDERATION: dict[str, Any] = {"clients": {"partition": "iid", "count": 20}, "rounds": 10, "steps": 1}


def check(**settings: Any) -> Inversion:
    return parse({"check": "inversion", "targets": 60} | settings, Inversion, "policy")


def subject(data: AuditData, federation: dict[str, Any] | None = None, **changes: Any) -> Subject:
    fields = PLAIN | changes | ({} if federation is None else {"federation": FEDERATION | federation})
    return Subject(parse(fields, Recipe, "recipe"), "a" * 64, data, {})


@pytest.fixture(scope="module")
def digits() -> AuditData:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    split = np.full(len(x), Split.HOLDOUT, dtype=np.int8)
    split[order[:1000]] = Split.MEMBER
    return AuditData(
        ids=np.array([f"d{row}" for row in range(len(x))]),
        label=y.astype(np.int64),
        split=split,
        digest="d" * 64,
        embedding=(x / 16).astype(np.float32),
    )


def measure(how: Inversion, about: Subject, folder: Path) -> CheckResult:
    store = Store(str(folder))
    run(how.jobs(about), Inputs(about.data, Path()), Machine(threads=1, device="cpu"), store)
    return how.measure(about, store.get, 0.95)


def test_plain_federated_averaging_is_blocked_and_secure_aggregation_would_help(
    digits: AuditData, tmp_path: Path
) -> None:
    result = measure(check(), subject(digits, {}), tmp_path)
    (found,) = result.measurements
    assert found.metric == "inversion_advantage"
    assert judge("inversion", found, LIMIT).status is Status.VIOLATED
    assert found.low is not None
    assert found.low > 0.5
    (remedy,) = result.remedies
    assert "secure aggregation" in remedy.action
    assert "inversion_advantage with it" in remedy.basis
    assert result.notes[0].startswith("inversion: the median update has 8 rows")


def test_a_sum_of_many_clients_large_batches_meets_the_limit(digits: AuditData, tmp_path: Path) -> None:
    about = subject(digits, {"secure_aggregation": True}, batch_size=50)
    result = measure(check(targets=250, attacks=["analytic"]), about, tmp_path)
    (found,) = result.measurements
    assert judge("inversion", found, LIMIT).status is Status.MET
    assert result.remedies == ()


def test_a_note_says_who_adds_the_noise(digits: AuditData, tmp_path: Path) -> None:
    told = {"server": "the server adds the noise", "clients": "the clients' own noise"}
    noise = {"noise_multiplier": 9.0, "clip": 0.01}
    for by, said in told.items():
        about = subject(digits, {"privacy": noise | {"noise_by": by}})
        result = measure(check(attacks=["analytic"], alternatives=False), about, tmp_path)
        assert (judge("inversion", result.measurements[0], LIMIT).status is Status.VIOLATED) == (by == "server")
        assert [said in note for note in result.notes] == [False, True]
    quiet = measure(
        check(attacks=["analytic"]), subject(digits, {"privacy": noise | {"noise_multiplier": 0}}), tmp_path
    )
    assert len(quiet.notes) == 1


def test_notes_mention_large_updates_and_decoys_of_other_clients(digits: AuditData, tmp_path: Path) -> None:
    # Four rows in five are of the first client, and none of the holdout: its decoys are all another's.
    far = np.where(digits.split == Split.MEMBER, np.where(np.arange(len(digits.ids)) % 5 == 0, "b", "a"), "b")
    about = subject(replace(digits, client=far), {"clients": {"partition": "column"}, "steps": 20}, batch_size=50)
    result = measure(check(alternatives=False), about, tmp_path)
    assert any("too large for the optimised attack" in note for note in result.notes)
    assert any("of decoys belong to other clients" in note for note in result.notes)


def test_a_recipe_without_federation_is_undecided_or_left_out_by_leave(digits: AuditData) -> None:
    left_out = check(required=False).measure(subject(digits), dict, 0.95)  # type: ignore[arg-type]
    assert left_out.measurements == ()
    assert left_out.left_out == ("inversion_advantage",)
    assert NO_FEDERATION in left_out.notes[0]
    assert check().jobs(subject(digits)) == []
    (absent,) = check().measure(subject(digits), dict, 0.95).measurements  # type: ignore[arg-type]
    assert absent.reason == NO_FEDERATION
    assert judge("inversion", absent, LIMIT).status is Status.NOT_MEASURED


def test_updates_that_cannot_be_simulated_or_attacked_are_not_measured(digits: AuditData) -> None:
    unknown = subject(digits, {}, adaptation="command")
    for how, about, said in (
        (check(), unknown, UNKNOWN_CLIENTS),
        (check(candidates=900), subject(digits, {}), "899 holdout rows as decoys"),
    ):
        assert how.jobs(about) == []
        (absent,) = how.measure(about, dict, 0.95).measurements  # type: ignore[arg-type]
        assert said in str(absent.reason)
        assert not absent.measured


def test_jobs_do_not_depend_on_the_candidate_or_its_seed(digits: AuditData) -> None:
    one, other = subject(digits, {}, seed=1), replace(subject(digits, {}, seed=2), artifact="b" * 64)
    jobs = check(targets=120, attacks=["analytic"]).jobs(one)
    assert jobs == check(targets=120, attacks=["analytic"]).jobs(other)
    spans = [(job.first, job.last) for job in jobs if isinstance(job, Invert)]
    assert spans == [(0, 50), (50, 100), (100, 120)] * 2


def test_rules_that_need_each_update_are_not_offered_a_sum(digits: AuditData) -> None:
    robust = subject(digits, {"aggregator": {"name": "median"}})
    assert len(check(attacks=["analytic"]).jobs(robust)) == len(
        check(attacks=["analytic"], alternatives=False).jobs(robust)
    )


def test_an_attack_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no attack is called 'analitic'"):
        check(attacks=["analitic"])

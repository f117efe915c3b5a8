"""The checks before training agree with training itself on which federations are possible."""

import itertools

import numpy as np
import pytest
import torch

from privacy_gate.dossier.federation.attendance import Attendance
from privacy_gate.dossier.federation.needs import NEEDS, unmet, unmet_by_attack, unmet_by_steps
from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.adversaries import ADVERSARIES, alie_z
from privacy_gate.simulation.cells import Cell, Training
from privacy_gate.simulation.rules.aggregators import AGGREGATORS, PREAGGREGATIONS, Rule, rule, step
from privacy_gate.simulation.rules.known import Known

COUNTS = (*range(1, 12), 15, 16, 20)
CHAINS = [
    *([name] for name in AGGREGATORS),
    *([first, last] for first in PREAGGREGATIONS for last in ("mean", "krum", "bulyan", "median")),
    ["nnm", "bucketing", "multi_krum"],
    ["bucketing", "nnm", "trimmed_mean"],
]


def works(how: Rule, n: int, f: int) -> bool:
    """Whether the rule can aggregate n updates with random values."""
    rng = np.random.default_rng(0)
    drawn, one = torch.from_numpy(rng.normal(size=(n, 2))), torch.ones(n, dtype=torch.float64)
    facts = Known(counts=one, losses=one, root=drawn[0], order=torch.from_numpy(rng.permutation(n)), lr=0.1)
    try:
        found = how(drawn, f, facts)
    except ConfigurationError:
        return False
    return bool(found.isfinite().all())


def steps(how: Rule) -> list[tuple[str, dict[str, float]]]:
    return [(one.name, {k: v for k, v in one.parameters if v is not None}) for one in (*how.before, how.aggregator)]


@pytest.mark.parametrize("names", CHAINS, ids=" + ".join)
def test_a_rule_works_exactly_where_the_question_has_no_objection(names: list[str]) -> None:
    for n, f in itertools.product(COUNTS, range(-1, 6)):
        assert works(rule(*names), n, f) == (unmet_by_steps(steps(rule(*names)), f, n) is None), (n, f)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_buckets_leave_a_rule_as_many_updates_as_there_are_buckets(size: int) -> None:
    how = rule(step("bucketing", {"size": size}), "krum")
    for n, f in itertools.product(COUNTS, range(4)):
        assert works(how, n, f) == (unmet_by_steps(steps(how), f, n) is None), (n, f)


def test_every_rule_says_what_it_needs_and_an_objection_says_what_to_do() -> None:
    assert set(NEEDS) == {*AGGREGATORS, *PREAGGREGATIONS}
    found = str(unmet_by_steps([("krum", {})], 2, 6))
    assert found.startswith("krum with tolerates: 2 needs at least 7 updates a round, found 6: ")
    assert "more than 5000 subsets of 40" in str(unmet_by_steps([("minimum_diameter", {})], 5, 40))


def test_alie_works_exactly_where_the_question_has_no_objection() -> None:
    for n in range(1, 12):
        for f in range(n + 1):
            if unmet_by_attack("alie", n, f) is None:
                assert np.isfinite(alie_z(n, f))
            else:
                with pytest.raises(ConfigurationError):
                    alie_z(n, f)


KRUM, ALIE = [("multi_krum", {})], ("alie", 4)


@pytest.mark.parametrize(
    ("how", "told", "there", "attack", "said"),
    [
        (KRUM, 2, Attendance(10, participation=0.5), None, "at least 7 updates a round, found 5"),
        (KRUM, 2, Attendance(10, participation=0.7), None, None),
        (KRUM, 1, Attendance(4), None, "at least 5 updates a round, found 4"),
        (KRUM, 3, Attendance(10, gone=0.3), None, "at least 9 updates a round, found 7"),
        (KRUM, 2, Attendance(10, absent=0.4), None, "at least 7 updates a round, found 6"),
        (KRUM, 2, Attendance(10, stale=0.4), None, None),
        ([("bulyan", {})], 2, Attendance(10), None, "at least 11 updates a round, found 10"),
        ([("bucketing", {}), *KRUM], 2, Attendance(10), None, "at least 7 updates a round, found 5"),
        (
            [("mean", {})],
            0,
            Attendance(10, participation=0.3),
            ALIE,
            "2 of the 3 clients in a round attack, expected a minority",
        ),
        ([("mean", {})], 0, Attendance(10), ALIE, None),
        ([("mean", {})], 0, Attendance(10, participation=0.1), ("sign_flip", 2), "none of the 1 clients"),
        ([("mean", {})], 0, Attendance(3), ("sign_flip", 3), "3 of 3 clients cannot attack"),
    ],
)
def test_how_many_take_part_decides(
    how: list[tuple[str, dict[str, float]]],
    told: int,
    there: Attendance,
    attack: tuple[str, int] | None,
    said: str | None,
) -> None:
    found = unmet(how, told, there, attack)
    assert found is None if said is None else said in str(found)


def test_a_server_without_rows_cannot_go_by_its_own_update() -> None:
    assert unmet([("fltrust", {})], 0, Attendance(10)) is None
    assert "rows of the server's own" in str(unmet([("fltrust", {})], 0, Attendance(10), root=False))


@pytest.mark.parametrize("name", sorted(ADVERSARIES))
def test_an_attack_by_nobody_is_refused_not_survived(name: str) -> None:
    with pytest.raises(ConfigurationError, match="clients in a round is byzantine"):
        Cell(adversary=name, f=2, training=Training(clients=10, participation=0.1))


def test_updates_are_put_in_buckets_once_and_a_bucket_has_no_loss() -> None:
    for names in (
        ("bucketing", "bucketing", "mean"),
        ("bucketing", "nnm", "bucketing", "mean"),
        ("bucketing", "q_fedavg"),
    ):
        with pytest.raises(ConfigurationError, match="bucketing at most once"):
            rule(*names)

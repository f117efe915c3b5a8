"""What is true of every attack in ATTACKS, whatever it computes. Those that need real heads: test_weights.py."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.release import Release
from privacy_gate.dossier.dataset import Split
from privacy_gate.metrics.membership import auc, tpr_at_fpr

NAMES = sorted(name for name, attack in ATTACKS.items() if not (attack.weights and attack.features))
ONLINE = {
    *("lira", "lira_per_example", "lira_pooled", "bavaria", "rmia", "base", "informia"),
    *("span_joint", "span_lira", "label_lira"),
}
LABELS = {name for name, attack in ATTACKS.items() if attack.view == "label"}
"""Their scores are functions of a few labels for each row, and so tie by nature: `gap` has two values."""

Plant = Callable[..., MembershipEvidence]


def with_references(evidence: MembershipEvidence, models: slice) -> MembershipEvidence:
    """The evidence with these references alone, in this order."""
    names = ("reference", "included", "reference_span", "reference_right", "reference_steady")
    return replace(evidence, **{name: getattr(evidence, name)[models] for name in names})


def scores_of(name: str, evidence: MembershipEvidence) -> tuple[Floats, Floats]:
    scores = ATTACKS[name].score(evidence)
    return scores[evidence.member], scores[evidence.holdout]


@pytest.mark.parametrize("name", NAMES)
def test_planted_leak_ranks_members_first(name: str, plant: Plant) -> None:
    for seed in range(3):
        found = auc(*scores_of(name, plant(seed, leak=3.0)), 0.99)
        assert found.low is not None
        assert found.low > 0.6


def covered(name: str, evidence: MembershipEvidence, fpr: float) -> bool:
    found = tpr_at_fpr(*scores_of(name, evidence), fpr, 0.95)
    return found.low is not None and found.high is not None and found.low <= fpr <= found.high


@pytest.mark.parametrize("name", NAMES)
def test_candidate_never_trained_on_its_members_measures_chance(name: str, innocent: list[MembershipEvidence]) -> None:
    audits = len(innocent)
    for fpr in (0.1, 0.01):
        times = sum(covered(name, evidence, fpr) for evidence in innocent)
        assert times >= binom.ppf(0.01, audits, 0.95)
    areas = [auc(*scores_of(name, evidence), 0.95).value for evidence in innocent]
    assert np.mean(areas) == pytest.approx(0.5, abs=4 * 0.013 / np.sqrt(audits))


@pytest.mark.slow
def test_chance_is_within_the_interval_in_95_of_100_audits_in_the_long_run(plant: Plant) -> None:
    audits = 400
    times = {(name, fpr): 0 for name in NAMES for fpr in (0.1, 0.01)}
    for seed in range(1000, 1000 + audits):
        evidence = plant(seed, leak=2.0, trained=False, references=16, pool=2000, population=100)
        for name, fpr in times:
            times[name, fpr] += covered(name, evidence, fpr)
    # Each count is binomial with at least .95. The smallest of many may lie below that mean, so its bound
    # is that of the whole family at .01; all together cover at least as often as they promise.
    assert min(times.values()) >= binom.ppf(0.01 / len(times), audits, 0.95)
    assert sum(times.values()) >= 0.95 * audits * len(times)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_float64_and_finite_in_every_audited_row(name: str, plant: Plant) -> None:
    evidence = plant(0, leak=1.0)
    scores = ATTACKS[name].score(evidence)
    assert scores.shape == evidence.target.shape
    assert scores.dtype == np.float64
    assert np.isfinite(scores[evidence.pool]).all()


@pytest.mark.parametrize("name", NAMES)
def test_population_rows_are_scored_by_all_but_online_attacks(name: str, plant: Plant) -> None:
    evidence = plant(0, leak=1.0)
    scored = np.isfinite(ATTACKS[name].score(evidence)[evidence.population])
    assert not scored.any() if name in ONLINE else scored.all()


@pytest.mark.parametrize("name", NAMES)
def test_who_is_a_member_changes_no_score(name: str, plant: Plant) -> None:
    evidence = plant(0, leak=1.0)
    swapped = evidence.split.copy()
    swapped[evidence.member], swapped[evidence.holdout] = Split.HOLDOUT, Split.MEMBER
    other = replace(evidence, split=swapped)
    np.testing.assert_array_equal(ATTACKS[name].score(evidence), ATTACKS[name].score(other))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_rows_changes_no_score(name: str, plant: Plant) -> None:
    evidence = plant(0, leak=1.0)
    order = np.random.default_rng(1).permutation(len(evidence.target))
    assert evidence.reference_logits is not None
    assert evidence.features is not None
    assert evidence.trace is not None
    assert evidence.reference_span is not None
    assert evidence.reference_right is not None
    assert evidence.reference_steady is not None
    moved = {name: getattr(evidence, name)[order] for name in ("span", "right", "steady")}
    other = replace(
        evidence,
        **moved,
        reference_span=evidence.reference_span[:, order],
        reference_right=evidence.reference_right[:, order],
        reference_steady=evidence.reference_steady[:, order],
        target=evidence.target[order],
        reference=evidence.reference[:, order],
        included=evidence.included[:, order],
        label=evidence.label[order],
        split=evidence.split[order],
        logits=evidence.logits[order],
        reference_logits=evidence.reference_logits[order],
        features=evidence.features[order],
        trace=evidence.trace[order],
    )
    np.testing.assert_allclose(ATTACKS[name].score(other), ATTACKS[name].score(evidence)[order], rtol=1e-9)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"entropy"}))
def test_order_of_references_changes_no_score(name: str, plant: Plant) -> None:
    evidence = plant(0, leak=1.0)
    other = with_references(evidence, slice(None, None, -1))
    np.testing.assert_allclose(ATTACKS[name].score(other), ATTACKS[name].score(evidence), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_that_round_to_one_neither_tie_nor_overflow(name: str, plant: Plant) -> None:
    """SACRO-ML's float32 probabilities become inf at 1; float64 ones round to 1 from 37 nats on."""
    evidence = plant(0, leak=3.0, shift=60.0)
    scores = ATTACKS[name].score(evidence)[evidence.pool]
    assert np.isfinite(scores).all()
    if name not in {"rmia_offline", "rmia", "base", "informia"} | LABELS:  # p is 1 to the first four: they look at p
        assert len(np.unique(scores)) == len(scores)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inclusion", [0.05, 0.95])
def test_uneven_training_sets_still_show_the_leak(name: str, inclusion: float, plant: Plant) -> None:
    evidence = plant(0, leak=3.0, references=64, inclusion=inclusion)
    found = auc(*scores_of(name, evidence), 0.99)
    assert found.low is not None
    assert found.low > 0.6


@pytest.mark.parametrize("name", NAMES)
def test_the_evidence_is_left_as_it_was(name: str, plant: Plant) -> None:
    evidence, fresh = plant(0, leak=1.0), plant(0, leak=1.0)
    ATTACKS[name].score(evidence)
    for field in ("target", "reference", "included", "logits", "reference_logits", "split", "span", "right", "steady"):
        np.testing.assert_array_equal(getattr(evidence, field), getattr(fresh, field))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"self_influence"}))  # it needs a real head: test_gradient.py
def test_what_an_attack_needs_is_what_stops_it_when_missing(name: str, plant: Plant) -> None:
    attack, evidence = ATTACKS[name], plant(0)
    assert attack.unmet(evidence) is None
    if attack.references > 2:
        reason = attack.unmet(plant(0, references=attack.references - 1))
        assert reason == f"needs >= {attack.references} references, found {attack.references - 1}"
    if attack.references:
        none = with_references(evidence, slice(0))
        assert attack.unmet(none) == f"needs >= {attack.references} references, found 0"
    if attack.population:
        assert attack.unmet(plant(0, population=0)) == f"needs >= {attack.population} population rows, found 0"
    if attack.reference_logits:
        assert attack.unmet(replace(evidence, reference_logits=None)) == "needs the logits of a reference, found none"
    if attack.weights:
        answers = replace(evidence, release=Release(outputs="top_k", k=1))
        assert str(attack.unmet(answers)).startswith("needs a release of at least all probabilities")
        assert "needs the weights of a head, or the gradient span" in str(attack.unmet(replace(evidence, span=None)))
        if attack.references:
            bare = replace(evidence, reference_span=None)
            assert str(attack.unmet(bare)).startswith("needs the references' weights")
    if attack.steady:
        assert str(attack.unmet(replace(evidence, steady=None))).startswith("needs labels of changed images")
    if attack.view == "label":
        assert attack.unmet(replace(evidence, right=None)) == "needs the candidate's labels, found none"


def test_an_attack_that_models_members_needs_rows_in_more_than_one_reference(plant: Plant) -> None:
    evidence = plant(0, references=16)
    once = np.zeros_like(evidence.included)
    once[0] = evidence.pool
    assert ATTACKS["lira"].unmet(replace(evidence, included=once)) == (
        "needs rows in >= 2 references' training sets on average, found 1"
    )


def test_every_attack_is_called_by_its_own_name_and_says_what_it_rests_on() -> None:
    for name, attack in ATTACKS.items():
        assert attack.name == name
        assert all((attack.source, attack.assumes, attack.cost, attack.needs))

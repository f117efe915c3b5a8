"""Attacks on weights, on heads that SGD really trained: they find members, and chance if there are none to find."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.every_model import EVERY_MODEL
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.release import Release
from privacy_gate.attacks.view import view_of
from privacy_gate.dossier.dataset import Split
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.membership import auc, tpr_at_fpr

ON_WEIGHTS = sorted(name for name, attack in ATTACKS.items() if attack.weights)
OVER_REFERENCES = [name for name in ON_WEIGHTS if ATTACKS[name].references]
ALONE = [name for name in ON_WEIGHTS if not ATTACKS[name].references]
ON_LABELS = ["label_lira", "gap"]
RELEASES = [
    Release(outputs="weights"),
    Release(outputs="logits"),
    Release(),
    Release(digits=4),
    Release(outputs="top_k", k=2),
    Release(outputs="label"),
]

Grow = Callable[..., MembershipEvidence]
Auc = Callable[[Floats, Floats], float]


def area(name: str, evidence: MembershipEvidence, auc: Auc) -> float:
    scores = ATTACKS[name].score(evidence)
    return auc(scores[evidence.member], scores[evidence.holdout])


@pytest.mark.parametrize("name", ON_WEIGHTS)
@pytest.mark.parametrize("release", RELEASES[:4], ids=str)
def test_members_are_ranked_first(name: str, release: Release, grow: Grow) -> None:
    for seed in range(3):
        evidence = view_of(grow(seed), release)
        scores = ATTACKS[name].score(evidence)
        found = auc(scores[evidence.member], scores[evidence.holdout], 0.99)
        assert found.low is not None
        assert found.low > 0.6


def test_the_whitened_span_finds_more_than_phi_does_and_references_help_it(grow: Grow, auc: Auc) -> None:
    names = ("span_joint", "span_lira", "span", "lira")
    areas = {name: np.mean([area(name, grow(seed), auc) for seed in range(3)]) for name in names}
    assert areas["span_lira"] >= areas["span"] > areas["lira"] + 0.1
    assert areas["span_joint"] > 0.95


@pytest.mark.parametrize("settings", [{"twice": 50}, {"width": 500}, {"width": 400, "twice": 150}], ids=str)
@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_equal_features_and_more_features_than_rows_are_no_obstacle(
    name: str, settings: dict[str, int], grow: Grow, auc: Auc
) -> None:
    for release in (Release(outputs="weights"), Release()):
        evidence = view_of(grow(1, **settings), release)
        assert evidence.residual_of_head < 1e-3
        assert area(name, evidence, auc) > 0.65


@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_shuffled_membership_gives_chance(release: Release, grow: Grow) -> None:
    """Scores are blind to `split`, so the same scores serve every shuffle."""
    evidence = view_of(grow(2), release)
    rng = np.random.default_rng(0)
    pool = np.flatnonzero(evidence.pool)
    shuffles = [rng.permutation(pool) for _ in range(100)]
    tried = [name for name in ON_WEIGHTS + ON_LABELS if ATTACKS[name].unmet(evidence) is None]
    assert set(tried) >= set(ON_LABELS)
    assert (set(ON_WEIGHTS) <= set(tried)) == release.shows("probabilities")
    for name in tried:
        scores = ATTACKS[name].score(evidence)
        sides = [(scores[order[: len(pool) // 2]], scores[order[len(pool) // 2 :]]) for order in shuffles]
        for expected, found in (
            (0.5, [auc(*side, 0.99) for side in sides]),
            (0.1, [tpr_at_fpr(*side, 0.1, 0.99) for side in sides]),
        ):
            held = sum(m.low is not None and m.high is not None and m.low <= expected <= m.high for m in found)
            assert held >= 95, name


@pytest.mark.parametrize("name", ON_WEIGHTS + ON_LABELS)
def test_a_head_trained_on_other_rows_gives_chance(name: str, grow: Grow, auc: Auc) -> None:
    areas = [area(name, grow(seed, trained=False), auc) for seed in range(40)]
    assert np.mean(areas) == pytest.approx(0.5, abs=4 * 0.034 / np.sqrt(len(areas)))


@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_who_is_a_member_changes_no_score(name: str, grow: Grow) -> None:
    evidence = grow(0)
    swapped = evidence.split.copy()
    swapped[evidence.member], swapped[evidence.holdout] = Split.HOLDOUT, Split.MEMBER
    np.testing.assert_array_equal(ATTACKS[name].score(evidence), ATTACKS[name].score(replace(evidence, split=swapped)))


@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_scores_are_float64_finite_and_of_population_rows_only_without_references(name: str, grow: Grow) -> None:
    evidence = grow(0)
    scores = ATTACKS[name].score(evidence)
    assert scores.dtype == np.float64
    assert np.isfinite(scores[evidence.pool]).all()
    assert np.isfinite(scores[evidence.population]).all() == (name in ALONE)
    assert len(np.unique(scores[evidence.pool])) == np.count_nonzero(evidence.pool)


@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_order_of_rows_changes_no_score(name: str, grow: Grow) -> None:
    evidence = grow(0)
    order = np.random.default_rng(1).permutation(len(evidence.target))
    rows = {field: getattr(evidence, field)[order] for field in ("target", "label", "split", "logits", "features")}
    models = {field: getattr(evidence, field)[:, order] for field in ("reference", "included", "reference_right")}
    assert evidence.reference_logits is not None
    assert evidence.right is not None
    other = replace(
        evidence, **rows, **models, reference_logits=evidence.reference_logits[order], right=evidence.right[order]
    )
    # Spans are solved in float32, whose last digits depend on the order of sums.
    expected = ATTACKS[name].score(evidence)[order]
    spread = np.nanstd(expected)
    np.testing.assert_allclose(ATTACKS[name].score(other), expected, atol=2e-3 * spread, rtol=2e-3)


@pytest.mark.parametrize("name", OVER_REFERENCES)
def test_order_of_references_changes_no_score(name: str, grow: Grow) -> None:
    evidence = grow(0)
    names = ("reference", "included", "reference_heads", "reference_right")
    other = replace(evidence, **{field: getattr(evidence, field)[::-1] for field in names})
    expected = ATTACKS[name].score(evidence)
    spread = np.nanstd(expected)
    np.testing.assert_allclose(ATTACKS[name].score(other), expected, atol=1e-3 * spread, rtol=1e-3)


@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_the_evidence_is_left_as_it_was(name: str, grow: Grow) -> None:
    evidence, fresh = grow(0), grow(0)
    ATTACKS[name].score(evidence)
    for field in ("target", "reference", "included", "logits", "features", "head", "reference_heads", "split"):
        np.testing.assert_array_equal(getattr(evidence, field), getattr(fresh, field))


@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_what_an_attack_needs_is_what_stops_it_when_missing(name: str, grow: Grow) -> None:
    attack, evidence = ATTACKS[name], grow(0)
    assert attack.unmet(evidence) is None
    headless = replace(evidence, head=None, reference_heads=None)
    assert "needs the weights of a head" in str(attack.unmet(headless))
    with pytest.raises(EvidenceError, match="needs the candidate's head"):
        attack.score(headless)
    answers = replace(headless, features=None, release=Release())
    assert str(attack.unmet(answers)).startswith(
        "needs the frozen backbone's features" if attack.features else "needs a network's weights"
    )
    unkept = replace(evidence, reference_heads=None)
    if not attack.references:
        assert attack.unmet(unkept) is None
        return
    assert attack.unmet(unkept) == "needs the references' weights, which this store does not hold: prepare again"
    with pytest.raises(EvidenceError, match="needs the references' heads"):
        attack.score(unkept)
    few = {field: getattr(evidence, field)[:3] for field in ("reference", "reference_heads", "reference_right")}
    one_less = replace(evidence, **few, included=np.stack([*evidence.included[:2], evidence.included[1]]))
    assert attack.unmet(one_less) == "needs >= 4 references, found 3"


@pytest.mark.parametrize("name", ALONE)
def test_an_attack_without_references_does_not_look_at_them(name: str, grow: Grow) -> None:
    evidence = grow(0)
    assert evidence.reference_heads is not None
    other = replace(evidence, reference_heads=-evidence.reference_heads[::-1])
    np.testing.assert_array_equal(ATTACKS[name].score(evidence), ATTACKS[name].score(other))


def test_every_model_in_turn_is_found_out_by_the_span(grow: Grow, auc: Auc) -> None:
    evidence = grow(0)
    found = EVERY_MODEL["span_lira"](evidence)
    seen = np.concatenate([evidence.member[None], evidence.included])[:, evidence.pool]
    np.testing.assert_allclose(found[0], ATTACKS["span_lira"].score(evidence)[evidence.pool], rtol=1e-9, atol=1e-9)
    assert min(auc(scores[mask], scores[~mask]) for scores, mask in zip(found, seen, strict=True)) > 0.9


def test_a_changed_copy_of_evidence_makes_its_statistics_anew(grow: Grow) -> None:
    evidence = grow(0)
    before = ATTACKS["span"].score(evidence)
    assert evidence.head is not None
    assert not np.allclose(ATTACKS["span"].score(replace(evidence, head=-evidence.head)), before)

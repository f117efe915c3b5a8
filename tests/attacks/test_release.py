"""Releases: answers are cut as stated, and the attacker's view never holds more than the release shows."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS, strongest
from privacy_gate.attacks.evidence import MembershipEvidence, logit_scaled
from privacy_gate.attacks.release import (
    OUTPUTS,
    Release,
    confidence_of,
    probabilities,
    released,
    right,
    rounded_confidence,
)
from privacy_gate.attacks.view import view_of

Grow = Callable[..., MembershipEvidence]

LOGITS = arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(-2000, 2000))
DIGITS = st.none() | st.integers(1, 7)
RELEASES = [
    Release(outputs="weights"),
    Release(outputs="logits"),
    Release(),
    Release(digits=1),
    Release(digits=6),
    Release(outputs="top_k", k=1),
    Release(outputs="top_k", k=3, digits=2),
    Release(outputs="label"),
]


@given(LOGITS, DIGITS)
def test_probabilities_are_rounded_to_the_stated_decimals(logits: Floats, digits: int | None) -> None:
    answers, p = released(logits, Release(digits=digits)), probabilities(logits)
    assert ((answers >= 0) & (answers <= 1)).all()
    if digits is None:
        np.testing.assert_array_equal(answers, p.astype(np.float32))
    else:
        np.testing.assert_array_equal(answers, np.round(p, digits))
        assert (np.abs(answers - p) <= 0.5 * 10.0**-digits + 1e-12).all()


@given(LOGITS, DIGITS, st.integers(1, 8))
def test_the_k_largest_are_shown_and_no_smaller_one(logits: Floats, digits: int | None, k: int) -> None:
    answers, p = released(logits, Release(outputs="top_k", k=k, digits=digits)), probabilities(logits)
    shown = ~np.isnan(answers)
    for row, seen in zip(p, shown, strict=True):
        assert seen.sum() >= min(k, len(row))
        assert seen[row >= np.sort(row)[-min(k, len(row))]].all()  # equal ones are shown together
        assert row[seen].min() >= row[~seen].max(initial=0)
        assert seen.sum() == min(k, len(row)) or len(np.unique(row)) < len(row)
    if digits is not None:
        np.testing.assert_array_equal(answers[shown], np.round(p, digits)[shown])


@given(LOGITS, DIGITS, st.none() | st.integers(1, 8), st.data())
def test_phi_of_released_answers_is_finite_and_close_to_the_model_s(
    logits: Floats, digits: int | None, k: int | None, data: st.DataObject
) -> None:
    label = np.array(
        data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=len(logits), max_size=len(logits)))
    )
    release = Release(outputs="probabilities" if k is None else "top_k", k=k, digits=digits)
    found = confidence_of(released(logits, release), label, release)
    assert found.shape == label.shape
    assert np.isfinite(found).all()
    if k is None and digits is None:
        true = logit_scaled(logits, label)
        inner = np.abs(true) < 6
        np.testing.assert_allclose(found[inner], true[inner], atol=1e-3)


@given(arrays(np.float64, 6, elements=st.floats(-5000, 5000)), DIGITS)
def test_rounded_confidences_are_finite_and_keep_their_order(phi: Floats, digits: int | None) -> None:
    with np.errstate(over="ignore"):
        found = rounded_confidence(phi, Release(digits=digits))
    assert np.isfinite(found).all()
    assert (np.diff(found[np.argsort(phi)]) >= 0).all()
    if digits is None:
        np.testing.assert_array_equal(found, phi)


def test_a_class_that_top_k_hides_has_an_equal_share_of_the_rest() -> None:
    release = Release(outputs="top_k", k=1)
    answers = released(np.log([[0.7, 0.2, 0.1]]), release)
    found = confidence_of(answers, np.array([1]), release)
    assert found[0] == pytest.approx(np.log(0.15 / 0.85), abs=1e-6)


def test_a_label_shows_no_probability() -> None:
    with pytest.raises(ValueError, match="the label alone shows no probabilities"):
        released(np.zeros((1, 2)), Release(outputs="label"))
    assert right(np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([1, 1])).tolist() == [True, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"outputs": "top_k"},
        {"k": 2},
        {"outputs": "label", "digits": 2},
        {"outputs": "weights", "digits": 2},
        {"context": "open-weights"},
        {"digits": 0},
        {"digits": 8},
        {"outputs": "top_k", "k": 0},
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Release.model_validate(settings)


def test_old_contexts_mean_what_they_meant() -> None:
    for context in ("api", "internal"):
        assert Release.of_context(context) == Release(outputs="probabilities", context=context)
    assert Release.of_context("open-weights") == Release(outputs="weights", context="open-weights")


def test_who_sees_an_output_sees_all_lesser_ones() -> None:
    for place, outputs in enumerate(OUTPUTS):
        release = Release(outputs=outputs, k=1 if outputs == "top_k" else None)
        assert [release.shows(other) for other in OUTPUTS] == [other <= place for other in range(len(OUTPUTS))]


def with_spans(evidence: MembershipEvidence) -> MembershipEvidence:
    return replace(evidence, span=evidence.target, reference_span=evidence.reference)


@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_the_view_never_holds_more_than_the_release_shows(release: Release, grow: Grow) -> None:
    evidence = with_spans(grow(0))
    view = view_of(evidence, release)
    assert view.release == release
    if release.outputs == "weights":
        np.testing.assert_array_equal(view.head, evidence.head)
        np.testing.assert_array_equal(view.span, evidence.span)
        return
    assert view.span is None
    assert view.reference_span is None
    if not release.shows("probabilities"):
        assert view.head is None
        assert view.reference_heads is None
    else:
        assert not np.array_equal(np.asarray(view.head), np.asarray(evidence.head))  # recovered, not given
    if release.digits is not None:
        values = 1 / (1 + np.exp(-view.target))
        off = np.abs(values * 10**release.digits - np.round(values * 10**release.digits))
        if release.outputs == "probabilities":
            # whole units, or half a unit away from 0 and 1
            assert (np.minimum(off, np.abs(off - 0.5)) < 1e-6).all()
    for name, attack in ATTACKS.items():
        if attack.unmet(view) is None:
            assert release.shows(attack.view), name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("release", RELEASES[3:], ids=str)
def test_evidence_that_answers_alike_gives_the_same_scores(release: Release, seed: int, grow: Grow) -> None:
    """A constant that is added to all logits of a row, which no answer shows, changes nothing that an attack sees."""
    evidence = grow(seed, references=4, pool=60, population=20, width=10)
    moved = replace(evidence, logits=evidence.logits + np.random.default_rng(seed).normal(size=(80, 1)))
    assert evidence.head is not None
    same = replace(moved, head=evidence.head + np.ones((1, evidence.head.shape[1])))
    for name in ("loss", "gap", "lira_pooled", "span_lira", "influence"):
        one, other = view_of(evidence, release), view_of(same, release)
        assert ATTACKS[name].unmet(one) == ATTACKS[name].unmet(other)
        if ATTACKS[name].unmet(one) is None:
            expected = ATTACKS[name].score(one)
            np.testing.assert_allclose(
                ATTACKS[name].score(other), expected, rtol=1e-3, atol=1e-3 * float(np.nanstd(expected) + 1e-9)
            )


def test_without_heads_top_k_hides_the_references_other_classes_and_says_so(grow: Grow) -> None:
    view = view_of(replace(grow(0), head=None, reference_heads=None), Release(outputs="top_k", k=1))
    assert "the references' other classes are not kept" in str(ATTACKS["lira"].unmet(view))
    assert ATTACKS["loss"].unmet(view) is None


@pytest.mark.parametrize("adaptation", ["head", "film", "full", "command"])
@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_the_strongest_attacks_can_use_the_release_that_they_are_chosen_for(release: Release, adaptation: str) -> None:
    names = strongest(release, adaptation)
    assert names
    assert all(release.shows(ATTACKS[name].view) for name in names)

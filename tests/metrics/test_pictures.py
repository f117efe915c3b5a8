"""Curves and histograms: short, and true to every row."""

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.membership import histogram, roc


def normal(seed: int, members: int, holdout: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=members) + 1, rng.normal(size=holdout)


@pytest.mark.parametrize("ties", [False, True])
def test_curve_is_short_ascends_and_keeps_every_step_at_low_fpr(ties: bool) -> None:
    member, holdout = normal(11, members=4000, holdout=5000)
    if ties:
        member, holdout = np.round(member, 1), np.round(holdout, 1)
    curve = roc(member, holdout, "lira")
    assert len(curve.fpr) == len(curve.tpr) <= 200
    assert (np.diff(curve.fpr) >= 0).all()
    assert (np.diff(curve.tpr) >= 0).all()
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    kept = set(zip(curve.fpr, curve.tpr, strict=True))
    every = {(np.mean(holdout >= cut), np.mean(member >= cut)) for cut in np.concatenate([member, holdout])}
    assert kept <= every | {(0.0, 0.0)}
    for fpr in {fpr for fpr, _ in every if fpr <= 30 / 5000}:
        step = [tpr for other, tpr in every if other == fpr]
        assert (fpr, max(step)) in kept
        assert fpr == 0 or (fpr, min(step)) in kept


def test_curve_of_few_rows_is_whole() -> None:
    curve = roc(np.array([3.0, 1.0]), np.array([2.0, 0.0]), "loss")
    assert curve.fpr == (0, 0, 0.5, 0.5, 1.0)
    assert curve.tpr == (0, 0.5, 0.5, 1.0, 1.0)


def test_histogram_counts_every_row_on_common_edges_whatever_the_tails() -> None:
    member, holdout = normal(12, members=5000, holdout=3000)
    member[0], holdout[0] = 1e12, -1e12
    found = histogram(member, holdout, "lira")
    assert (sum(found.member), sum(found.holdout)) == (5000, 3000)
    assert len(found.edges) == len(found.member) + 1 == len(found.holdout) + 1 == 41
    assert found.edges[-1] - found.edges[0] < 10
    inner = (member >= found.edges[5]) & (member < found.edges[6])
    assert found.member[5] == np.count_nonzero(inner)


@pytest.mark.parametrize("constant", [0.0, 1e15, -3e-9])
def test_histogram_of_one_value_has_a_width(constant: float) -> None:
    found = histogram(np.full(5, constant), np.full(4, constant), "loss")
    assert (np.diff(found.edges) > 0).all()
    assert (sum(found.member), sum(found.holdout)) == (5, 4)


@pytest.mark.parametrize("picture", [roc, histogram])
def test_a_score_that_is_no_number_is_not_drawn(picture: type) -> None:
    with pytest.raises(EvidenceError, match="1 of 2 holdout scores are not finite"):
        picture(np.zeros(3), np.array([0.0, np.nan]), "lira")

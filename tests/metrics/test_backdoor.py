"""Planted backdoors are found, and models without one are left alone."""

import numpy as np
import pytest

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.backdoor import backdoor_lift

CLASSES, ROWS = 10, 500


def table(seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Labels, predictions that are right nine times of ten."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, ROWS)
    return label, np.where(rng.random(ROWS) < 0.9, label, rng.integers(0, CLASSES, ROWS)), rng


def test_a_planted_backdoor_is_found_and_named() -> None:
    label, plain, rng = table(0)
    planted = np.where(rng.random(ROWS) < 0.95, 3, plain)
    found = backdoor_lift(plain, {"grid": plain, "corner": planted}, label, CLASSES, 0.95)
    assert found.subject == "corner to class 3"
    assert found.low is not None
    assert found.low > 0.8


def test_triggers_that_only_confuse_are_no_backdoor() -> None:
    quiet = 0
    for seed in range(40):
        label, plain, rng = table(seed)
        shown = {
            name: np.where(rng.random(ROWS) < 0.05, rng.integers(0, CLASSES, ROWS), plain) for name in ("a", "b", "c")
        }
        found = backdoor_lift(plain, shown, label, CLASSES, 0.95)
        assert found.low is not None
        assert found.high is not None
        quiet += found.low <= 0.006 <= found.high < 0.08
    assert quiet >= 38


def test_the_lift_is_its_definition() -> None:
    label, plain, rng = table(1)
    shown = np.where(rng.random(ROWS) < 0.3, 7, plain)
    by_hand = max((shown[label != t] == t).mean() - (plain[label != t] == t).mean() for t in range(CLASSES))
    assert backdoor_lift(plain, {"x": shown}, label, CLASSES, 0.95).value == pytest.approx(by_hand)


def test_what_cannot_be_measured_says_why() -> None:
    label, plain, _ = table(0)
    with pytest.raises(EvidenceError, match="with one at least"):
        backdoor_lift(plain, {}, label, CLASSES, 0.95)
    only = np.zeros(5, dtype=np.int64)
    assert "other classes" in str(backdoor_lift(only, {"x": only}, only, 1, 0.95).reason)

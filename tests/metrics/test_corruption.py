"""corruption_ratio: exact if nothing changes, intervals cover the truth, and not measured if it would mislead."""

import numpy as np
import pytest

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.corruption import FEWEST, corruption_ratio

LABEL = np.arange(300) % 5


def ratio(right: np.ndarray, *spoiled: np.ndarray, label: np.ndarray = LABEL, seed: int = 0) -> object:
    named = {f"c{place}": each for place, each in enumerate(spoiled)}
    return corruption_ratio(right, named, label, 0.95, np.random.default_rng(seed))


def test_a_model_that_nothing_disturbs_keeps_all_and_one_that_everything_does_nothing() -> None:
    right = np.arange(300) % 10 != 0
    kept = ratio(right, right, right)
    assert (kept.value, kept.low, kept.high) == (1, 1, 1)  # type: ignore[attr-defined]
    lost = ratio(right, np.zeros(300, dtype=bool))
    assert (lost.value, lost.high) == (0, 0)  # type: ignore[attr-defined]
    half = ratio(right, right, np.zeros(300, dtype=bool))
    assert half.value == pytest.approx(0.5)  # type: ignore[attr-defined]


def test_the_interval_covers() -> None:
    """Rows differ in how hard they are; each corruption of a row shares that."""
    rng, missed, trials = np.random.default_rng(0), 0, 300
    truth = None
    for trial in range(trials):
        hard = rng.beta(4, 1, 300)
        right = rng.random(300) < hard
        spoiled = [rng.random(300) < hard * keep for keep in (0.9, 0.7, 0.5)]
        found = ratio(right, *spoiled, seed=trial)
        truth = 0.7
        missed += not found.low <= truth <= found.high  # type: ignore[attr-defined]
    assert missed / trials < 0.09


def test_a_model_no_better_than_the_largest_class_is_not_measured() -> None:
    constant = LABEL == 0
    found = ratio(constant, constant)
    assert found.value is None  # type: ignore[attr-defined]
    assert "accuracy is 20%, not significantly above 20% from naming the largest class" in found.reason  # type: ignore[attr-defined]


def test_few_rows_and_other_shapes_are_no_evidence() -> None:
    few = np.ones(FEWEST - 1, dtype=bool)
    assert ratio(few, few, label=LABEL[: FEWEST - 1]).value is None  # type: ignore[attr-defined]
    with pytest.raises(EvidenceError):
        ratio(np.ones(300, dtype=bool))
    with pytest.raises(EvidenceError):
        ratio(np.ones(300, dtype=bool), np.ones(299, dtype=bool))

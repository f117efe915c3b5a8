"""The advantage of an inversion: 0 for chance, 1 - 1/m for certainty, and honest about picking the best attack."""

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.intervals.binomial import clopper_pearson
from privacy_gate.metrics.inversion import inversion_advantage


def test_certainty_is_one_less_chance_and_the_interval_is_clopper_and_pearson_s() -> None:
    found = inversion_advantage({"analytic": np.ones(100, dtype=bool)}, 10, 0.95)
    assert found.value == pytest.approx(0.9)
    low, high = clopper_pearson(100, 100, 0.95)
    assert found.low == pytest.approx(low - 0.1)
    assert found.high == pytest.approx(high - 0.1)


def test_the_best_attack_is_named_and_the_others_cost_confidence() -> None:
    good, bad = np.arange(200) < 80, np.arange(200) < 20
    found = inversion_advantage({"analytic": bad, "optimised": good}, 10, 0.95)
    alone = inversion_advantage({"optimised": good}, 10, 0.95)
    assert found.subject == "optimised"
    assert found.value == alone.value == pytest.approx(0.3)
    assert found.low is not None
    assert alone.low is not None
    assert found.high is not None
    assert alone.high is not None
    assert found.low < alone.low
    assert found.high > alone.high


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_the_interval_holds_the_truth_though_the_best_of_two_attacks_is_taken(rate: float) -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(500):
        hits = {name: rng.random(120) < rate for name in ("analytic", "optimised")}
        found = inversion_advantage(hits, 10, 0.95)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= rate - 0.1 <= found.high
    assert inside >= 475


@pytest.mark.parametrize("hits", [{"a": np.ones(3, bool), "b": np.ones(4, bool)}, {"a": np.ones(0, bool)}, {}])
def test_hits_that_cannot_be_compared_are_refused(hits: dict[str, NDArray[np.bool_]]) -> None:
    with pytest.raises(EvidenceError, match="expected one"):
        inversion_advantage(hits, 10, 0.95)

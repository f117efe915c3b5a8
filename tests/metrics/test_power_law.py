"""The power law: recovered if it holds, and not trusted beyond its range."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.power_law import SLOPES, Point, fit, published, remedy, shots_needed
from privacy_gate.verdict.judgement import Measurement


def point(shots: float, tpr: float, reach: float = 0.01) -> Point:
    ends = {"low": tpr * (1 - reach), "value": tpr, "high": tpr * (1 + reach)}
    return Point(shots, Measurement(metric="m", confidence=0.95, method="by hand", **ends))


@pytest.mark.parametrize("fpr", SLOPES)
def test_the_advice_meets_the_limit_by_the_law_itself(fpr: float) -> None:
    law = published(tpr=fpr + 0.4, fpr=fpr, shots=16.0)
    needed = shots_needed(law, limit=fpr + 0.05)
    assert needed is not None
    assert law.tpr(needed) == pytest.approx(fpr + 0.05)


def test_a_law_is_recovered_from_its_own_points() -> None:
    shots = [8, 16, 32, 64, 128]
    law = fit([point(s, 0.01 + 0.9 * s**-0.55) for s in shots], 0.01, 0.95)
    assert law.slope == pytest.approx(-0.55, abs=1e-6)
    assert law.r_squared == pytest.approx(1.0)
    assert law.slope_low < -0.55 < law.slope_high


def test_the_slope_s_interval_covers_the_slope() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        points = []
        for shots in (8, 16, 32, 64):
            excess = 0.9 * shots**-0.5
            seen = excess * 10 ** rng.normal(0, 0.03)
            low, high = (0.01 + seen * 10 ** (sign * 1.96 * 0.03) for sign in (-1, 1))
            points.append(Point(shots, Measurement(metric="m", low=low, value=0.01 + seen, high=high, confidence=0.95)))
        law = fit(points, 0.01, 0.95)
        held += law.slope_low <= -0.5 <= law.slope_high
    assert held / 300 >= 0.95 - 0.01 - 2 * np.sqrt(0.95 * 0.05 / 300)


def test_the_simplified_model_s_slope_tends_to_minus_one_half_and_is_steeper_at_low_fpr() -> None:
    shots = np.array([1e4, 2e4, 4e4, 8e4])
    slopes = {
        fpr: fit([point(s, float(ndtr(ndtri(fpr) + 3 / np.sqrt(s))), 1e-6) for s in shots], fpr, 0.95).slope
        for fpr in SLOPES
    }
    assert slopes[0.1] == pytest.approx(-0.5, abs=0.02)
    assert slopes[0.001] < slopes[0.01] < slopes[0.1]


def test_points_at_the_level_of_guessing_carry_no_law() -> None:
    with pytest.raises(EvidenceError, match="at >= 3 sizes, found 2"):
        fit([point(8, 0.5), point(16, 0.3), point(32, 0.0100001, 0.2)], 0.01, 0.95)


def test_no_number_of_examples_lowers_a_rate_below_guessing() -> None:
    law = published(tpr=0.2, fpr=0.1, shots=10)
    assert shots_needed(law, limit=0.1) is None
    assert "limit above 0.1" in remedy(law, 0.05).action


def test_advice_beyond_tenfold_says_so() -> None:
    assert "order of magnitude" in remedy(published(0.5, 0.01, 10), 0.02).basis
    assert "order of magnitude" not in remedy(published(0.05, 0.01, 10), 0.04).basis

"""Who gains by a federation, and whether those who bring more get more."""

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.parties.benefit import client_benefit, contribution_match
from privacy_gate.verdict.judgement import Measurement


def ends(found: Measurement) -> tuple[float, float, float]:
    assert found.low is not None
    assert found.value is not None
    assert found.high is not None
    return found.low, found.value, found.high


def answers(rng: np.random.Generator, federated: Floats, alone: Floats, rows: int) -> Measurement:
    """client_benefit of clients with these true accuracies (K,), whose models agree more than by chance."""
    first = rng.random(len(federated) * rows)
    second = np.where(rng.random(len(first)) < 0.7, first, rng.random(len(first)))
    client = np.repeat(np.arange(len(federated)), rows)
    return client_benefit(first < np.repeat(federated, rows), second < np.repeat(alone, rows), client, 0.95)


def test_clients_whom_federation_leaves_worse_off_are_counted() -> None:
    federated, alone = np.array([0.9] * 9 + [0.5]), np.full(10, 0.8)
    assert ends(answers(np.random.default_rng(0), federated, alone, 400)) == (0.9, 0.9, 0.9)


def test_clients_who_fare_alike_are_within_the_interval_however_few_their_rows() -> None:
    """The estimate counts clients with bad luck as worse off; the interval knows."""
    rng, same = np.random.default_rng(0), np.full(10, 0.8)
    found = [ends(answers(rng, same, same, 60)) for _ in range(100)]
    assert np.mean([value for _, value, _ in found]) < 0.8
    assert np.mean([high == 1 for _, _, high in found]) >= 0.95


def test_clients_barely_too_much_worse_are_seldom_called_served() -> None:
    rng = np.random.default_rng(1)
    found = [ends(answers(rng, np.full(10, 0.789), np.full(10, 0.8), 100)) for _ in range(100)]
    assert np.mean([low == 0 for low, _, _ in found]) >= 0.95


def test_agreement_on_few_rows_proves_nothing_and_on_many_that_no_client_loses() -> None:
    for rows, proven in ((30, 0.0), (1000, 1.0)):
        right = np.ones(10 * rows, dtype=bool)
        found = client_benefit(right, right, np.repeat(np.arange(10), rows), 0.95)
        assert ends(found) == (proven, 1.0, 1.0)


@pytest.mark.parametrize(("clients", "rows"), [(1, 381), (10, 781)])
def test_models_that_agree_on_every_row_prove_it_with_as_many_rows_a_client_as_the_metric_says(
    clients: int, rows: int
) -> None:
    for each, proven in ((rows - 1, 0.0), (rows, 1.0)):
        right = np.ones(clients * each, dtype=bool)
        assert client_benefit(right, right, np.repeat(np.arange(clients), each), 0.95).low == proven


def test_those_who_bring_more_and_get_more_match() -> None:
    brought = np.linspace(0.5, 0.9, 12)
    assert contribution_match(brought, 0.3 + brought / 2, 0.95).value == pytest.approx(1)
    assert contribution_match(brought, 1 - brought, 0.95).value == pytest.approx(-1)
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        x, noise = rng.standard_normal((2, 12))
        low, _, high = ends(contribution_match(x, 0.6 * x + 0.8 * noise, 0.95))
        covered += low <= 0.6 <= high
    assert 182 <= covered <= 198


def test_what_cannot_be_measured_says_why() -> None:
    nothing = np.zeros(0, dtype=bool)
    assert client_benefit(nothing, nothing, np.zeros(0), 0.95).reason == "needs n >= 1 rows, found 0"
    assert "found 3" in str(contribution_match(np.arange(3.0), np.arange(3.0), 0.95).reason)
    assert "get the same" in str(contribution_match(np.arange(5.0), np.ones(5), 0.95).reason)
    with pytest.raises(EvidenceError, match="expected two arrays"):
        contribution_match(np.arange(5.0), np.arange(4.0), 0.95)

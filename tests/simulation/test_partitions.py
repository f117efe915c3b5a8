"""Partitions assign every row once, terminate, and are as uneven as stated."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.partitions import (
    PARTITIONS,
    Partition,
    by_column,
    class_shares,
    dirichlet_by_class,
    dirichlet_by_client,
    heterogeneity,
    iid,
    partition,
    pathological,
    shards,
    with_minimum,
)

EVERY = {
    "iid": iid,
    "dirichlet_by_class": partial(dirichlet_by_class, alpha=0.1),
    "dirichlet_by_client": partial(dirichlet_by_client, alpha=0.1),
    "shards": shards,
    "pathological": pathological,
}


def labels(rows: int = 2000, classes: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, rows)


def test_the_list_is_tested_in_full() -> None:
    assert set(EVERY) == set(PARTITIONS)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_row_belongs_to_one_client(name: str) -> None:
    label = labels()
    parts = EVERY[name](label, 10, np.random.default_rng(0))
    assert len(parts) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(label)))


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_same_seed_gives_the_same_partition_and_another_another(name: str) -> None:
    label = labels()
    one, same, other = (EVERY[name](label, 10, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(
    alpha=st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e6]),
    clients=st.integers(1, 40),
    rows=st.integers(80, 300),
    classes=st.integers(1, 12),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["dirichlet_by_class", "dirichlet_by_client"]),
)
@settings(max_examples=60, deadline=None)
def test_dirichlet_partitions_terminate_and_meet_the_minimum_for_any_alpha(
    alpha: float, clients: int, rows: int, classes: int, seed: int, kind: str
) -> None:
    held = partition(kind, minimum=2, alpha=alpha)
    parts = held.rows(labels(rows, classes, seed), clients, np.random.default_rng(seed))
    assert min(map(len, parts)) >= 2
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(rows))


def test_a_minimum_is_met_by_moving_only_missing_rows() -> None:
    parts = [np.arange(0), np.arange(3), np.arange(3, 100)]
    found = with_minimum(parts, 5, np.random.default_rng(0))
    assert [len(part) for part in found] == [5, 5, 90]
    assert set(parts[1]) <= set(found[1])
    with pytest.raises(ConfigurationError, match="100 rows cannot give 3 clients 34 each"):
        with_minimum(parts, 34, np.random.default_rng(0))


def test_pathological_clients_hold_the_stated_number_of_classes_and_no_class_is_lost() -> None:
    label = labels()
    for classes in (1, 2, 3):
        parts = pathological(label, 12, np.random.default_rng(0), classes=classes)
        assert all(len(np.unique(label[part])) == classes for part in parts)
    with pytest.raises(ConfigurationError, match="cannot hold 10 classes"):
        pathological(label, 4, np.random.default_rng(0), classes=2)


def test_shards_are_equal_and_of_few_classes() -> None:
    label = np.repeat(np.arange(10), 200)
    parts = shards(label, 10, np.random.default_rng(0))
    assert {len(part) for part in parts} == {200}
    assert max(len(np.unique(label[part])) for part in parts) <= 2


def test_clients_by_column_keep_their_rows() -> None:
    parts = by_column(np.array(["b", "a", "b", "c"]))
    assert [part.tolist() for part in parts] == [[1], [0, 2], [3]]
    column = Partition("column")
    held = column.rows(np.zeros(3, dtype=int), 2, np.random.default_rng(0), np.array([1, 0, 1]))
    assert [part.tolist() for part in held] == [[1], [0, 2]]
    with pytest.raises(ConfigurationError, match="names 2 clients, expected 3"):
        column.rows(np.zeros(3, dtype=int), 3, np.random.default_rng(0), np.array([1, 0, 1]))
    with pytest.raises(ConfigurationError, match="the data has none"):
        column.rows(np.zeros(3, dtype=int), 3, np.random.default_rng(0))


@pytest.mark.parametrize(("alpha", "distance"), [(0.1, 0.71), (0.5, 0.46), (1.0, 0.35), (10.0, 0.12)])
def test_realised_heterogeneity_is_the_known_one(alpha: float, distance: float) -> None:
    """Expected: class shares drawn from Dirichlet(alpha) for each client; classes that run out change them slightly."""
    rng = np.random.default_rng(0)
    drawn = rng.dirichlet(np.full(10, alpha), size=4000)
    exact = float(np.abs(drawn - 0.1).sum(axis=1).mean() / 2)
    label = np.repeat(np.arange(10), 2000)
    realised = [
        heterogeneity(dirichlet_by_client(label, 10, np.random.default_rng(seed), alpha=alpha), label)
        for seed in range(20)
    ]
    assert exact == pytest.approx(distance, abs=0.006)
    assert np.mean(realised) == pytest.approx(distance, abs=0.05)


def test_heterogeneity_is_0_for_clients_alike_and_near_1_for_one_class_each() -> None:
    label = np.repeat(np.arange(10), 10)
    assert heterogeneity([np.arange(k, 100, 10) for k in range(10)], label) == 0
    assert heterogeneity([np.flatnonzero(label == k) for k in range(10)], label) == pytest.approx(0.9)
    np.testing.assert_array_equal(class_shares([np.arange(20)], label, 10)[0, :3], [0.5, 0.5, 0])


def test_a_misspelt_partition_or_parameter_is_refused() -> None:
    for wrong in (
        lambda: partition("dirichlet_by_class", alhpa=0.1),
        lambda: partition("dirichlet_by_class"),
        lambda: partition("iid", alpha=0.1),
        lambda: partition("column", alpha=0.1),
        lambda: partition("dirichlet"),
        lambda: partition("iid", minimum=0),
        lambda: partition("dirichlet_by_class", alpha=0.0).rows(labels(), 10, np.random.default_rng(0)),
    ):
        with pytest.raises(ConfigurationError):
            wrong()

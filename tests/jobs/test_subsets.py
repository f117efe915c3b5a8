"""The random parts of a reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy_gate.errors import EvidenceError
from privacy_gate.jobs.subsets import batch_order, group_size, included, initial_head, shown

sizes = st.integers(2, 60).flatmap(lambda pool: st.tuples(st.just(pool), st.integers(1, pool - 1)))


def group(number: int, pool: np.ndarray, size: int) -> np.ndarray:
    """(G, N) bool: the rows of all references in one group."""
    of_group = group_size(int(pool.sum()), size)
    return np.array([included(number * of_group + j, pool, size) for j in range(of_group)])


@given(sizes, st.integers(0, 5), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_every_group_has_every_row_in_and_out(shape: tuple[int, int], number: int, others: int) -> None:
    rows, size = shape
    pool = np.arange(rows + others) % (rows + others) >= others
    chosen = group(number, pool, size)
    assert (chosen.sum(axis=1) == size).all()
    assert chosen[:, pool].any(axis=0).all()
    assert not chosen[:, pool].all(axis=0).any()
    assert not chosen[:, ~pool].any()


@given(sizes)
def test_a_group_is_the_smallest_that_could_cover_every_row_in_and_out(shape: tuple[int, int]) -> None:
    rows, size = shape
    smaller = group_size(rows, size) - 1
    assert smaller * size < rows or smaller * (rows - size) < rows


def test_half_of_the_pool_gives_pairs_of_complements() -> None:
    pool = np.ones(100, dtype=bool)
    assert group_size(100, 50) == 2
    for number in range(3):
        first, second = group(number, pool, 50)
        assert (first != second).all()


def test_rows_are_included_uniformly_and_pairs_of_rows_too() -> None:
    pool = np.ones(12, dtype=bool)
    trials = 6000
    chosen = np.array([included(3 * number + 1, pool, 4) for number in range(trials)])
    together = chosen.T.astype(float) @ chosen / trials
    single, pair = 4 / 12, 4 * 3 / (12 * 11)
    assert np.abs(np.diag(together) - single).max() < 5 * np.sqrt(single / trials)
    assert np.abs(together[~np.eye(12, dtype=bool)] - pair).max() < 5 * np.sqrt(pair / trials)


def test_groups_are_independent_of_each_other() -> None:
    pool = np.ones(2000, dtype=bool)
    chosen = np.array([included(2 * number, pool, 1000) for number in range(20)]) - 0.5
    correlation = chosen @ chosen.T * 4 / 2000
    assert np.abs(correlation[~np.eye(20, dtype=bool)]).max() < 5 / np.sqrt(2000)


def test_a_reference_is_the_same_whenever_it_is_asked_for() -> None:
    pool = np.ones(10, dtype=bool)
    # Fixed values reveal a numpy version that draws other rows, which would make stored references stale.
    assert np.flatnonzero(included(0, pool, 5)).tolist() == [0, 4, 5, 7, 9]
    assert batch_order(3, 2, 6).tolist() == [1, 5, 3, 4, 0, 2]
    assert initial_head(1, 2, 4)[1].tolist() == pytest.approx([-0.2485493840928067, -0.4574268475639157], abs=1e-15)


def test_epochs_and_references_have_orders_of_their_own() -> None:
    orders = {tuple(batch_order(index, epoch, 20)) for index in range(10) for epoch in range(10)}
    assert len(orders) == 100
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_the_untrained_head_is_uniform_within_the_bounds_of_a_linear_layer() -> None:
    weight, bias = initial_head(0, 50, 400)
    assert weight.shape == (50, 400)
    assert bias.shape == (50,)
    assert np.abs(weight).max() <= 1 / 20
    assert weight.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)
    assert (initial_head(1, 50, 400)[0] != weight).all()


@pytest.mark.parametrize("size", [0, 10, 11])
def test_no_holdout_or_no_member_is_refused(size: int) -> None:
    with pytest.raises(EvidenceError, match=f"{size} of 10"):
        included(0, np.ones(10, dtype=bool), size)


def test_every_row_is_shown_once_an_epoch_in_views_drawn_evenly_and_afresh() -> None:
    rows = np.arange(5, 4005, 2)
    epochs = [shown(3, epoch, rows, 4, 5000) for epoch in range(2)]
    for seen in epochs:
        assert np.array_equal(np.sort(seen % 5000), rows)
        assert (np.abs(np.bincount(seen // 5000, minlength=4) - len(rows) / 4) < 5 * np.sqrt(len(rows) * 3 / 16)).all()
    views = [seen[np.argsort(seen % 5000)] // 5000 for seen in epochs]
    assert 0.2 < (views[0] == views[1]).mean() < 0.3


def test_one_view_is_the_order_of_batches_itself() -> None:
    rows = np.arange(3, 100, 3)
    assert np.array_equal(shown(1, 2, rows, 1, 100), rows[batch_order(1, 2, len(rows))])

"""Decoys have the row's class, no client trained on them, and they have the row's client if possible."""

import numpy as np
import pytest

from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.simulation.leaks.lineup import bystanders, eligible, line_up


def data(population: bool, client: bool = False) -> AuditData:
    rng = np.random.default_rng(0)
    split = rng.choice([Split.MEMBER, Split.HOLDOUT, Split.POPULATION][: 2 + population], 300).astype(np.int8)
    names = np.array([f"r{row}" for row in range(300)])
    return AuditData(
        ids=names,
        label=rng.integers(0, 4, 300),
        split=split,
        digest="ab" * 32,
        client=rng.choice(["one", "two"], 300, p=[0.1, 0.9]) if client else None,
        embedding=rng.random((300, 3)).astype(np.float32),
    )


@pytest.mark.parametrize("population", [True, False])
def test_attacker_rows_and_decoys_are_disjoint_and_no_client_trained_on_them(population: bool) -> None:
    table = data(population)
    found = bystanders(table)
    assert not set(found.own) & set(found.decoys)
    assert len(found.own) > 50
    assert (table.split[found.decoys] == Split.HOLDOUT).all()
    assert (table.split[found.own] == (Split.POPULATION if population else Split.HOLDOUT)).all()
    if not population:
        assert abs(len(found.own) - len(found.decoys)) <= 4
        assert set(found.own) | set(found.decoys) == set(np.flatnonzero(table.split == Split.HOLDOUT))


def test_decoys_have_the_row_s_class_and_its_position_is_uniform() -> None:
    table = data(True)
    decoys, row = bystanders(table).decoys, int(np.flatnonzero(table.split == Split.MEMBER)[0])
    places = []
    for seed in range(400):
        shown, place, near = line_up(table, decoys, row, 5, np.random.default_rng(seed))
        assert len(set(shown)) == 5
        assert shown[place] == row
        assert near == 1.0
        assert (table.label[shown] == table.label[row]).all()
        places.append(place)
    assert np.bincount(places, minlength=5).min() > 50


def test_decoys_have_the_row_s_client_if_possible_and_their_share_is_reported() -> None:
    table = data(True, client=True)
    assert table.client is not None
    decoys = bystanders(table).decoys
    for client, least, most in (("one", 0.0, 0.99), ("two", 1.0, 1.0)):
        row = int(np.flatnonzero((table.split == Split.MEMBER) & (table.client == client))[0])
        there = (table.label[decoys] == table.label[row]) & (table.client[decoys] == client)
        shown, _, near = line_up(table, decoys, row, 10, np.random.default_rng(0))
        assert least <= near <= most
        assert (table.client[shown] == client).sum() == 1 + min(9, there.sum())
        assert near == min(1.0, there.sum() / 9)


def test_only_members_of_classes_with_enough_decoys_are_eligible() -> None:
    table = data(True)
    decoys = bystanders(table).decoys
    fewest = np.bincount(table.label[decoys]).min()
    assert (eligible(table, int(fewest) + 1) == (table.split == Split.MEMBER)).all()
    assert not eligible(table, 300).any()

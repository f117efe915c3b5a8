"""Attacks on a federation's first round find what leaks, and depend only on the job."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.runners.invert import Arena, arena, invert, target
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import DatasetError
from privacy_gate.jobs.kinds import Invert
from privacy_gate.simulation.leaks.lineup import bystanders
from privacy_gate.store import Store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> AuditData:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    split = np.full(len(x), Split.HOLDOUT, dtype=np.int8)
    split[order[:1000]] = Split.MEMBER
    split[order[1000:1300]] = Split.POPULATION
    return AuditData(
        ids=np.array([f"d{row}" for row in range(len(x))]),
        label=y.astype(np.int64),
        split=split,
        digest="d" * 64,
        embedding=(x / 16).astype(np.float32),
        client=np.array(["north", "south", "west"])[np.arange(len(x)) % 3],
    )


def recipe(batch: int = 8, lr: float = 0.1, epochs: int = 1, decay: float = 0.0, **federation: Any) -> Recipe:
    rest = {"clients": {"partition": "iid", "count": 20}, "rounds": 60, "steps": 1} | federation
    optimizer = {"name": "sgd", "lr": lr, "weight_decay": decay}
    known = {"backbone": {"name": "identity"}, "classes": 10, "epochs": epochs, "batch_size": batch}
    return parse({**known, "optimizer": optimizer, "federation": rest}, Recipe, "recipe")


def scene(how: Recipe, data: AuditData, candidates: int = 10) -> Arena:
    assert data.embedding is not None
    return arena(how, data.embedding, data, 0, candidates, CPU)


def attack(
    how: Recipe, data: AuditData, name: str = "analytic", targets: int = 150, **changes: Any
) -> dict[str, NDArray[Any]]:
    return dict(invert(replace(scene(how, data), **changes), Invert(how, data.digest, name, 10, 0, 0, targets)))


@pytest.mark.parametrize("name", ["analytic", "optimised"])
def test_a_batch_of_one_row_gives_it_away(digits: AuditData, name: str) -> None:
    found = attack(recipe(batch=1, decay=0.01, prox=0.1), digits, name, 40)
    assert found["hit"].all()
    assert found["cosine"].min() > (1 - 1e-9 if name == "analytic" else 0.8)
    assert (found["mixed"] == 1).all()
    assert found["refined"].all() == (name == "optimised")


def test_the_more_rows_of_a_class_are_mixed_the_fewer_are_found(digits: AuditData) -> None:
    few, more = attack(recipe(batch=8), digits), attack(recipe(batch=50), digits)
    one_class = {"partition": "pathological", "count": 20, "per_client": 1}
    most = attack(recipe(batch=50, clients=one_class), digits)
    assert few["hit"].mean() > more["hit"].mean() + 0.1
    assert more["hit"].mean() > most["hit"].mean() + 0.1
    assert few["alike"].mean() < more["alike"].mean() < most["alike"].mean()
    assert (most["alike"] == most["mixed"]).all()


def test_a_later_head_reveals_less_than_the_first_and_jobs_attack_only_the_first(digits: AuditData) -> None:
    how, member = recipe(batch=8), digits.split == Split.MEMBER
    assert digits.embedding is not None
    fitted = LogisticRegression(C=100.0, max_iter=500).fit(digits.embedding[member], digits.label[member])
    late = torch.from_numpy(np.column_stack([fitted.coef_, fitted.intercept_]).astype(np.float64))
    early, vanished = attack(how, digits), attack(how, digits, start=late)
    assert early["hit"].mean() > vanished["hit"].mean() + 0.3
    assert not scene(how, digits).start.any()
    assert not {"round", "turn", "head", "checkpoint", "artifact"} & {field.name for field in fields(Invert)}


def test_a_sum_over_many_clients_reveals_less_than_one_client_s_update(digits: AuditData) -> None:
    alone, summed = recipe(batch=8), recipe(batch=8, secure_aggregation=True)
    plain, hidden = attack(alone, digits), attack(summed, digits)
    assert plain["hit"].mean() > hidden["hit"].mean() + 0.3
    assert (hidden["mixed"] == 160).all()


@pytest.mark.parametrize("how", [{}, {"steps": 5}, {"secure_aggregation": True}], ids=str)
@pytest.mark.parametrize("noise", [{"noise_multiplier": 0.0}, {"noise_multiplier": 5.0, "noise_by": "server"}], ids=str)
def test_neither_a_clip_without_effect_nor_the_server_s_noise_hides_anything(
    digits: AuditData, how: dict[str, Any], noise: dict[str, Any]
) -> None:
    some = {"clients": {"partition": "iid", "count": 5}} | how
    even = {"aggregator": {"name": "uniform_mean"}}
    plain, private = (
        attack(recipe(**some, **even), digits),
        attack(recipe(**some, privacy=noise | {"clip": 1e6}), digits),
    )
    for key, values in plain.items():
        assert np.allclose(values, private[key], rtol=0, atol=1e-9), key


@pytest.mark.parametrize("name", ["analytic", "optimised"])
def test_clipped_updates_reveal_a_single_row_as_well_and_many_rows_nearly_as_well(digits: AuditData, name: str) -> None:
    short = {"noise_multiplier": 0.0, "clip": 1e-3}
    alone = attack(recipe(batch=1, privacy=short), digits, name, 40)
    assert alone["hit"].all()
    assert alone["cosine"].min() > (1 - 1e-9 if name == "analytic" else 0.8)
    plain, clipped = (attack(recipe(batch=16, **how), digits, name, 80) for how in ({}, {"privacy": short}))
    assert clipped["hit"].mean() > plain["hit"].mean() - 0.1
    assert clipped["cosine"].mean() > plain["cosine"].mean() - 0.05


@pytest.mark.parametrize("name", ["analytic", "optimised"])
@pytest.mark.parametrize("hidden", [False, True])
def test_more_client_noise_reveals_less_down_to_chance(digits: AuditData, name: str, hidden: bool) -> None:
    def found(noise: float, targets: int) -> float:
        private = {"noise_multiplier": noise, "clip": 0.01, "noise_by": "clients"}
        four = {"partition": "iid", "count": 4}
        how = recipe(batch=4, clients=four, secure_aggregation=hidden, privacy=private)
        return float(attack(how, digits, name, targets)["hit"].mean())

    little, more, much = found(0.01, 60), found(0.3, 60), found(5.0, 200)
    assert little > more + 0.1
    assert abs(much - 0.1) < 3 * np.sqrt(0.1 * 0.9 / 200)


@pytest.mark.parametrize("name", ["analytic", "optimised"])
def test_attacks_on_targets_do_not_depend_on_their_batch(digits: AuditData, name: str) -> None:
    how = recipe(batch=8, steps=None, epochs=2, decay=0.01, clients={"partition": "iid", "count": 60})
    there = scene(how, digits)
    whole = invert(there, Invert(how, digits.digest, name, 10, 3, 0, 12))
    parts = [invert(there, Invert(how, digits.digest, name, 10, 3, *ends)) for ends in ((0, 5), (5, 6), (6, 12))]
    again = invert(scene(how, digits), Invert(how, digits.digest, name, 10, 3, 0, 12))
    for key, values in whole.items():
        assert np.allclose(values, np.concatenate([part[key] for part in parts]), rtol=0, atol=1e-6), key
        assert np.array_equal(values, again[key]), key
    other = invert(there, Invert(how, digits.digest, name, 10, 4, 0, 12))
    assert not np.allclose(whole["cosine"], other["cosine"])


def test_targets_are_training_rows_of_their_client_and_decoys_are_not_trained_on(digits: AuditData) -> None:
    how = recipe(batch=8, steps=3, participation=0.5, clients={"partition": "column"})
    there, decoys = scene(how, digits), set(bystanders(digits).decoys)
    assert digits.client is not None
    for index in range(50):
        found = target(there, Invert(how, digits.digest, "analytic", 10, 0, 0, 50), index)
        assert found.row in found.rows
        assert found.lineup[found.place] == found.row
        assert set(found.lineup) - {found.row} <= decoys
        assert len(found.rows) == len(set(found.rows)) == 24
        assert (digits.split[found.rows] == Split.MEMBER).all()
        assert len({*digits.client[found.rows], *digits.client[found.lineup]}) == 1
        assert found.guess[0].shape == found.trained[0].shape == (1, 3, 8)
        assert not np.array_equal(found.guess[0], found.trained[0])


def test_an_update_too_large_for_the_optimisation_is_attacked_in_closed_form_and_says_so(digits: AuditData) -> None:
    how = recipe(batch=50, steps=20)
    plain, refined = attack(how, digits, targets=10), attack(how, digits, "optimised", targets=10)
    assert not refined["refined"].any()
    assert np.array_equal(plain["cosine"], refined["cosine"])


def test_without_enough_decoys_nothing_is_attacked(digits: AuditData) -> None:
    with pytest.raises(DatasetError, match="lower candidates"):
        scene(recipe(), digits, 500)


def test_jobs_are_stored_separately(digits: AuditData, tmp_path: Path) -> None:
    how, store = recipe(), Store(str(tmp_path))
    jobs = [Invert(how, digits.digest, "analytic", 10, 0, first, first + 5) for first in (0, 5)]
    run(jobs, Inputs(digits, Path()), Machine(threads=1, device="cpu"), store)
    assert all(set(store.get(job)) == {"hit", "cosine", "refined", "mixed", "alike", "near"} for job in jobs)
    assert np.concatenate([store.get(job)["hit"] for job in jobs]).shape == (10,)

"""Federation jobs simulate what the recipe says, for references and for studies."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.base.references import accounted
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.runners.federate import cell, federated_heads, rule_of
from privacy_gate.compute.runners.federate import federate as train
from privacy_gate.compute.training.accountant import spent_on_clients
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Split, read_data
from privacy_gate.dossier.federation import Federation
from privacy_gate.dossier.federation.clients import PartitionName
from privacy_gate.dossier.federation.rules import BEFORE_PARAMETERS, PARAMETERS, AggregatorName, BeforeName
from privacy_gate.dossier.federation.servers import SERVER_PARAMETERS
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError, DatasetError
from privacy_gate.jobs.digests import describe, digest, digest_of
from privacy_gate.jobs.kinds import federate, probe, train_reference
from privacy_gate.simulation.cells import Privacy
from privacy_gate.simulation.partitions import COLUMN, PARTITIONS
from privacy_gate.simulation.rules.aggregators import AGGREGATORS, PREAGGREGATIONS, rule
from privacy_gate.simulation.samples import Samples
from privacy_gate.simulation.servers import Server
from privacy_gate.simulation.simulator import Study, simulate
from privacy_gate.store import Store

MACHINE = Machine(threads=1)
PRIVATE = {"noise_multiplier": 1.0, "clip": 1.0}
FEDERATION: dict[str, Any] = {
    "clients": {"partition": "dirichlet_by_class", "count": 5, "alpha": 0.5, "minimum": 2},
    "rounds": 20,
    "steps": 1,
}
RECIPE: dict[str, Any] = {
    "backbone": {"name": "identity"},
    "classes": 5,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "epochs": 1,
    "batch_size": 16,
    "federation": FEDERATION,
}


def recipe(**changes: Any) -> Recipe:
    return parse(RECIPE | changes, Recipe, "recipe.yaml")


def federated(**changes: Any) -> Recipe:
    return recipe(federation=FEDERATION | changes)


@pytest.fixture
def data(scene: Any) -> AuditData:
    return read_data(scene.manifest, scene.recipe.classes)


def test_recipes_can_name_exactly_the_existing_rules_and_partitions() -> None:
    assert set(get_args(AggregatorName)) == set(AGGREGATORS)
    assert set(get_args(BeforeName)) == set(PREAGGREGATIONS)
    assert set(get_args(PartitionName)) == {*PARTITIONS, COLUMN}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_reaches_its_rules(name: str) -> None:
    value = 3 if name == "iterations" else 1.5
    for each in PARAMETERS[name]:
        aggregator = parse({**FEDERATION, "aggregator": {"name": each, name: value}}, Federation, "f").aggregator
        assert rule_of(aggregator).aggregator.parameters == ((name, value),)


@pytest.mark.parametrize("name", BEFORE_PARAMETERS)
def test_every_parameter_of_a_preaggregation_reaches_it(name: str) -> None:
    for first in BEFORE_PARAMETERS[name]:
        chain = {"name": "median", "before": [{"name": first, name: 3 if name == "size" else 1.5}, "nnm"]}
        aggregator = parse({**FEDERATION, "aggregator": chain}, Federation, "f").aggregator
        assert str(aggregator) == str(rule_of(aggregator)) == f"{first} + nnm + median"
        assert rule_of(aggregator).before[0].parameters == ((name, 3 if name == "size" else 1.5),)


@pytest.mark.parametrize("name", SERVER_PARAMETERS)
def test_every_parameter_of_a_server_reaches_it(name: str) -> None:
    for server in SERVER_PARAMETERS[name]:
        made = cell(federated(server={"name": server, name: 0.125}), None, 0)
        assert made.server == Server(**{"name": server, name: 0.125})  # type: ignore[arg-type]


def test_parameters_change_what_is_trained(data: AuditData) -> None:
    """With each setting changed, the trained heads differ."""
    clipped = {"name": "mean", "before": ["clip"]}
    buckets = {"name": "median", "before": ["bucketing"]}
    pairs = [
        (clipped, {"name": "mean", "before": [{"name": "clip", "tau": 0.01}]}),
        (buckets, {"name": "median", "before": [{"name": "bucketing", "size": 3}]}),
        ({"name": "centered_clipping"}, {"name": "centered_clipping", "iterations": 5}),
        ({"name": "geometric_median"}, {"name": "geometric_median", "iterations": 1}),
    ]
    servers = [({"name": "adam"}, {"name": "adam", "tau": 0.1})]
    hows = [federated(rounds=3, aggregator=one) for pair in pairs for one in pair]
    hows += [federated(rounds=3, server=one) for pair in servers for one in pair]
    jobs = [federate(how, data.digest, None, 0, 0) for how in hows]
    assert data.embedding is not None
    heads = [arrays["head"] for _, arrays in train(jobs, data.embedding, data, MACHINE)]
    for plain, changed in zip(heads[::2], heads[1::2], strict=True):
        assert np.abs(plain - changed).max() > 1e-4


def test_client_privacy_is_simulated_by_an_unweighted_mean() -> None:
    private = {"privacy": {"noise_multiplier": 1.1, "clip": 0.5}}
    for name in ("mean", "uniform_mean"):
        for hidden in (False, True):
            made = cell(federated(**private, aggregator={"name": name}, secure_aggregation=hidden), None, 0)
            assert made.rule == rule("uniform_mean")
            assert made.training.privacy == Privacy(1.1, 0.5, hidden)
            assert str(made.joined) == ("uniform_mean" if hidden else "clip + uniform_mean")


def test_the_epsilon_of_client_privacy_is_stored_with_reference_0_and_reported(data: AuditData, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    store = Store(str(tmp_path / "store"))
    for clients, count in ((FEDERATION["clients"], 5), ({"partition": "column"}, 4)):
        how = federated(privacy={"noise_multiplier": 1.1, "clip": 0.5}, clients=clients, participation=0.5)
        assert how.federation is not None
        named = dataclasses.replace(data, client=np.array([f"c{row % 4}" for row in range(data.rows)]))
        subject = Subject(how, "a" * 64, named, {})
        job = train_reference(how, data.digest, 0)
        run([job], Inputs(named, tmp_path), MACHINE, store)
        spent = spent_on_clients(how.federation, count)
        assert store.get(job)["epsilon"].tolist() == [spent]
        (note,) = accounted(subject, store.get)
        assert f"epsilon {spent:.3g} at delta 1e-05" in note
        assert "Poisson sampling" in note
        assert note.endswith("if it was carried out as stated")
    theirs = federated(privacy={"noise_multiplier": 1.1, "clip": 0.5, "noise_by": "clients"})
    run([train_reference(theirs, data.digest, 0)], Inputs(data, tmp_path), MACHINE, store)
    (note,) = accounted(Subject(theirs, "a" * 64, data, {}), store.get)
    assert note.endswith("if it was carried out as stated, and all clients that are asked add their noise")
    quiet = federated(privacy={"noise_multiplier": 0.0, "clip": 0.5})
    run([train_reference(quiet, data.digest, 0)], Inputs(data, tmp_path), MACHINE, store)
    assert "was not accounted for: it adds no noise" in accounted(Subject(quiet, "a" * 64, data, {}), store.get)[0]
    bare = {name: array for name, array in store.get(job).items() if name != "epsilon"}
    assert "pip install 'privacy-gate[dp]'" in accounted(subject, lambda _: bare)[0]
    assert accounted(Subject(federated(), "a" * 64, data, {}), store.get) == ()


def test_federations_without_newer_settings_keep_their_digests() -> None:
    chain = {"name": "centered_clipping", "tau": 1.0, "before": ["nnm"], "tolerates": 1}
    job = federate(federated(aggregator=chain, server={"name": "adam"}), "d" * 64, None, 0, 0)
    private = {"noise_multiplier": 1.0, "clip": 1.0}
    names = [{"noise_by": "server"}, {}, {"noise_by": "clients"}]
    same, plain, other = (digest(federate(federated(privacy=private | by), "d" * 64, None, 0, 0)) for by in names)
    assert same == plain != other
    assert (
        "noise_by"
        not in describe(federate(federated(privacy=private), "d" * 64, None, 0, 0))["recipe"]["federation"]["privacy"]
    )
    described = describe(job)
    assert described.pop("revision") == 1  # the revision describes the results' format, not settings
    assert digest_of(described) == "724be23f3fc46e30b7e27d1e9496c71de1a70a335230b849207d3aaa96051849"
    for changes in (
        {"aggregator": {**chain, "iterations": 1}},
        {"server": {"name": "adam", "tau": 0.001}},
        {"privacy": {"noise_multiplier": 1.0, "clip": 1.0}},
    ):
        assert digest(federate(federated(**changes), "d" * 64, None, 0, 0)) != digest(job)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clients": {"partition": "iid"}}, "needs count"),
        ({"clients": {"partition": "iid", "count": 5, "alpha": 1.0}}, "alpha belongs to the Dirichlet"),
        ({"clients": {"count": 5}}, "partition column takes it from the table"),
        ({"aggregator": {"name": "krum", "tau": 1.0}}, "krum has no parameter tau"),
        ({"aggregator": {"name": "meen"}}, "meen|mean"),
        ({"secure_aggregation": True, "aggregator": {"name": "krum"}}, "shows the server only the sum"),
        ({"aggregator": {"name": "krum", "iterations": 2}}, "krum has no parameter iterations"),
        ({"aggregator": {"name": "median", "iteration": 2}}, "iterations"),
        ({"aggregator": {"name": "mean", "before": [{"name": "nnm", "tau": 1.0}]}}, "nnm has no parameter tau"),
        ({"aggregator": {"name": "mean", "before": [{"name": "clip", "size": 2}]}}, "clip has no parameter size"),
        ({"aggregator": {"name": "mean", "before": [{"name": "bucketing", "size": 1}]}}, "greater than or equal to 2"),
        ({"aggregator": {"name": "mean", "before": [{"name": "clip", "taw": 1.0}]}}, "taw"),
        ({"aggregator": {"name": "mean", "before": ["clap"]}}, "clap|clip"),
        ({"aggregator": {"name": "mean", "before": ["bucketing", "nnm", "bucketing"]}}, "can be used only once"),
        ({"aggregator": {"name": "q_fedavg", "before": ["bucketing"]}}, "a bucket has none"),
        ({"server": {"name": "avg", "momentum": 0.5}}, "avg has no parameter momentum"),
        ({"server": {"name": "avgm", "decay": 0.5}}, "avgm has no parameter decay"),
        ({"server": {"name": "avgm", "tau": 0.001}}, "avgm has no parameter tau"),
        ({"privacy": {"clip": 1.0}}, "noise_multiplier"),
        ({"privacy": PRIVATE, "aggregator": {"name": "median"}}, "plain mean, not by median"),
        ({"privacy": PRIVATE, "aggregator": {"name": "mean", "before": ["nnm"]}}, "plain mean, not by nnm"),
        ({"privacy": PRIVATE, "aggregator": {"name": "mean", "cap": 2.0}}, "without a cap"),
    ],
)
def test_impossible_federations_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        federated(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "adam", "lr": 0.1}},
        {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
        {"schedule": {"name": "cosine"}},
        {"head": {"initial": "uniform"}},
        {"label_smoothing": 0.1},
    ],
)
def test_settings_that_the_simulation_lacks_are_refused_but_a_program_may_have_them(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ConfigurationError, match="federation is simulated"):
        recipe(**changes)
    assert recipe(**changes, adaptation="command").federation is not None


def test_references_of_a_federated_recipe_learn_their_own_rows_and_differ(data: AuditData, tmp_path: Path) -> None:
    store, how = Store(str(tmp_path / "store")), federated(rounds=60)
    jobs = [train_reference(how, data.digest, index) for index in range(3)]
    run(jobs, Inputs(data, tmp_path), MACHINE, store)
    kept = [store.get(job) for job in jobs]
    for arrays in kept:
        assert arrays["confidence"][arrays["included"]].mean() > arrays["confidence"][~arrays["included"]].mean() + 0.5
    assert not np.array_equal(kept[0]["confidence"], kept[1]["confidence"])
    centralised = train_reference(recipe(federation=None), data.digest, 0)
    run([centralised], Inputs(data, tmp_path), MACHINE, store)
    assert not np.array_equal(store.get(centralised)["confidence"], kept[0]["confidence"])


@pytest.mark.parametrize(
    "settings",
    [
        {"clients": {"partition": "column"}},
        {"clients": {"partition": "dirichlet_by_class", "count": 4, "alpha": 0.5, "minimum": 2}, "participation": 0.5},
    ],
    ids=["column", "dirichlet"],
)
def test_references_trained_together_equal_those_trained_alone_on_their_own_rows(
    data: AuditData, settings: dict[str, Any]
) -> None:
    """One reference has fewer clients than the others, because it got none of the rows of one client."""
    named = dataclasses.replace(data, client=np.array([f"c{row % 4}" for row in range(data.rows)]))
    how, features = federated(rounds=4, **settings), data.embedding
    assert features is not None
    rows = np.arange(data.rows)
    subsets = [(index, rows[rows % 7 != index]) for index in range(3)] + [(9, rows[rows % 4 != 2])]
    together = list(federated_heads(features, named, how, subsets, MACHINE))
    assert [head.index for head in together] == [0, 1, 2, 9]
    for head, (index, mine) in zip(together, subsets, strict=True):
        assert named.client is not None
        alone = Study(
            Samples(features[mine], data.label[mine], named.client[mine]),
            Samples(features[:1], np.array([how.classes - 1])),
            "references",
        )
        (outcome,) = simulate(alone, [cell(how, named.client[mine], index)])
        found = np.hstack([head.weight.numpy(), head.bias.numpy()[:, None]])
        assert found == pytest.approx(outcome.head, abs=1e-5)


def test_an_attack_lowers_accuracy_less_under_the_median(data: AuditData, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    iid = {"partition": "iid", "count": 10}
    mean = federated(clients=iid, rounds=40)
    median = federated(clients=iid, rounds=40, aggregator={"name": "median", "tolerates": 2})
    clean, broken, borne = jobs = [
        federate(mean, data.digest, None, 0, 0),
        federate(mean, data.digest, "ipm_10", 2, 0),
        federate(median, data.digest, "ipm_10", 2, 0),
    ]
    run(jobs, Inputs(data, tmp_path), MACHINE, store)
    accuracy = {job: float(store.get(job)["accuracy"][0]) for job in jobs}
    assert accuracy[clean] > accuracy[borne] > accuracy[broken] + 0.1
    kept = store.get(clean)
    assert kept["sizes"].sum() == (data.split == 0).sum()
    assert len(kept["client_accuracy"]) == len(kept["sizes"]) == 10
    assert kept["hit"].shape == ((data.split == Split.HOLDOUT).sum(),)
    assert kept["hit"].mean() == pytest.approx(kept["accuracy"][0])
    assert kept["head"].shape == (5, 257)


def test_a_planted_backdoor_succeeds_against_the_mean_and_fails_against_the_median() -> None:
    rng = np.random.default_rng(0)
    label, centre = rng.integers(0, 5, 900), 2 * rng.standard_normal((5, 20))
    features = (centre[label] + rng.standard_normal((900, 20))).astype(np.float32)
    triggered = features + 3 * np.eye(20, dtype=np.float32)[19]
    split = np.where(np.arange(900) < 600, Split.MEMBER, Split.HOLDOUT).astype(np.int8)
    table = AuditData(np.arange(900).astype(np.str_), label, split, "e" * 64, embedding=features)
    partition = {"partition": "iid", "count": 6}
    lifts = {}
    for name in ("mean", "median"):
        how = federated(clients=partition, aggregator={"name": name, "tolerates": 2}, rounds=60)
        jobs = [federate(how, table.digest, "backdoor", 2, 0)]
        ((_, arrays),) = train(jobs, features, table, MACHINE, triggered=triggered)
        shown, plain = arrays["backdoor"].mean(axis=1)
        lifts[name] = shown - plain
        assert plain < 0.2
    assert lifts["mean"] > 0.5
    assert lifts["median"] < 0.2


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_diverged_federation_predicts_no_backdoor_target() -> None:
    """NaN logits count as no class, with and without the trigger; else the backdoor would seem to help."""
    rng = np.random.default_rng(0)
    features, label = rng.standard_normal((90, 4)).astype(np.float32), rng.integers(0, 5, 90)
    split = np.where(np.arange(90) < 60, Split.MEMBER, Split.HOLDOUT).astype(np.int8)
    table = AuditData(np.arange(90).astype(np.str_), label, split, "e" * 64, embedding=features)
    for rate, shared in ((3e38, 0.0), (1e-45, 0.2)):
        how = federated(clients={"partition": "iid", "count": 6}).model_copy(
            update={"optimizer": Sgd(name="sgd", lr=rate)}
        )
        jobs = [federate(how, table.digest, "backdoor", 2, 0)]
        ((_, arrays),) = train(jobs, features, table, MACHINE, triggered=features)
        assert np.isfinite(arrays["head"]).all() == (shared > 0)
        assert arrays["backdoor"].shape == (2, (label[60:] != 0).sum())
        assert arrays["backdoor"] == pytest.approx(shared)


def test_a_holdout_with_only_the_target_class_has_no_backdoor_rows() -> None:
    rng = np.random.default_rng(0)
    features, label = rng.standard_normal((90, 4)).astype(np.float32), rng.integers(0, 5, 90)
    label[60:] = 0
    split = np.where(np.arange(90) < 60, Split.MEMBER, Split.HOLDOUT).astype(np.int8)
    table = AuditData(np.arange(90).astype(np.str_), label, split, "e" * 64, embedding=features)
    jobs = [federate(federated(clients={"partition": "iid", "count": 6}), table.digest, "backdoor", 2, 0)]
    ((_, arrays),) = train(jobs, features, table, MACHINE, triggered=features)
    assert "backdoor" not in arrays


def test_clients_by_column_need_a_column_and_are_its_names() -> None:
    how = federated(clients={})
    with pytest.raises(ConfigurationError, match="add columns"):
        cell(how, None, 0)
    assert cell(how, np.array(["b", "a", "c", "a", "b", "c"]), 0).training.clients == 3


def test_a_probe_is_the_head_trained_alone_on_its_rows(data: AuditData, tmp_path: Path) -> None:
    store, how = Store(str(tmp_path / "store")), federated(steps=2)
    named = dataclasses.replace(data, client=np.array([f"c{row % 4}" for row in range(data.rows)]))
    jobs = [probe(how, data.digest, rows) for rows in ("member", "population", "client:c1")]
    run(jobs, Inputs(named, tmp_path), MACHINE, store)
    member, population, client = (store.get(job)["logits"].argmax(axis=1) == data.label for job in jobs)
    trained = {"member": data.split == 0, "population": data.split == 2}
    assert member[trained["member"]].all() > member[~trained["member"]].all()
    assert population[trained["population"]].all() > population[~trained["population"]].all()
    own = trained["member"] & (named.client == "c1")
    assert client[own].all() > client[trained["member"] & ~own].all()


def test_a_probe_does_not_depend_on_others_trained_with_it(data: AuditData, tmp_path: Path) -> None:
    how = federated(steps=2)
    jobs = [probe(how, data.digest, rows) for rows in ("population", "member")]
    together, alone = Store(str(tmp_path / "together")), Store(str(tmp_path / "alone"))
    run(jobs, Inputs(data, tmp_path), MACHINE, together)
    run(jobs[1:], Inputs(data, tmp_path), MACHINE, alone)
    np.testing.assert_allclose(together.get(jobs[1])["logits"], alone.get(jobs[1])["logits"], rtol=1e-5, atol=1e-5)


def test_a_probe_without_rows_is_refused(data: AuditData, tmp_path: Path) -> None:
    job = probe(federated(), data.digest, "client:nobody")
    with pytest.raises(DatasetError, match="no row to train on for 'client:nobody'"):
        run([job], Inputs(data, tmp_path), MACHINE, Store(str(tmp_path / "store")))

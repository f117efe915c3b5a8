"""Simulates the recipe's federation: as cells of a study, with or without an attack, or as references."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays, Names
from privacy_gate.compute.images.backbone import TrainedHead
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.federated_networks import NetworkLearner, Roll
from privacy_gate.compute.training.network_stack import TrainedNetwork
from privacy_gate.compute.work import Work
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.federation import Aggregator, Clients, Federation
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.kinds import PLANTED, Federate
from privacy_gate.jobs.subsets import Subset
from privacy_gate.progress import Progress, silent
from privacy_gate.simulation.adversaries import ADVERSARIES, Planting
from privacy_gate.simulation.cells import UNIFORM, Cell, Privacy, Training
from privacy_gate.simulation.partitions import Partition, Rows, partition
from privacy_gate.simulation.rules.aggregators import Rule, rule, step
from privacy_gate.simulation.samples import Samples, with_ones
from privacy_gate.simulation.scores import right
from privacy_gate.simulation.servers import Server
from privacy_gate.simulation.simulator import Outcome, Study, simulate

CHUNK = 128
"""Number of cells that are trained before their results are stored: a killed run can lose at most that many."""

REFERENCES = 16
"""Number of references, each a federation on its own rows, that are trained before their results are stored."""

REFERENCE_BYTES = 2 << 20
"""Memory for updates of references in one block on a CPU, in bytes: small enough that every thread gets a block."""


def run_federate(jobs: Sequence[Federate], work: Work) -> None:
    """Trains the federations: of heads, grouped by features; of networks, grouped by recipe."""
    data = work.inputs.data
    heads = [job for job in jobs if not job.recipe.trains_network]
    for (backbone, shape), group in groupby(heads, attrgetter("recipe.backbone", "recipe.input")):
        same, features = list(group), work.features(backbone, shape)
        planting = data.embedding is None and any(_planted(job) for job in same)
        triggered = work.features(backbone, shape, PLANTED) if planting else None
        for job, arrays in federate(same, features, data, work.machine, work.progress, triggered):
            work.results.put(job, arrays)
    networks = [job for job in jobs if job.recipe.trains_network]
    for recipe, group in groupby(networks, lambda job: job.recipe.model_copy(update={"federation": None})):
        member, holdout = (np.flatnonzero(data.split == split) for split in (Split.MEMBER, Split.HOLDOUT))
        learner = _learner(recipe, member, holdout, work)
        features = work.features(recipe.backbone, recipe.input)
        for job, arrays in federate(list(group), features, data, work.machine, work.progress, learner=learner):
            work.results.put(job, arrays)


def federate(
    jobs: Sequence[Federate],
    features: NDArray[np.float32],
    data: AuditData,
    machine: Machine,
    progress: Progress = silent,
    triggered: NDArray[np.float32] | None = None,
    learner: NetworkLearner | None = None,
) -> Iterator[tuple[Federate, Arrays]]:
    """Trains on members and tests on the holdout; yields every job with its result. features (N, D).

    triggered  (N, D) features of the same images with the trigger of PLANTED; backdoor adversaries need them
    learner    trains networks, if the jobs' recipes do; None: heads
    """
    study = Study(
        train=_samples(features, data, data.split == Split.MEMBER, triggered),
        test=_samples(features, data, data.split == Split.HOLDOUT, triggered),
        check="federate",
        root=_root(features, data),
        device=str(machine.torch_device()),
        # A network learner has its own threads, which train several clients at once.
        threads=1 if learner else machine.cpu_threads(),
    )
    size = 1 if learner else CHUNK
    for first in range(0, len(jobs), size):
        some = jobs[first : first + size]
        cells = [cell_of(job, study.train.client) for job in some]
        for job, outcome in zip(some, simulate(study, cells, learner=learner), strict=True):
            arrays = _arrays(outcome)
            yield job, arrays if learner else {**arrays, **_head(outcome), **_success(job, outcome, study.test)}
        progress("train federations", first + len(some), len(jobs))


def federated_heads(
    features: NDArray[np.float32],
    data: AuditData,
    recipe: Recipe,
    subsets: Sequence[Subset],
    machine: Machine,
    progress: Progress = silent,
) -> Iterator[TrainedHead]:
    """References of a federated candidate: each is the recipe's federation on its own rows. features (N, D)."""
    study = Study(
        train=_samples(features, data, np.arange(data.rows)),
        # The accuracy of references is not used: one test row is enough, whose label sets the number of classes.
        test=Samples(features[:1], np.array([recipe.classes - 1])),
        check="references",
        root=_root(features, data),
        only=dict(subsets),
        device=str(machine.torch_device()),
        threads=machine.cpu_threads(),
        memory=REFERENCE_BYTES,
    )
    for first in range(0, len(subsets), REFERENCES):
        some = subsets[first : first + REFERENCES]
        cells = [cell(recipe, holders(data, rows), index) for index, rows in some]
        for (index, _), outcome in zip(some, simulate(study, cells), strict=True):
            head = torch.from_numpy(outcome.head)
            yield TrainedHead(index, head[:, :-1].float(), head[:, -1].float())
        progress("train references", first + len(some), len(subsets))


def federated_networks(recipe: Recipe, subsets: Sequence[Subset], work: Work) -> Iterator[TrainedNetwork]:
    """References of a federated candidate that trains a network: each is the recipe's federation on its own rows."""
    data, features = work.inputs.data, work.features(recipe.backbone, recipe.input)
    # The accuracy of references is not used: one test row is enough.
    test = np.flatnonzero(data.split == Split.HOLDOUT)[:1]
    for done, (index, rows) in enumerate(subsets, 1):
        learner = _learner(recipe, rows, test, work)
        train = _samples(features, data, rows)
        study = Study(train, _samples(features, data, test), "references", _root(features, data))
        yield learner.network(
            torch.from_numpy(simulate(study, [cell(recipe, train.client, index)], learner=learner)[0].model), index
        )
        work.progress("train references", done, len(subsets))


def _learner(recipe: Recipe, train: Rows, test: Rows, work: Work) -> NetworkLearner:
    data = work.inputs.data
    roll = Roll(train, test, np.flatnonzero(data.split == Split.POPULATION))
    return NetworkLearner(recipe, work.images(recipe), data.label, roll, work.machine)


def cell_of(job: Federate, client: Names | None) -> Cell:
    """The cell that the job describes; client as in `cell`."""
    plain = cell(job.recipe, client, job.seed)
    if job.stress is not None:
        # A stress test sets one of the three shares, and the others to 0.
        share = {"gone": 0.0, "absent": 0.0, "stale": 0.0} | dict([job.stress])
        stressed = replace(plain.training, gone=share["gone"], absent=share["absent"], stale=share["stale"])
        plain = replace(plain, training=stressed)
    if job.adversary is None:
        return plain
    return replace(plain, adversary=job.adversary, f=job.byzantine, tolerated=plain.assumed)


def cell(recipe: Recipe, client: Names | None, seed: int) -> Cell:
    """The recipe's federation without an attack; client: name of the client of each training row, None if unknown.

    Raises ConfigurationError if the federation cannot be simulated.
    """
    federation, optimizer = recipe.federation, recipe.optimizer
    if federation is None or not isinstance(optimizer, Sgd):
        raise ConfigurationError(
            "the recipe declares no federation with plain SGD at the clients: set federation, and optimizer sgd"
        )
    # Client-level privacy gives all clients the same weight, whatever they claim.
    uniform = federation.privacy is not None and federation.aggregator.is_mean
    return Cell(
        rule=UNIFORM if uniform else rule_of(federation.aggregator),
        tolerated=federation.aggregator.tolerates,
        partition=partition_of(federation.clients),
        seed=seed,
        training=_training(recipe, federation, optimizer, client),
        server=Server(**federation.server.model_dump(exclude_none=True)),
    )


def _training(recipe: Recipe, federation: Federation, optimizer: Sgd, client: Names | None) -> Training:
    return Training(
        clients=clients_of(federation, client),
        rounds=federation.rounds,
        steps=federation.steps,
        epochs=recipe.epochs,
        batch=recipe.batch_size,
        lr=optimizer.lr,
        decay=optimizer.weight_decay,
        prox=federation.prox,
        participation=federation.participation,
        privacy=_privacy(federation),
    )


def clients_of(federation: Federation, client: Names | None) -> int:
    """Number of clients of the federation; client as in `cell`."""
    return federation.clients.count or len(np.unique(_named(client)))


def _privacy(federation: Federation) -> Privacy | None:
    private = federation.privacy
    if private is None:
        return None
    return Privacy(
        private.noise_multiplier,
        private.clip,
        hidden=federation.secure_aggregation,
        by_clients=private.noise_by == "clients",
    )


def holders(data: AuditData, rows: NDArray[np.generic]) -> Names | None:
    """The client of each of these rows; None if the table names no clients."""
    return None if data.client is None else data.client[rows]


def _named(client: Names | None) -> Names:
    if client is None:
        raise ConfigurationError(
            "the recipe's clients come from a column, but the data manifest names none: add columns: {client: ...}"
        )
    return client


def rule_of(aggregator: Aggregator) -> Rule:
    """The simulator's rule for the recipe's aggregator."""
    return rule(*(step(name, parameters) for name, parameters in aggregator.steps))


def partition_of(clients: Clients) -> Partition:
    """The simulator's partition for the recipe's clients."""
    # The recipe's key per_client means classes or shards, depending on the partition.
    given = {"alpha": clients.alpha}
    given |= {"classes" if clients.partition == "pathological" else "per_client": clients.per_client}
    known = {
        name: float(value) if name == "alpha" else int(value) for name, value in given.items() if value is not None
    }
    return partition(clients.partition, minimum=clients.minimum, **known)


def _samples(
    features: NDArray[np.float32],
    data: AuditData,
    rows: NDArray[np.generic],
    triggered: NDArray[np.float32] | None = None,
) -> Samples:
    client, twins = (None if column is None else column[rows] for column in (data.client, triggered))
    return Samples(features[rows], data.label[rows], client, twins)


def _root(features: NDArray[np.float32], data: AuditData) -> Samples | None:
    """The server's own rows, for rules that need some: the population, on which no client trains."""
    rows = data.split == Split.POPULATION
    return Samples(features[rows], data.label[rows]) if rows.any() else None


def _planted(job: Federate) -> Planting | None:
    """The backdoor that the job's adversary plants; None if it plants none."""
    return ADVERSARIES[job.adversary].backdoor if job.adversary else None


def _success(job: Federate, outcome: Outcome, test: Samples) -> Arrays:
    """Which rows of other classes the final head assigns to the backdoor's target: with, without trigger, (2, T')."""
    planted = _planted(job)
    if planted is None or outcome.backdoor is None:
        return {}
    others = test.features[test.label != planted.target]
    logits = torch.from_numpy(with_ones(others) @ outcome.head.T).unsqueeze(2)
    # `right`, as with the trigger: a tie counts in part, and NaN counts as no class; argmax would return class 0.
    called = right(logits, torch.full((len(others),), planted.target))[:, 0].numpy()
    return {"backdoor": np.array([outcome.backdoor, called], dtype=np.float32)}


def _arrays(outcome: Outcome) -> Arrays:
    return {
        "accuracy": np.array([outcome.accuracy]),
        "hit": outcome.hit,
        "class_accuracy": outcome.class_accuracy,
        "client_accuracy": outcome.client_accuracy,
        "curve": outcome.curve,
        "rounds": outcome.rounds,
        "heterogeneity": np.array([outcome.heterogeneity]),
        "sizes": outcome.sizes,
    }


def _head(outcome: Outcome) -> Arrays:
    return {"head": outcome.head.astype(np.float32)}

"""Trains reference models as the recipe says, on random shares of the pool, and stores their evidence."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.compute.images.backbone import TrainedHead, joined
from privacy_gate.compute.runners.federate import clients_of, federated_heads, federated_networks, holders
from privacy_gate.compute.training.accountant import spent_epsilon, spent_on_clients
from privacy_gate.compute.training.command import train_by_command
from privacy_gate.compute.training.heads import confidences, head_logits, train_heads
from privacy_gate.compute.training.judged import judged
from privacy_gate.compute.training.network_stack import TrainedNetwork
from privacy_gate.compute.training.networks import network_logits, train_networks
from privacy_gate.compute.training.parts import network
from privacy_gate.compute.training.spans import network_span
from privacy_gate.compute.training.starts import public_network, span_refused
from privacy_gate.compute.work import Work
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.recipe import CommandRecipe, Recipe
from privacy_gate.jobs.kinds import TrainReference
from privacy_gate.jobs.subsets import training_sets

Rows = dict[int, NDArray[np.bool_]]
Answers = tuple[int, list[NDArray[np.float32]], dict[str, NDArray[Any]]]
"""A network's index, its logits (N, C) in each of the recipe's views, and what is kept of its weights."""


def run_references(jobs: Sequence[TrainReference], work: Work) -> None:
    """Trains the references, recipe by recipe: by an external program, as networks, or as heads."""
    for recipe, same in groupby(jobs, attrgetter("recipe")):
        if isinstance(recipe, CommandRecipe):
            _by_command(recipe, list(same), work)
        elif recipe.adaptation != "head":
            _networks(recipe, list(same), work)
        else:
            _heads(recipe, list(same), work)


def _pools(jobs: Sequence[TrainReference], data: AuditData) -> Iterator[tuple[dict[int, TrainReference], Rows]]:
    """Groups of jobs that share a pool: the jobs by index, and each one's training rows, (N,) bool, by index."""
    for (divisor, without, _), group in groupby(jobs, attrgetter("divisor", "without", "keeps")):
        by_index = {job.index: job for job in group}
        yield by_index, dict(training_sets(data, by_index, divisor, without))


def _heads(recipe: Recipe, jobs: Sequence[TrainReference], work: Work) -> None:
    data, machine = work.inputs.data, work.machine
    # Features are moved to the device once, for all heads.
    features = torch.from_numpy(work.views(recipe)).to(machine.torch_device())
    for by_index, rows in _pools(jobs, data):
        subsets = [(index, np.flatnonzero(chosen)) for index, chosen in rows.items()]
        heads: Iterator[TrainedHead]
        if recipe.federation is None:
            heads = train_heads(features, data.label, recipe, subsets, machine, progress=work.progress)
        else:
            heads = federated_heads(features[0].cpu().numpy(), data, recipe, subsets, machine, work.progress)
        for head in heads:
            arrays = {**_judge(head, features, work), **_drawn(recipe, head.index, rows[head.index], data)}
            if "head" in by_index[head.index].keeps:
                arrays["head"] = joined(head)
            work.results.put(by_index[head.index], arrays)


def _drawn(recipe: Recipe, index: int, rows: NDArray[np.bool_], data: AuditData) -> dict[str, NDArray[Any]]:
    """The reference's training rows; for reference 0 also its epsilon, for rows, or for clients in a federation."""
    spent = None
    if index == 0 and recipe.federation is not None:
        spent = spent_on_clients(recipe.federation, clients_of(recipe.federation, holders(data, rows)))
    elif index == 0:
        spent = spent_epsilon(recipe, int(rows.sum()))
    return {"included": rows} if spent is None else {"included": rows, "epsilon": np.array([spent])}


def _judge(head: TrainedHead, features: torch.Tensor, work: Work) -> dict[str, NDArray[Any]]:
    """The arrays stored for a reference, see jobs.kinds.TrainReference; features (V, N, D)."""
    label, machine = work.inputs.data.label, work.machine
    answers = [confidences(view, label, [head], machine) for view in features]
    logits = head_logits(features[0], head, machine)
    arrays: dict[str, NDArray[Any]] = {
        "confidence": np.mean([phi[0] for phi, _ in answers], axis=0),
        "residual": answers[0][1][0],
        "correct": logits.argmax(axis=1) == label,
    }
    # Full logits are stored only for reference 0: for all of them they would fill the store.
    return arrays if head.index else {**arrays, "logits": logits}


def _networks(recipe: Recipe, jobs: Sequence[TrainReference], work: Work) -> None:
    data, machine = work.inputs.data, work.machine
    images, judge = work.images(recipe), network(recipe).to(machine.torch_device())

    for by_index, rows in _pools(jobs, data):
        kept = next(iter(by_index.values())).keeps
        public = public_network(recipe, machine) if "span" in kept and span_refused(recipe) is None else None

        def answer(reference: TrainedNetwork, public: torch.nn.Module | None = public) -> Answers:
            tensors = reference.tensors
            logits = [network_logits(judge, tensors, images, machine, view) for view in range(len(recipe.views))]
            if public is None:
                return reference.index, logits, {}
            span = network_span(public, tensors, images, data.label, recipe, machine)
            return reference.index, logits, {"span": span.astype(np.float32)}

        subsets = [(index, np.flatnonzero(chosen)) for index, chosen in rows.items()]
        answers: Iterator[Answers]
        if recipe.federation is None:
            answers = train_networks(images, data.label, recipe, subsets, machine, answer, progress=work.progress)
        else:
            answers = map(answer, federated_networks(recipe, subsets, work))
        for index, logits, weights in answers:
            arrays = {**judged(logits, data.label), **_drawn(recipe, index, rows[index], data), **weights}
            work.results.put(by_index[index], arrays if index else {**arrays, "logits": logits[0]})


def _by_command(recipe: CommandRecipe, jobs: Sequence[TrainReference], work: Work) -> None:
    """Runs the external program once per reference, one after the other: it may use the whole machine itself."""
    done = 0
    for by_index, rows in _pools(jobs, work.inputs.data):
        for index, job in by_index.items():
            work.results.put(job, train_by_command(recipe, job, rows[index], work.inputs.data))
            done += 1
            work.progress("train references", done, len(jobs))

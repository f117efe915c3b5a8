"""Jobs in, arrays into the store: the one door to the GPU floor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.candidate import Backbone, CommandRecipe, Input, Recipe, View
from privacy_gate.compute.accountant import spent_epsilon
from privacy_gate.compute.backbone import candidate_head
from privacy_gate.compute.command import score_by_command, train_by_command
from privacy_gate.compute.control import train_control
from privacy_gate.compute.embed import embed
from privacy_gate.compute.federate import federate, federated_heads
from privacy_gate.compute.heads import TrainedHead, confidences, head_logits, train_heads
from privacy_gate.compute.judged import judged, network_images, score_network
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.networks import network_logits, train_networks
from privacy_gate.compute.parts import network
from privacy_gate.compute.probes import train_probes
from privacy_gate.compute.subsets import included, subpool
from privacy_gate.compute.triggers import predict_triggered
from privacy_gate.dataset import AuditData, Split
from privacy_gate.errors import CandidateError
from privacy_gate.job import Embed, Federate, Job, Probe, Score, TrainControl, TrainReference, Trigger, embed_jobs
from privacy_gate.progress import Progress, silent
from privacy_gate.store import Arrays

Features = NDArray[np.float32]
Rows = dict[int, NDArray[np.bool_]]

_PLAIN = View()


class Results(Protocol):
    """Where results are kept."""

    def has(self, job: Job) -> bool: ...
    def get(self, job: Job) -> dict[str, NDArray[Any]]: ...
    def put(self, job: Job, arrays: Arrays) -> None: ...


@dataclass(frozen=True)
class Inputs:
    """What jobs read beside their own fields: the audit data and the folder of the candidate's files."""

    data: AuditData
    candidate: Path


@dataclass
class _Kinds:
    """Jobs by kind, each in the order it was asked for."""

    embeds: list[Embed] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    references: list[TrainReference] = field(default_factory=list)
    controls: list[TrainControl] = field(default_factory=list)
    federations: list[Federate] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    triggers: list[Trigger] = field(default_factory=list)

    def add(self, job: Job) -> None:
        match job:
            case Embed():
                self.embeds.append(job)
            case Score():
                self.scores.append(job)
            case TrainReference():
                self.references.append(job)
            case TrainControl():
                self.controls.append(job)
            case Federate():
                self.federations.append(job)
            case Probe():
                self.probes.append(job)
            case Trigger():
                self.triggers.append(job)
            case _:
                assert_never(job)


def run(jobs: Sequence[Job], inputs: Inputs, machine: Machine, results: Results, progress: Progress = silent) -> None:
    """Computes the jobs and stores each result as soon as it is there.

    Features come first, since all else stands on them: those that another shard has not stored
    yet are computed here too.
    """
    kinds = _Kinds()
    for job in jobs:
        kinds.add(job)
    _embed(kinds.embeds, inputs, machine, results, progress)
    for score in kinds.scores:
        results.put(score, _score(score.recipe, inputs, machine, results, progress))
    for control in kinds.controls:
        features = features_of(control.backbone, control.input, inputs, machine, results, progress)
        results.put(control, train_control(features, inputs.data.split, machine))
    for how, same in groupby(kinds.references, attrgetter("recipe")):
        _references(how, list(same), inputs, machine, results, progress)
    for (backbone, shape), group in groupby(kinds.federations, attrgetter("recipe.backbone", "recipe.input")):
        features = features_of(backbone, shape, inputs, machine, results, progress)
        for federation, arrays in federate(list(group), features, inputs.data, machine, progress):
            results.put(federation, arrays)
    for how, shown in groupby(kinds.triggers, attrgetter("recipe")):
        tried = predict_triggered(how, list(shown), inputs.data, inputs.candidate, machine)
        for done, (trigger, arrays) in enumerate(tried, 1):
            results.put(trigger, arrays)
            progress("try triggers", done, len(kinds.triggers))
    for how, probes in groupby(kinds.probes, attrgetter("recipe")):
        features = features_of(how.backbone, how.input, inputs, machine, results, progress)
        for probe, arrays in train_probes(how, list(probes), features, inputs.data, machine):
            results.put(probe, arrays)


def _references(
    recipe: Recipe,
    jobs: Sequence[TrainReference],
    inputs: Inputs,
    machine: Machine,
    results: Results,
    progress: Progress,
) -> None:
    """References of one recipe, whatever it trains."""
    if isinstance(recipe, CommandRecipe):
        _train_by_command(recipe, jobs, inputs.data, results, progress)
    elif recipe.adaptation != "head":
        _train_networks(recipe, jobs, inputs.data, machine, results, progress)
    else:
        # Where the device is a GPU, features travel once.
        views = torch.from_numpy(all_views(recipe, inputs, machine, results, progress)).to(machine.torch_device())
        _train(recipe, jobs, views, inputs.data, machine, results, progress)


def _embed(jobs: Sequence[Embed], inputs: Inputs, machine: Machine, results: Results, progress: Progress) -> None:
    missing = [job for job in jobs if not results.has(job)]
    for job, features, content in embed(missing, inputs.data, machine, progress):
        results.put(job, {"features": features, "content": content})


def features_of(
    backbone: Backbone,
    shape: Input | None,
    inputs: Inputs,
    machine: Machine,
    results: Results,
    progress: Progress,
    view: View = _PLAIN,
) -> Features:
    """Features of every row in one view, (N, D): the table's own, or put together from stored parts."""
    if inputs.data.embedding is not None:
        return inputs.data.embedding
    parts = embed_jobs(backbone, shape, inputs.data.digest, inputs.data.rows, [view])
    _embed(parts, inputs, machine, results, progress)
    return np.concatenate([results.get(part)["features"] for part in parts])


def all_views(recipe: Recipe, inputs: Inputs, machine: Machine, results: Results, progress: Progress) -> Features:
    """Features of every row in each of the recipe's V views, one view after the other: (V, N, D)."""
    views = [
        features_of(recipe.backbone, recipe.input, inputs, machine, results, progress, view) for view in recipe.views
    ]
    return np.stack(views) if len(views) > 1 else views[0][None]


def _score(
    recipe: Recipe, inputs: Inputs, machine: Machine, results: Results, progress: Progress
) -> dict[str, NDArray[Any]]:
    """What is kept of the candidate."""
    if isinstance(recipe, CommandRecipe):
        return score_by_command(recipe, inputs.candidate, inputs.data)
    if recipe.adaptation != "head":
        images = network_images(recipe, inputs.data, machine, progress)
        return score_network(recipe, inputs.candidate, images, inputs.data.label, machine)
    features, head = all_views(recipe, inputs, machine, results, progress), candidate_head(inputs.candidate, recipe)
    if head.weight.shape[1] != features.shape[2]:
        raise CandidateError(
            f"the candidate's head reads {head.weight.shape[1]} features, the table has {features.shape[2]}"
        )
    answers = [confidences(view, inputs.data.label, [head], machine)[0][0] for view in features]
    return {"logits": head_logits(features[0], head, machine), "confidence": np.mean(answers, axis=0)}


def _rows(jobs: Sequence[TrainReference], data: AuditData) -> Iterator[tuple[dict[int, TrainReference], Rows]]:
    """Jobs that share a pool, by index, and the rows that each is trained on, (N,) bool.

    As large a share of the pool as the members are of the whole of it.
    """
    pool = data.split != Split.POPULATION
    share = int((data.split == Split.MEMBER).sum()) / int(pool.sum())
    for (divisor, without), group in groupby(jobs, attrgetter("divisor", "without")):
        left = pool.copy()
        left[list(without)] = False
        part = subpool(data.label, left, divisor)
        by_index = {job.index: job for job in group}
        size = round(int(part.sum()) * share)
        yield by_index, {index: included(index, part, size) for index in by_index}


def _train(
    recipe: Recipe,
    jobs: Sequence[TrainReference],
    features: torch.Tensor,
    data: AuditData,
    machine: Machine,
    results: Results,
    progress: Progress,
) -> None:
    """Heads on features (V, N, D), on the device that computes."""
    for by_index, rows in _rows(jobs, data):
        subsets = [(index, np.flatnonzero(chosen)) for index, chosen in rows.items()]
        if recipe.federation is None:
            heads: Iterator[TrainedHead] = train_heads(
                features, data.label, recipe, subsets, machine, progress=progress
            )
        else:
            heads = federated_heads(features[0].cpu().numpy(), data, recipe, subsets, machine, progress)
        for head in heads:
            arrays = _judge(head, features, data, rows[head.index], machine)
            if head.index == 0 and (spent := spent_epsilon(recipe, int(rows[0].sum()))) is not None:
                arrays["epsilon"] = np.array([spent])
            results.put(by_index[head.index], arrays)


def _train_networks(
    recipe: Recipe,
    jobs: Sequence[TrainReference],
    data: AuditData,
    machine: Machine,
    results: Results,
    progress: Progress,
) -> None:
    """Networks on the table's images."""
    images, judge = network_images(recipe, data, machine, progress), network(recipe)
    judge = judge.to(machine.torch_device())
    for by_index, rows in _rows(jobs, data):
        subsets = [(index, np.flatnonzero(chosen)) for index, chosen in rows.items()]
        for found in train_networks(images, data.label, recipe, subsets, machine, progress=progress):
            logits = [network_logits(judge, found.tensors, images, machine, view) for view in range(len(recipe.views))]
            arrays = {**judged(logits, data.label), "included": rows[found.index]}
            results.put(by_index[found.index], arrays if found.index else {**arrays, "logits": logits[0]})


def _train_by_command(
    recipe: CommandRecipe, jobs: Sequence[TrainReference], data: AuditData, results: Results, progress: Progress
) -> None:
    """One program after the other: how many share the machine is the program's own affair."""
    done = 0
    for by_index, rows in _rows(jobs, data):
        for index, job in by_index.items():
            results.put(job, train_by_command(recipe, job, rows[index], data))
            done += 1
            progress("train references", done, len(jobs))


def _judge(
    head: TrainedHead, features: torch.Tensor, data: AuditData, chosen: NDArray[np.bool_], machine: Machine
) -> dict[str, NDArray[Any]]:
    """What is kept of a reference: features (V, N, D)."""
    answers = [confidences(view, data.label, [head], machine) for view in features]
    logits = head_logits(features[0], head, machine)
    arrays: dict[str, NDArray[Any]] = {
        "confidence": np.mean([phi[0] for phi, _ in answers], axis=0),
        "residual": answers[0][1][0],
        "correct": logits.argmax(axis=1) == data.label,
        "included": chosen,
    }
    if head.index == 0:
        arrays["logits"] = logits
    return arrays

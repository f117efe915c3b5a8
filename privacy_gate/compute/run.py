"""Jobs in, arrays into the store: the one door to the GPU floor."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.candidate import Backbone, Input
from privacy_gate.compute.backbone import candidate_head
from privacy_gate.compute.control import train_control
from privacy_gate.compute.embed import embed
from privacy_gate.compute.heads import TrainedHead, confidences, head_logits, train_heads
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.subsets import included, subpool
from privacy_gate.dataset import AuditData, Split
from privacy_gate.errors import CandidateError
from privacy_gate.job import Embed, Job, Score, TrainControl, TrainReference, embed_jobs
from privacy_gate.progress import Progress, silent
from privacy_gate.store import Arrays

Features = NDArray[np.float32]


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


def run(jobs: Sequence[Job], inputs: Inputs, machine: Machine, results: Results, progress: Progress = silent) -> None:
    """Computes the jobs and stores each result as soon as it is there.

    Features come first, since all else stands on them: those that another shard has not stored
    yet are computed here too.
    """
    embeds: list[Embed] = []
    scores: list[Score] = []
    references: list[TrainReference] = []
    controls: list[TrainControl] = []
    for job in jobs:
        match job:
            case Embed():
                embeds.append(job)
            case Score():
                scores.append(job)
            case TrainReference():
                references.append(job)
            case TrainControl():
                controls.append(job)
            case _:
                assert_never(job)
    _embed(embeds, inputs, machine, results, progress)
    for score in scores:
        features = features_of(score.recipe.backbone, score.recipe.input, inputs, machine, results, progress)
        head = candidate_head(inputs.candidate, score.recipe)
        if head.weight.shape[1] != features.shape[1]:
            found = head.weight.shape[1]
            raise CandidateError(f"the candidate's head reads {found} features, the table has {features.shape[1]}")
        results.put(score, {"logits": head_logits(features, head, machine)})
    for control in controls:
        features = features_of(control.backbone, control.input, inputs, machine, results, progress)
        results.put(control, train_control(features, inputs.data.split, machine))
    for recipe, alike in groupby(references, attrgetter("recipe")):
        features = features_of(recipe.backbone, recipe.input, inputs, machine, results, progress)
        for divisor, group in groupby(alike, attrgetter("divisor")):
            part = subpool(inputs.data.label, inputs.data.split != Split.POPULATION, divisor)
            _train(list(group), features, inputs.data, part, machine, results, progress)


def _embed(jobs: Sequence[Embed], inputs: Inputs, machine: Machine, results: Results, progress: Progress) -> None:
    missing = [job for job in jobs if not results.has(job)]
    for job, features, content in embed(missing, inputs.data, machine, progress):
        results.put(job, {"features": features, "content": content})


def features_of(
    backbone: Backbone, shape: Input | None, inputs: Inputs, machine: Machine, results: Results, progress: Progress
) -> Features:
    """Features of every row, (N, D): the table's own, or put together from stored parts."""
    if inputs.data.embedding is not None:
        return inputs.data.embedding
    parts = embed_jobs(backbone, shape, inputs.data.digest, inputs.data.rows)
    _embed(parts, inputs, machine, results, progress)
    return np.concatenate([results.get(part)["features"] for part in parts])


def _train(
    jobs: Sequence[TrainReference],
    features: Features,
    data: AuditData,
    part: NDArray[np.bool_],
    machine: Machine,
    results: Results,
    progress: Progress,
) -> None:
    """Trains references on shares of `part` (N,), as large a share as the members are of the whole pool."""
    members, pool = int((data.split == Split.MEMBER).sum()), int((data.split != Split.POPULATION).sum())
    size = round(int(part.sum()) * members / pool)
    by_index = {job.index: job for job in jobs}
    rows = {index: included(index, part, size) for index in by_index}
    subsets = [(index, np.flatnonzero(chosen)) for index, chosen in rows.items()]
    # Where the device is a GPU, features travel once.
    shared = torch.from_numpy(features).to(machine.torch_device())
    for head in train_heads(shared, data.label, jobs[0].recipe, subsets, machine, progress=progress):
        results.put(by_index[head.index], _judge(head, shared, data, rows[head.index], machine))


def _judge(
    head: TrainedHead, features: torch.Tensor, data: AuditData, chosen: NDArray[np.bool_], machine: Machine
) -> dict[str, NDArray[Any]]:
    """What is kept of a reference."""
    phi, residual = confidences(features, data.label, [head], machine)
    arrays: dict[str, NDArray[Any]] = {"confidence": phi[0], "residual": residual[0], "included": chosen}
    if head.index == 0:
        arrays["logits"] = head_logits(features, head, machine)
    return arrays

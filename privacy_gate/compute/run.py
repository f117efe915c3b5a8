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

from privacy_gate.candidate import Backbone, Input, Recipe, View
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
        results.put(score, _score(score.recipe, inputs, machine, results, progress))
    for control in controls:
        features = features_of(control.backbone, control.input, inputs, machine, results, progress)
        results.put(control, train_control(features, inputs.data.split, machine))
    for recipe, alike in groupby(references, attrgetter("recipe")):
        # Where the device is a GPU, features travel once.
        views = torch.from_numpy(all_views(recipe, inputs, machine, results, progress)).to(machine.torch_device())
        for (divisor, without), group in groupby(alike, attrgetter("divisor", "without")):
            pool = inputs.data.split != Split.POPULATION
            pool[list(without)] = False
            part = subpool(inputs.data.label, pool, divisor)
            _train(list(group), views, inputs.data, part, machine, results, progress)


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
    features, head = all_views(recipe, inputs, machine, results, progress), candidate_head(inputs.candidate, recipe)
    if head.weight.shape[1] != features.shape[2]:
        raise CandidateError(
            f"the candidate's head reads {head.weight.shape[1]} features, the table has {features.shape[2]}"
        )
    answers = [confidences(view, inputs.data.label, [head], machine)[0][0] for view in features]
    return {"logits": head_logits(features[0], head, machine), "confidence": np.mean(answers, axis=0)}


def _train(
    jobs: Sequence[TrainReference],
    features: torch.Tensor,
    data: AuditData,
    part: NDArray[np.bool_],
    machine: Machine,
    results: Results,
    progress: Progress,
) -> None:
    """Trains references on shares of `part` (N,), as large a share as the members are of the whole pool.

    features (V, N, D), on the device that computes.
    """
    members, pool = int((data.split == Split.MEMBER).sum()), int((data.split != Split.POPULATION).sum())
    size = round(int(part.sum()) * members / pool)
    by_index = {job.index: job for job in jobs}
    rows = {index: included(index, part, size) for index in by_index}
    subsets = [(index, np.flatnonzero(chosen)) for index, chosen in rows.items()]
    for head in train_heads(features, data.label, jobs[0].recipe, subsets, machine, progress=progress):
        results.put(by_index[head.index], _judge(head, features, data, rows[head.index], machine))


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

"""Attacks the candidate's round log: compares the updates of every round with every row of the audit table."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.compute.images.backbone import build, candidate_head, head_names
from privacy_gate.compute.work import Work
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.roundlog import RoundLog
from privacy_gate.errors import CandidateError, UndecidedError
from privacy_gate.jobs.kinds import Trajectory
from privacy_gate.simulation.leaks.trajectory import RoundSums
from privacy_gate.simulation.samples import with_ones


def run_trajectory(jobs: Sequence[Trajectory], work: Work) -> None:
    """Reads the log once per job; there is rarely more than one job."""
    for job in jobs:
        work.results.put(job, _read(job, work))


def _read(job: Trajectory, work: Work) -> Arrays:
    """The job's result: see jobs.kinds.Trajectory."""
    if work.inputs.rounds is None:
        raise UndecidedError("the candidate's round log is not here; run the step that pulls it")
    log = RoundLog.open(work.inputs.rounds)
    if log.digest != job.rounds:
        raise CandidateError("the round log changed since it was pinned; run the gate again")
    features = work.features(job.recipe.backbone, job.recipe.input)
    head = candidate_head(work.inputs.candidate, job.recipe)
    candidate = np.concatenate([head.weight.numpy(), head.bias.numpy()[:, None]], axis=1).astype(np.float64)
    names = log.clients()
    place = {client: index for index, client in enumerate(names)}
    # The log's clients by their code in the table; -1 for clients that the table does not name.
    known = {str(client): index for index, client in enumerate(np.unique(_named(work.inputs.data)))}
    seen = RoundSums(with_ones(features.astype(np.float64)), work.inputs.data.label, len(names))
    rounds, last = 0, candidate
    for done, one in enumerate(log.rounds(), 1):
        names_in_log = _head_of(one.weights, next(iter(one.updates.values())), job.recipe)
        before = _joined(one.weights, names_in_log, candidate.shape)
        updates = np.stack([_joined(update, names_in_log, candidate.shape) for update in one.updates.values()])
        rounds += seen.add(before, updates, np.array([place[client] for client in one.updates]))
        # FedAvg of the round's updates: after the last round it should give the candidate itself.
        share = np.array([one.examples.get(client, 1) for client in one.updates], dtype=np.float64)
        last = before + np.tensordot(share / share.sum(), updates, axes=1)
        work.progress("read rounds", done, len(log.files))
    length = float(np.linalg.norm(candidate))
    return {
        "z": seen.z().astype(np.float32),
        "seen": seen.seen,
        "client": np.array([known.get(client, -1) for client in names]),
        "rounds": np.array([rounds]),
        "distance": np.array([float(np.linalg.norm(candidate - last)) / length if length else np.inf]),
    }


def _named(data: AuditData) -> NDArray[np.str_]:
    """Each row's client; empty if the table names no clients."""
    return np.array([], dtype=np.str_) if data.client is None else data.client


def _head_of(weights: Arrays, update: Arrays, recipe: Recipe) -> tuple[str, str | None]:
    """Names of the last layer's weight and bias in the log: the architecture's names, or those of its only layer."""
    if not recipe.backbone.is_identity:
        names = head_names(build(recipe.backbone, recipe.classes))
        if set(names) <= set(update):
            return names
    matrices = [name for name in update if weights[name].ndim == 2]
    vectors = [name for name in update if weights[name].ndim == 1]
    if len(matrices) != 1 or len(vectors) > 1:
        raise CandidateError(
            f"round log: its updates hold {sorted(update)[:5]}; expected the candidate's last layer, under the names "
            "that the candidate uses"
        )
    return matrices[0], vectors[0] if vectors else None


def _joined(
    tensors: Mapping[str, NDArray[np.generic]], names: tuple[str, str | None], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Weight and bias as one matrix, (C, D + 1); a layer without a bias gets zeros."""
    weight = np.asarray(tensors[names[0]], dtype=np.float64)
    if weight.shape[2:] == (1, 1):  # a 1 x 1 convolution on pooled features is a linear layer
        weight = weight[..., 0, 0]
    bias = np.zeros(len(weight)) if names[1] is None else np.asarray(tensors[names[1]], dtype=np.float64)
    if weight.shape != (shape[0], shape[1] - 1) or bias.shape != shape[:1]:
        raise CandidateError(
            f"round log: {names[0]} has shape {weight.shape}, expected {(shape[0], shape[1] - 1)} "
            "as in the candidate's head"
        )
    return np.concatenate([weight, bias[:, None]], axis=1)

"""Probes: heads trained centrally on chosen rows, as a baseline for federations."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import head_logits, train_heads
from privacy_gate.compute.work import Work
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import DatasetError
from privacy_gate.jobs.kinds import Probe
from privacy_gate.jobs.subsets import Subset


def run_probe(jobs: Sequence[Probe], work: Work) -> None:
    """Trains the heads, recipe by recipe."""
    for recipe, same in groupby(jobs, attrgetter("recipe")):
        features = work.features(recipe.backbone, recipe.input)
        for job, arrays in train_probes(recipe, list(same), features, work.inputs.data, work.machine):
            work.results.put(job, arrays)


def train_probes(
    recipe: Recipe, jobs: Sequence[Probe], features: NDArray[np.float32], data: AuditData, machine: Machine
) -> Iterator[tuple[Probe, Arrays]]:
    """Every job with its result. features (N, D). Probes with equally many epochs are trained stacked."""
    by_epochs: dict[int, list[tuple[Probe, Subset]]] = {}
    for job in jobs:
        rows = _rows(job.rows, data)
        # The index, which seeds all draws, is a hash of the rows' name: a probe does not depend on others in its stack.
        index = int.from_bytes(hashlib.sha256(job.rows.encode()).digest()[:7])
        by_epochs.setdefault(_epochs(recipe, len(rows)), []).append((job, (index, rows)))
    for epochs, probes in by_epochs.items():
        central = recipe.model_copy(update={"federation": None, "epochs": epochs})
        job_of = {index: job for job, (index, _) in probes}
        subsets = [subset for _, subset in probes]
        for head in train_heads(features, data.label, central, subsets, machine):
            yield job_of[head.index], {"logits": head_logits(features, head, machine)}


def _epochs(recipe: Recipe, rows: int) -> int:
    """Number of passes over its rows that a client with `rows` rows makes in all rounds, on average."""
    federation = recipe.federation
    if federation is None:
        return recipe.epochs
    # Passes per round: whole epochs, or the rows of `steps` batches as a share of the client's rows.
    per_round = recipe.epochs if federation.steps is None else federation.steps * recipe.batch_size / rows
    return max(1, math.ceil(federation.rounds * federation.participation * per_round))


def _rows(named: str, data: AuditData) -> NDArray[np.int64]:
    """The rows named "member", "population" or "client:NAME". Raises DatasetError if there are none."""
    member = data.split == Split.MEMBER
    if named == "member":
        chosen = member
    elif named == "population":
        chosen = data.split == Split.POPULATION
    else:
        client = named.removeprefix("client:")
        chosen = member & (data.client == client) if data.client is not None else np.zeros(len(member), dtype=bool)
    if not chosen.any():
        raise DatasetError(f"no row to train on for '{named}': add such rows to the table")
    return np.flatnonzero(chosen)

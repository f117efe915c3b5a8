"""Heads trained in one place: what a federation is compared with."""

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
    """Every job with its result. features (N, D). Rows that train for equally many epochs train stacked."""
    by_epochs: dict[int, list[tuple[Probe, Subset]]] = {}
    for job in jobs:
        rows = _rows(job.rows, data)
        # Keyed by whom the rows are of, so that a probe does not depend on which others are trained with it.
        index = int.from_bytes(hashlib.sha256(job.rows.encode()).digest()[:7])
        by_epochs.setdefault(_epochs(recipe, len(rows)), []).append((job, (index, rows)))
    for epochs, alike in by_epochs.items():
        alone = recipe.model_copy(update={"federation": None, "epochs": epochs})
        mine = {index: job for job, (index, _) in alike}
        subsets = [subset for _, subset in alike]
        for head in train_heads(features, data.label, alone, subsets, machine):
            yield mine[head.index], {"logits": head_logits(features, head, machine)}


def _epochs(recipe: Recipe, rows: int) -> int:
    """As many passes as a client with so many rows makes in all rounds."""
    federation = recipe.federation
    if federation is None:
        return recipe.epochs
    each = recipe.epochs if federation.steps is None else federation.steps * recipe.batch_size / rows
    return max(1, math.ceil(federation.rounds * federation.participation * each))


def _rows(named: str, data: AuditData) -> NDArray[np.int64]:
    member = data.split == Split.MEMBER
    if named == "member":
        chosen = member
    elif named == "population":
        chosen = data.split == Split.POPULATION
    else:
        client = named.removeprefix("client:")
        chosen = member & (data.client == client) if data.client is not None else np.zeros(len(member), dtype=bool)
    if not chosen.any():
        raise DatasetError(f"no row to train on for '{named}'; the table needs some")
    return np.flatnonzero(chosen)

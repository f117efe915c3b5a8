"""Attacks on what clients send in a federation's first round: which row was it made from?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from privacy_gate.arrays import Arrays, Bools, Floats, Ints
from privacy_gate.compute.runners.federate import cell
from privacy_gate.compute.work import Work
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import DatasetError
from privacy_gate.jobs.kinds import Invert
from privacy_gate.simulation.cells import Cell, Draws
from privacy_gate.simulation.leaks.inversion import (
    Made,
    Own,
    leak,
    likeness,
    local_update,
    noise_seen,
    refine,
    with_bias,
)
from privacy_gate.simulation.leaks.lineup import bystanders, eligible, line_up
from privacy_gate.simulation.rules.known import Known
from privacy_gate.simulation.samples import Samples

TURNS = 150
"""Of the optimisation attack."""

SLOTS = 512
"""Rows of all steps of an update above which the optimisation attack stays where the analytic one ends."""

PACK_BYTES = 1 << 27
"""What the rows of the updates attacked at once may take. Every update is attacked on its own."""


@dataclass(frozen=True, eq=False)
class Arena:
    """A federation as its first round begins, and what its server has.

    cell      the recipe's federation
    parts     rows of the table that each client holds
    eligible  (N,) rows that can be told from decoys
    features  (N, D) float64
    decoys    rows nobody trained on
    start     (C, E) the head that is sent out; the recipe's is zeros
    """

    cell: Cell
    parts: list[Ints]
    data: AuditData
    eligible: Bools
    features: torch.Tensor
    decoys: Ints
    own: Own
    start: torch.Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """One update, and one of the rows it was made from.

    rows       (V,) of the table, that the update was made from
    made, guess  how, and how the server imagines it: (place, weight), both (K, S, B)
    share      (K,) what each client's update counts for in what is seen
    row        the target; shown (m,) the rows among which it stands, and at which place
    near       share of decoys that are of its client
    draw       (V,) by which the server draws rows of its own
    noise      (C, E) standard normal, by which the clients' own noise is drawn
    """

    rows: Ints
    made: tuple[Ints, Floats]
    guess: tuple[Ints, Floats]
    share: Floats
    row: int
    shown: Ints
    place: int
    near: float
    draw: Floats
    noise: Floats


def run_invert(jobs: Sequence[Invert], work: Work) -> None:
    """Attacks the updates, recipe by recipe."""
    done = 0
    for recipe, same in groupby(jobs, attrgetter("recipe")):
        features = work.features(recipe.backbone, recipe.input)
        arenas: dict[tuple[int, int], Arena] = {}
        for job in same:
            key = (job.seed, job.candidates)
            if key not in arenas:
                device = work.machine.torch_device()
                arenas = {key: arena(recipe, features, work.inputs.data, job.seed, job.candidates, device)}
            work.results.put(job, invert(arenas[key], job))
            done += 1
            work.progress("attack updates", done, len(jobs))


def arena(
    recipe: Recipe, features: NDArray[np.float32], data: AuditData, seed: int, candidates: int, device: torch.device
) -> Arena:
    """The recipe's federation before its first round; features (N, D). Raises DatasetError where no row can be told."""
    member = np.flatnonzero(data.split == Split.MEMBER)
    client = None if data.client is None else data.client[member]
    train = Samples(features[member], data.label[member], client)
    made = cell(recipe, client, seed)
    parts = made.partition.rows(
        train.label, made.training.clients, Draws("inversion").generator("partition", seed), client
    )
    told, others = eligible(data, candidates), bystanders(data)
    if not told.any() or not len(others.own):
        raise DatasetError(f"no class has {candidates - 1} holdout rows as decoys: ask for fewer candidates")
    table = torch.from_numpy(features).to(device, torch.float64)
    own = Own(table[others.own], torch.from_numpy(data.label[others.own]).to(device), recipe.classes)
    start = table.new_zeros(recipe.classes, table.shape[1] + 1)
    return Arena(made, [np.asarray(member[part]) for part in parts], data, told, table, others.decoys, own, start)


def invert(scene: Arena, job: Invert) -> Arrays:
    """The job's result: see job.Invert."""
    targets = [target(scene, job, index) for index in range(job.first, job.last)]
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, each in enumerate(targets):
        alike.setdefault((len(each.rows), *each.guess[0].shape), []).append(place)
    hit, cosine, refined = np.zeros(len(targets), bool), np.zeros(len(targets)), np.zeros(len(targets), bool)
    for (rows, *shape), places in alike.items():
        most = max(1, PACK_BYTES // (8 * rows * scene.start.shape[1]))
        optimised = job.attack == "optimised" and math.prod(shape) <= SLOTS
        for first in range(0, len(places), most):
            some = places[first : first + most]
            hit[some], cosine[some] = _attack(scene, [targets[place] for place in some], optimised)
        refined[places] = optimised
    label = scene.data.label
    return {
        "hit": hit,
        "cosine": cosine,
        "refined": refined,
        "mixed": np.array([len(each.rows) for each in targets]),
        "alike": np.array([int((label[each.rows] == label[each.row]).sum()) for each in targets]),
        "near": np.array([each.near for each in targets]),
    }


def target(scene: Arena, job: Invert, index: int) -> Target:
    """Update `index`: a first round of its own, a client drawn evenly, and one of the rows it trained on.

    With secure aggregation the round's other clients are drawn as a federation draws them.
    """
    rng = Draws("inversion").generator("target", job.seed, index)
    chosen, able = _client(scene, job, index, rng)
    seen: list[int] = [chosen]
    share: Floats = np.ones(1)
    if job.recipe.federation is not None and job.recipe.federation.secure_aggregation:
        seen = Draws("inversion").participants(scene.cell.training, 0, job.seed, index)
        if chosen not in seen:
            seen[int(rng.integers(len(seen)))] = chosen
        share = _shares(scene, seen)
    made, guess = (
        _joined([_batches(scene, job, client, index, imagined) for client in seen]) for imagined in (False, True)
    )
    row = int(rng.choice(able))
    shown, place, near = line_up(scene.data, scene.decoys, row, job.candidates, rng)
    rows = np.concatenate([_trained(scene, job, client, index) for client in seen])
    noise = Draws("inversion").generator("noise", job.seed, index).standard_normal(scene.start.shape)
    return Target(rows, made, guess, share, row, shown, place, near, rng.random(len(rows)), noise)


def _client(scene: Arena, job: Invert, index: int, rng: np.random.Generator) -> tuple[int, Ints]:
    """A client that trains on rows that can be told from decoys, and those rows."""
    for client in rng.permutation(len(scene.parts)):
        rows = _trained(scene, job, int(client), index)
        if len(able := rows[scene.eligible[rows]]):
            return int(client), able
    raise DatasetError("no client trains on a row that can be told from decoys: ask for fewer candidates")


def _trained(scene: Arena, job: Invert, client: int, index: int) -> Ints:
    """Rows of the table that a client trains on in round `index`, in the order of `_used`."""
    return np.asarray(scene.parts[client][_used(_batches(scene, job, client, index))])


def _batches(scene: Arena, job: Invert, client: int, index: int, imagined: bool = False) -> tuple[Ints, Floats]:
    """What a client trains on in round `index`, or what a server imagines that it does: places among its rows, weights;
    both (S, B)."""
    draws = Draws("inversion, imagined" if imagined else "inversion")
    return draws.batches(scene.cell.training, len(scene.parts[client]), job.seed, client, index)


def _used(batches: tuple[Ints, Floats]) -> Ints:
    """The rows that occur."""
    rows, weight = batches
    return np.unique(rows[weight > 0])


def _shares(scene: Arena, clients: list[int]) -> Floats:
    """What each client's update counts for in the sum, (K,): what the rule, a mean, makes of unit vectors."""
    counts = torch.tensor([len(scene.parts[client]) for client in clients])
    return np.asarray(scene.cell.rule(torch.eye(len(clients), dtype=torch.float64), 0, Known(counts=counts)).numpy())


def _joined(batches: Sequence[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    """Batches of K clients, rows counted through from 0 in their order: place and weight, (K, S, B)."""
    size = max(int((weight > 0).sum(axis=1).max()) for _, weight in batches)
    shape = (len(batches), max(len(rows) for rows, _ in batches), size)
    place, weights, before = np.zeros(shape, dtype=np.int64), np.zeros(shape), 0
    for client, both in enumerate(batches):
        used = _used(both)
        rows, weight = (each[:, :size] for each in both)
        place[client, : len(rows)] = np.where(weight > 0, before + np.searchsorted(used, rows), 0)
        weights[client, : len(rows)] = weight
        before += len(used)
    return place, weights


def _attack(scene: Arena, targets: Sequence[Target], optimised: bool) -> tuple[Bools, Floats]:
    """hit and cosine, (T,) each, of targets that are alike in all shapes."""
    # A product of one matrix rounds unlike one of many, and signs amplify it: a lone update is attacked twice.
    both = targets if len(targets) > 1 else [*targets, *targets]

    def tensor(arrays: Sequence[ArrayLike]) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(each) for each in arrays])).to(scene.features.device)

    label, start, training, own = scene.data.label, scene.start, scene.cell.training, scene.own
    share, draw, place = (tensor([getattr(each, name) for each in both]) for name in ("share", "draw", "place"))
    mine = tensor([label[each.row] for each in both])
    made, guess = (
        Made(tensor([rows for rows, _ in each]), tensor([weight for _, weight in each]), share)
        for each in ([one.made for one in both], [one.guess for one in both])
    )
    with torch.no_grad():
        rows = with_bias(scene.features[tensor([each.rows for each in both])])
        seen = local_update(rows, tensor([label[each.rows] for each in both]), made, start, training)
        seen += noise_seen(share, training)[:, None, None] * tensor([each.noise for each in both])
        first = leak(seen, guess, start, training, own, draw)
    found = first.features.gather(1, mine[:, None, None].expand(-1, -1, first.features.shape[2]))
    if optimised:
        better = refine(seen, first, guess, start, training, own, draw, TURNS)
        alike = (first.label == mine.unsqueeze(1)).unsqueeze(2)
        # A class that the labels leave without a row is still known by its mean.
        found = torch.cat([better.where(alike, torch.nan), found.where(~alike.any(1, keepdim=True), torch.nan)], 1)
    shown = scene.features[tensor([each.shown for each in both])]
    scores = likeness(found, shown, own.mean[mine], own.metric)
    hit, cosine = scores.argmax(1) == place, scores.gather(1, place.unsqueeze(1)).squeeze(1)
    return hit[: len(targets)].cpu().numpy(), cosine[: len(targets)].cpu().numpy()

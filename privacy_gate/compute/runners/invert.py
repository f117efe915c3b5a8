"""Inversion attacks on updates of a federation's first round: which row was the update trained on?"""

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
    AttackerRows,
    BatchSchedule,
    leak,
    likeness,
    local_update,
    noise_scale,
    refine,
    with_bias,
)
from privacy_gate.simulation.leaks.lineup import bystanders, eligible, line_up
from privacy_gate.simulation.rules.known import Known
from privacy_gate.simulation.samples import Samples

TURNS = 150
"""Number of iterations of the optimisation attack."""

SLOTS = 512
"""Maximum size K S B of an update's batches for the optimisation attack; for larger updates only the analytic attack
runs."""

PACK_BYTES = 1 << 27
"""Memory for the rows of updates that are attacked together, in bytes. Every update is attacked independently."""


@dataclass(frozen=True, eq=False)
class Arena:
    """A federation before its first round, and the server's knowledge.

    cell      the recipe's federation
    parts     rows of the table that each client holds
    eligible  (N,) members whose class has enough decoys
    features  (N, D) float64
    decoys    rows that no client trained on
    own       the server's own rows
    start     (C, E) the head that the server sends out; the recipe's is zeros
    """

    cell: Cell
    parts: list[Ints]
    data: AuditData
    eligible: Bools
    features: torch.Tensor
    decoys: Ints
    own: AttackerRows
    start: torch.Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """One update, and one of its training rows, which the attack must identify.

    rows     (V,) rows of the table that the update was trained on
    trained  the true batches: (place, weight), both (K, S, B)
    guess    the batches that the server assumes, in the same form
    share    (K,) weight of each client's update in the visible sum
    row      the target row
    lineup   (m,) the target row and its decoys, in random order
    place    position of the target row in the line-up
    near     share of decoys that belong to the target row's client
    draw     (V,) uniform numbers with which the server draws its own rows
    noise    (C, E) standard normal, for the noise that clients add
    """

    rows: Ints
    trained: tuple[Ints, Floats]
    guess: tuple[Ints, Floats]
    share: Floats
    row: int
    lineup: Ints
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
    """The recipe's federation before its first round; features (N, D). Raises DatasetError if no row is eligible."""
    member = np.flatnonzero(data.split == Split.MEMBER)
    client = None if data.client is None else data.client[member]
    train = Samples(features[member], data.label[member], client)
    plain = cell(recipe, client, seed)
    parts = plain.partition.rows(
        train.label, plain.training.clients, Draws("inversion").generator("partition", seed), client
    )
    usable, others = eligible(data, candidates), bystanders(data)
    if not usable.any() or not len(others.own):
        raise DatasetError(
            f"no class has {candidates - 1} holdout rows as decoys: lower candidates, or add holdout rows"
        )
    table = torch.from_numpy(features).to(device, torch.float64)
    own = AttackerRows(table[others.own], torch.from_numpy(data.label[others.own]).to(device), recipe.classes)
    start = table.new_zeros(recipe.classes, table.shape[1] + 1)
    return Arena(plain, [np.asarray(member[part]) for part in parts], data, usable, table, others.decoys, own, start)


def invert(scene: Arena, job: Invert) -> Arrays:
    """The job's result: see jobs.kinds.Invert."""
    targets = [target(scene, job, index) for index in range(job.first, job.last)]
    # Targets of equal shapes are attacked together.
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(targets):
        by_shape.setdefault((len(one.rows), *one.guess[0].shape), []).append(place)
    hit, cosine, refined = np.zeros(len(targets), bool), np.zeros(len(targets)), np.zeros(len(targets), bool)
    for (rows, *shape), places in by_shape.items():
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
        "mixed": np.array([len(one.rows) for one in targets]),
        "alike": np.array([int((label[one.rows] == label[one.row]).sum()) for one in targets]),
        "near": np.array([one.near for one in targets]),
    }


def target(scene: Arena, job: Invert, index: int) -> Target:
    """Update `index`: a separate first round, a uniformly drawn client, and one of its training rows.

    With secure aggregation, the round's other clients are drawn like the participants of a federation.
    """
    rng = Draws("inversion").generator("target", job.seed, index)
    chosen, usable = _client(scene, job, index, rng)
    seen: list[int] = [chosen]
    share: Floats = np.ones(1)
    if job.recipe.federation is not None and job.recipe.federation.secure_aggregation:
        seen = Draws("inversion").participants(scene.cell.training, 0, job.seed, index)
        if chosen not in seen:
            seen[int(rng.integers(len(seen)))] = chosen
        share = _shares(scene, seen)
    trained, guess = (
        _joined([_batches(scene, job, client, index, imagined) for client in seen]) for imagined in (False, True)
    )
    row = int(rng.choice(usable))
    lineup, place, near = line_up(scene.data, scene.decoys, row, job.candidates, rng)
    rows = np.concatenate([_trained(scene, job, client, index) for client in seen])
    noise = Draws("inversion").generator("noise", job.seed, index).standard_normal(scene.start.shape)
    return Target(rows, trained, guess, share, row, lineup, place, near, rng.random(len(rows)), noise)


def _client(scene: Arena, job: Invert, index: int, rng: np.random.Generator) -> tuple[int, Ints]:
    """A random client that trains on eligible rows in round `index`, and those rows."""
    for client in rng.permutation(len(scene.parts)):
        rows = _trained(scene, job, int(client), index)
        if len(usable := rows[scene.eligible[rows]]):
            return int(client), usable
    raise DatasetError("no client trains on a row whose class has enough decoys: lower candidates")


def _trained(scene: Arena, job: Invert, client: int, index: int) -> Ints:
    """Rows of the table that a client trains on in round `index`, in the order of `_used`."""
    return np.asarray(scene.parts[client][_used(_batches(scene, job, client, index))])


def _batches(scene: Arena, job: Invert, client: int, index: int, imagined: bool = False) -> tuple[Ints, Floats]:
    """A client's batches in round `index`, or those that the server imagines: places among its rows, and weights.

    Both (S, B).
    """
    draws = Draws("inversion, imagined" if imagined else "inversion")
    return draws.batches(scene.cell.training, len(scene.parts[client]), job.seed, client, index)


def _used(batches: tuple[Ints, Floats]) -> Ints:
    """The distinct rows in the batches, ascending, without padding."""
    rows, weight = batches
    return np.unique(rows[weight > 0])


def _shares(scene: Arena, clients: list[int]) -> Floats:
    """Weight of each client's update in the sum, (K,)."""
    # The rule is a weighted mean; applied to unit vectors, it returns its weights.
    counts = torch.tensor([len(scene.parts[client]) for client in clients])
    return np.asarray(scene.cell.rule(torch.eye(len(clients), dtype=torch.float64), 0, Known(counts=counts)).numpy())


def _joined(batches: Sequence[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    """Batches of K clients as one: place and weight, (K, S, B); places number the used rows of all clients from 0."""
    # Unused columns of padding are cut off.
    size = max(int((weight > 0).sum(axis=1).max()) for _, weight in batches)
    shape = (len(batches), max(len(rows) for rows, _ in batches), size)
    place, weights, before = np.zeros(shape, dtype=np.int64), np.zeros(shape), 0
    for client, pair in enumerate(batches):
        used = _used(pair)
        rows, weight = (array[:, :size] for array in pair)
        place[client, : len(rows)] = np.where(weight > 0, before + np.searchsorted(used, rows), 0)
        weights[client, : len(rows)] = weight
        before += len(used)
    return place, weights


def _attack(scene: Arena, targets: Sequence[Target], optimised: bool) -> tuple[Bools, Floats]:
    """hit and cosine, (T,) each, of targets with equal shapes."""
    # Products of a single matrix round differently from those of several, and signed steps amplify the difference:
    # a single update is attacked together with a copy of itself.
    batch = targets if len(targets) > 1 else [*targets, *targets]

    def tensor(arrays: Sequence[ArrayLike]) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(array) for array in arrays])).to(scene.features.device)

    label, start, training, own = scene.data.label, scene.start, scene.cell.training, scene.own
    share, draw, place = (tensor([getattr(one, name) for one in batch]) for name in ("share", "draw", "place"))
    target_class = tensor([label[one.row] for one in batch])
    trained, guess = (
        BatchSchedule(tensor([rows for rows, _ in pairs]), tensor([weight for _, weight in pairs]), share)
        for pairs in ([one.trained for one in batch], [one.guess for one in batch])
    )
    with torch.no_grad():
        rows = with_bias(scene.features[tensor([one.rows for one in batch])])
        seen = local_update(rows, tensor([label[one.rows] for one in batch]), trained, start, training)
        seen += noise_scale(share, training)[:, None, None] * tensor([one.noise for one in batch])
        first = leak(seen, guess, start, training, own, draw)
    # The attacker knows the target's class: the analytic reconstruction is that class's mean row, (T, 1, D).
    guesses = first.features.gather(1, target_class[:, None, None].expand(-1, -1, first.features.shape[2]))
    if optimised:
        better = refine(seen, first, guess, start, training, own, draw, TURNS)
        alike = (first.label == target_class.unsqueeze(1)).unsqueeze(2)
        # If the estimated labels contain no row of the class, its analytic mean row is used.
        guesses = torch.cat([better.where(alike, torch.nan), guesses.where(~alike.any(1, keepdim=True), torch.nan)], 1)
    lineup = scene.features[tensor([one.lineup for one in batch])]
    scores = likeness(guesses, lineup, own.mean[target_class], own.metric)
    hit, cosine = scores.argmax(1) == place, scores.gather(1, place.unsqueeze(1)).squeeze(1)
    return hit[: len(targets)].cpu().numpy(), cosine[: len(targets)].cpu().numpy()

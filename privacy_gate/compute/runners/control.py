"""The positive control, a known leak: heads that memorise random labels on the audit's own features.

Random labels do not generalise, so only memorisation distinguishes members from other rows. These heads, the twins,
are trained and evaluated like references: with the same features and training code, and known training sets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.compute.images.backbone import joined
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import confidences, head_logits, train_heads
from privacy_gate.compute.work import Work
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.dataset import Split
from privacy_gate.dossier.optimizers import Adam, Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import EvidenceError
from privacy_gate.jobs.kinds import TrainControl
from privacy_gate.jobs.subsets import included

TWINS = 16
"""Number of heads: the target and 15 references, of which about five, and at least four, train on a given row."""

SIDES = 20
"""Number of classes of the random labels. One row in SIDES is guessed by chance and looks like a member to simple
attacks; with ten classes those would use up all false positives that are allowed."""

FEWEST, MOST = 16, 64
"""Range of the number of examples that each twin trains on. Within it, as many as features, because a linear head can
memorise that many."""

PARTS = 3
"""Number of audited rows, as a multiple of the examples that one twin trains on."""

POPULATION = 300
"""Maximum number of population rows."""

EPOCHS = 50
"""Enough for the twins to memorise their labels."""

DESCENT, DESCENT_EPOCHS = 12.0, 200
"""Gradient descent if heads are kept: the rate times the features' number, and epochs. Rows have a mean square of 1, so
a step of this rate moves the logits of a row alone by a fifth; fewer than 8 features and 1,280 both learn it."""

_ROWS = int.from_bytes(b"control")
"""Seed of the control's random draws."""


def run_control(jobs: Sequence[TrainControl], work: Work) -> None:
    """Trains and stores the twins of each control."""
    for job in jobs:
        features = work.features(job.backbone, job.input)
        arrays = train_control(features, work.inputs.data.split, work.machine, heads="head" in job.keeps)
        work.results.put(job, arrays)


def train_control(
    features: NDArray[np.float32], split: NDArray[np.int8], machine: Machine, *, heads: bool = False
) -> Arrays:
    """TWINS heads on R rows of the audit table: features (N, D), split (N,).

    Result: rows (R,) int64; features (R, D) float32, scaled; label (R,) int64, random; included (TWINS, R) bool;
    confidence (TWINS, R) float32, nats; residual (TWINS, R) float32; logits (2, R, SIDES) float32 of the first two.

    heads: also keep the heads, head (TWINS, SIDES, D + 1) float32, and train them by plain gradient descent from zeros,
    whose weights are surely a sum over the rows learnt: attacks on weights are then tried too.
    Features are centred and scaled to a mean square of 1, so that one learning rate suits all backbones. Raises
    EvidenceError if the pool is too small.
    """
    rows, pool, size = _rows(split, features.shape[1])
    x = features[rows].astype(np.float64)
    x -= x.mean(axis=0)
    x /= max(float(np.sqrt(np.mean(x**2))), float(np.finfo(np.float32).tiny))
    # Streams [_ROWS, 0] and [_ROWS, 1] draw rows and labels; neither depends on the candidate.
    label = np.random.default_rng([_ROWS, 1]).integers(0, SIDES, len(rows))
    masks = np.stack([included(index, pool, size) for index in range(TWINS)])
    subsets = [(index, np.flatnonzero(mask)) for index, mask in enumerate(masks)]
    recipe = Recipe(
        backbone=Backbone(name="identity"),
        classes=SIDES,
        optimizer=Sgd(name="sgd", lr=DESCENT / features.shape[1]) if heads else Adam(name="adam", lr=0.05),
        epochs=DESCENT_EPOCHS if heads else EPOCHS,
        batch_size=size,
    )
    small = x.astype(np.float32)
    # Heads arrive in the order of their blocks; arrays are stored by index.
    twins = sorted(train_heads(small, label, recipe, subsets, machine), key=lambda head: head.index)
    confidence, residual = confidences(small, label, twins, machine)
    arrays: dict[str, NDArray[Any]] = {
        "rows": rows,
        "features": small,
        "label": label,
        "included": masks,
        "confidence": confidence,
        "residual": residual,
        "logits": np.stack([head_logits(small, head, machine) for head in twins[:2]]),
    }
    return {**arrays, "head": np.stack([joined(head) for head in twins])} if heads else arrays


def _rows(split: NDArray[np.int8], width: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
    """Row numbers (R,), audited ones first; which are audited (R,); the number of examples that each twin trains on."""
    rng = np.random.default_rng([_ROWS, 0])
    audited, population = (
        rng.permutation(np.flatnonzero(part)) for part in (split != Split.POPULATION, split == Split.POPULATION)
    )
    size = min(max(FEWEST, min(MOST, width)), len(audited) // PARTS)
    if size < FEWEST:
        raise EvidenceError(
            f"{len(audited)} audited rows are too few for the positive control, which needs {PARTS * FEWEST}: add rows"
        )
    rows = np.concatenate([audited[: PARTS * size], population[:POPULATION]])
    return rows, np.arange(len(rows)) < PARTS * size, size

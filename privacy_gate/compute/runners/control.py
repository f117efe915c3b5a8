"""A leak that is surely there: heads that learn the labels of dice by heart, on the audit's own features.

What is learnt of such labels says nothing of other rows, so all that tells members from others is memory.
The twins go the way of references: same features, training, confidences and training sets known.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import confidences, head_logits, train_heads
from privacy_gate.compute.work import Work
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.dataset import Split
from privacy_gate.dossier.optimizers import Adam
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import EvidenceError
from privacy_gate.jobs.kinds import TrainControl
from privacy_gate.jobs.subsets import included

TWINS = 16
"""The target and 15 references; of these about five learn a row, at least four."""

SIDES = 20
"""Of the dice: one row in so many is guessed right, and looks like a member to simple attacks; with ten sides
that is as many as the false positives allowed."""

FEWEST, MOST = 16, 64
"""Examples that each twin learns: as many as features, since a linear head learns so many by heart."""

PARTS = 3
"""Audited rows taken, in units of what one twin learns."""

POPULATION = 300
"""Population rows taken, at most."""

EPOCHS = 50

_ROWS = int.from_bytes(b"control")


def run_control(jobs: Sequence[TrainControl], work: Work) -> None:
    """Trains the twins of each control."""
    for job in jobs:
        features = work.features(job.backbone, job.input)
        work.results.put(job, train_control(features, work.inputs.data.split, work.machine))


def train_control(features: NDArray[np.float32], split: NDArray[np.int8], machine: Machine) -> Arrays:
    """TWINS heads on R rows of the audit table: features (N, D), split (N,).

    Result: rows (R,) int64; features (R, D) float32, scaled; label (R,) int64, of dice; included (TWINS, R)
    bool; confidence (TWINS, R) float32, nats; residual (TWINS, R) float32; logits (2, R, SIDES) float32 of the
    first two.
    The features are centred and brought to a mean square of 1, so that one learning rate suits all.
    Raises EvidenceError where the pool is too small.
    """
    rows, pool, size = _rows(split, features.shape[1])
    x = features[rows].astype(np.float64)
    x -= x.mean(axis=0)
    x /= max(float(np.sqrt(np.mean(x**2))), float(np.finfo(np.float32).tiny))
    label = np.random.default_rng([_ROWS, 1]).integers(0, SIDES, len(rows))
    masks = np.stack([included(index, pool, size) for index in range(TWINS)])
    subsets = [(index, np.flatnonzero(mask)) for index, mask in enumerate(masks)]
    recipe = Recipe(
        backbone=Backbone(name="identity"),
        classes=SIDES,
        optimizer=Adam(name="adam", lr=0.05),
        epochs=EPOCHS,
        batch_size=size,
    )
    small = x.astype(np.float32)
    heads = sorted(train_heads(small, label, recipe, subsets, machine), key=lambda head: head.index)
    confidence, residual = confidences(small, label, heads, machine)
    return {
        "rows": rows,
        "features": small,
        "label": label,
        "included": masks,
        "confidence": confidence,
        "residual": residual,
        "logits": np.stack([head_logits(small, head, machine) for head in heads[:2]]),
    }


def _rows(split: NDArray[np.int8], width: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
    """The rows taken, audited ones first; which of them are audited; how many each twin learns."""
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

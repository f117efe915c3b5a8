"""The reference matrix: scikit-learn's digits, a softmax head, ten clients, seven rules, ten attacks."""

import itertools
from collections.abc import Sequence

import numpy as np
from sklearn.datasets import load_digits

from privacy_gate.simulation.cells import Cell, Training
from privacy_gate.simulation.partitions import Partition, partition
from privacy_gate.simulation.rules.aggregators import rule
from privacy_gate.simulation.samples import Samples

RULES = (
    rule("uniform_mean"),
    rule("median"),
    rule("trimmed_mean"),
    rule("geometric_median"),
    rule("multi_krum"),
    rule("centered_clipping"),
    rule("nnm", "trimmed_mean"),
)

ATTACKS = (
    "sign_flip",
    "ipm_0.1",
    "ipm_10",
    "alie",
    "alie_search",
    "min_max",
    "min_sum",
    "mimic",
    "gaussian",
    "label_flip",
)

# The reference does not state how clients train. Rates of .5 and 1 both match its figures within the seeds' spread, 1
# more closely for IID; .1, .3 and 2 do not match. Batches of 16, 32 and 64 give nearly the same figures.
TRAINING = Training(clients=10, rounds=150, steps=1, batch=32, lr=1.0)


def digits(share: float = 0.25, dtype: type = np.float32, seed: int = 0) -> tuple[Samples, Samples]:
    """Pixels in 0 .. 1, split at random into training and test rows."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    held = int(len(x) * share)
    scaled = (x / 16).astype(dtype)
    train, test = order[held:], order[:held]
    return Samples(scaled[train], y[train]), Samples(scaled[test], y[test])


def uneven(alpha: float) -> Partition:
    """Clients with unequal class frequencies."""
    return partition("dirichlet_by_class", minimum=2, alpha=alpha)


def cells(
    partitions: Sequence[Partition],
    seeds: Sequence[int],
    byzantine: Sequence[int] = (1, 2),
    training: Training = TRAINING,
) -> list[Cell]:
    """Every rule, configured for two byzantine clients, without an attack, and under every attack by every number."""
    found = []
    for held, seed, each in itertools.product(partitions, seeds, RULES):
        found.append(Cell(rule=each, f=2, partition=held, seed=seed, training=training))
        for f, name in itertools.product(byzantine, ATTACKS):
            found.append(Cell(rule=each, adversary=name, f=f, partition=held, seed=seed, training=training))
    return found

"""DP-SGD: Poisson batches and noise, drawn for each reference independently of its block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from privacy_gate.dossier.recipe import DpSgd, Recipe
from privacy_gate.jobs.subsets import Subset, gradient_noise, poisson_batch, shown


@dataclass(frozen=True, eq=False)
class PrivateBatch:
    """One step of M references: rows and labels (M, B), padded; present (M, 1, B): 1 for an example, 0 for padding."""

    rows: torch.Tensor
    label: torch.Tensor
    present: torch.Tensor
    indices: Sequence[int]
    epoch: int
    step: int

    def noise(self, privacy: DpSgd, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """The noise to add to the sums of clipped gradients, (M, *shape)."""
        if privacy.noise_multiplier == 0:
            return like.new_zeros(len(self.indices), *shape)
        drawn = np.stack([gradient_noise(index, self.epoch, self.step, shape) for index in self.indices])
        scale = privacy.noise_multiplier * privacy.clip
        return torch.from_numpy(drawn * scale).to(like.device, like.dtype)


def steps_of(size: int, batch: int) -> int:
    """Number of steps in an epoch over `size` examples."""
    return -(-size // batch)


def sampling_rate(size: int, batch: int) -> float:
    """Probability that each of `size` examples is in a step."""
    return min(1.0, batch / size)


def private_batches(block: Sequence[Subset], epoch: int, recipe: Recipe, y: torch.Tensor) -> Iterator[PrivateBatch]:
    """The steps of one epoch. Each step contains every example with probability batch_size / examples, independently.

    y (V * N,): labels of the rows in every view; all references of a block have equally many steps.
    """
    views = len(recipe.views)
    orders = [shown(index, epoch, rows, views, len(y) // views) for index, rows in block]
    indices = [index for index, _ in block]
    for step in range(steps_of(len(orders[0]), recipe.batch_size)):
        chosen = [
            order[poisson_batch(index, epoch, step, len(order), sampling_rate(len(order), recipe.batch_size))]
            for index, order in zip(indices, orders, strict=True)
        ]
        # Batches differ in size: pad all to the longest, at least 1, so that an empty batch still takes a step.
        rows = np.zeros((len(block), max(1, *(len(batch) for batch in chosen))), dtype=np.int64)
        present = np.zeros((len(block), 1, rows.shape[1]), dtype=np.float32)
        for place, batch in enumerate(chosen):
            rows[place, : len(batch)], present[place, 0, : len(batch)] = batch, 1
        on_device = torch.from_numpy(rows).to(y.device)
        mask = torch.from_numpy(present).to(y.device)
        yield PrivateBatch(on_device, y[on_device], mask, indices, epoch, step)

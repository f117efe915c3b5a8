"""DP-SGD: Poisson batches and noise, each reference's own, whatever its block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from privacy_gate.dossier.recipe import DpSgd, Recipe
from privacy_gate.jobs.subsets import Subset, gradient_noise, poisson_batch, shown


@dataclass(frozen=True, eq=False)
class PrivateBatch:
    """One step of M references: rows and labels (M, B), padded; present (M, 1, B), 1 where there is an example."""

    rows: torch.Tensor
    label: torch.Tensor
    present: torch.Tensor
    indices: Sequence[int]
    epoch: int
    step: int

    def noise(self, privacy: DpSgd, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """What is added to the sums of gradients, (M, *shape)."""
        if privacy.noise_multiplier == 0:
            return like.new_zeros(len(self.indices), *shape)
        drawn = np.stack([gradient_noise(index, self.epoch, self.step, shape) for index in self.indices])
        scale = privacy.noise_multiplier * privacy.clip
        return torch.from_numpy(drawn * scale).to(like.device, like.dtype)


def steps_of(size: int, batch: int) -> int:
    """Steps of an epoch over `size` examples."""
    return -(-size // batch)


def sampling_rate(size: int, batch: int) -> float:
    """With which probability each of `size` examples is in a step."""
    return min(1.0, batch / size)


def private_batches(block: Sequence[Subset], epoch: int, recipe: Recipe, y: torch.Tensor) -> Iterator[PrivateBatch]:
    """The steps of one epoch. Every example is in each of them with probability batch_size / examples.

    y (V * N,): labels of the rows in every view; the references of a block make equally many steps.
    """
    views = len(recipe.views)
    orders = [shown(index, epoch, rows, views, len(y) // views) for index, rows in block]
    indices = [index for index, _ in block]
    for step in range(steps_of(len(orders[0]), recipe.batch_size)):
        chosen = [
            order[poisson_batch(index, epoch, step, len(order), sampling_rate(len(order), recipe.batch_size))]
            for index, order in zip(indices, orders, strict=True)
        ]
        rows = np.zeros((len(block), max(1, *(len(one) for one in chosen))), dtype=np.int64)
        present = np.zeros((len(block), 1, rows.shape[1]), dtype=np.float32)
        for place, one in enumerate(chosen):
            rows[place, : len(one)], present[place, 0, : len(one)] = one, 1
        on_device = torch.from_numpy(rows).to(y.device)
        there = torch.from_numpy(present).to(y.device)
        yield PrivateBatch(on_device, y[on_device], there, indices, epoch, step)

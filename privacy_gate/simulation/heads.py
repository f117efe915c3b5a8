"""A learner for federations that train softmax heads on cached features. Axis letters: local.py."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.local import Batches, local_updates
from privacy_gate.simulation.partitions import Rows
from privacy_gate.simulation.samples import Samples
from privacy_gate.simulation.scores import Exam, backdoor_exam


@dataclass(frozen=True, eq=False)
class Heads:
    """Heads (C, E) that start from zero; label, triggered and root as in Learner.

    features  (N', E) with a column of ones, on the device
    test      the rows that heads are evaluated on
    samples   the same rows as samples, with the features of their triggered twins
    """

    features: torch.Tensor
    label: NDArray[np.int64]
    classes: int
    triggered: int | None
    root: Rows
    test: Exam
    samples: Samples

    @property
    def width(self) -> int:
        return self.classes * self.features.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.features.dtype

    @property
    def device(self) -> torch.device:
        return self.features.device

    def start(self, seeds: Sequence[int]) -> torch.Tensor:
        """Zeros (cells, C E), whatever the seeds."""
        return self.features.new_zeros(len(seeds), self.width)

    def updates(
        self, models: torch.Tensor, batches: Batches, training: Training, losses: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(A, G, K, C E) and (A, G, K): see local.local_updates."""
        # (A, G, P) -> (A, G, C, E)
        heads = models.view(*models.shape[:2], self.classes, -1)
        return local_updates(self.features, heads, batches, training, losses)

    def hits(self, models: torch.Tensor) -> torch.Tensor:
        """(T, cells): see scores.Exam."""
        return self.test.hits(models, self.classes)

    def backdoor(self, models: torch.Tensor, target: int) -> torch.Tensor | None:
        """(T', cells), or None without triggered rows."""
        trial = backdoor_exam(self.samples, target, self.device, self.dtype)
        return None if trial is None else trial.hits(models, self.classes)

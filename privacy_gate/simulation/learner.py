"""The interface of models that clients train and test rows evaluate; models of many cells are stacked, (cells, P)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.local import Batches
from privacy_gate.simulation.partitions import Rows


class Learner(Protocol):
    """A model with P parameters, and all rows to train it on: clients' rows, their triggered twins, the server's rows.

    label      (N',) true class of every row
    triggered  offset from a row to its triggered twin; None if there are no twins
    root       the server's own rows; empty if it has none
    """

    @property
    def label(self) -> NDArray[np.int64]: ...
    @property
    def classes(self) -> int: ...
    @property
    def triggered(self) -> int | None: ...
    @property
    def root(self) -> Rows: ...
    @property
    def width(self) -> int:
        """P."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def start(self, seeds: Sequence[int]) -> torch.Tensor:
        """Untrained models for cells with these seeds, (cells, P)."""
        ...

    def updates(
        self, models: torch.Tensor, batches: Batches, training: Training, losses: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Updates (A, G, K, P) that local steps make to models (A, G, P); with `losses`, also the losses (A, G, K).

        The loss is the mean over the rows of the first batch before any step, in nats.
        """
        ...

    def hits(self, models: torch.Tensor) -> torch.Tensor:
        """How often each model is right on each test row, 0 to 1 (ties count in part): (T, cells) float64.

        See scores.right.
        """
        ...

    def backdoor(self, models: torch.Tensor, target: int) -> torch.Tensor | None:
        """Like `hits`, on triggered test rows of other classes with `target` as the right answer: (T', cells).

        None if there are no such rows.
        """
        ...

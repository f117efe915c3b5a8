"""What clients train and how it is judged; the models of many cells lie flat side by side, (cells, P)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.local import Batches
from privacy_gate.simulation.partitions import Rows


class Learner(Protocol):
    """A model of P numbers and all rows that it may be trained on: the clients', their triggered twins, the server's.

    label      (N',)
    triggered  how far behind a row its triggered twin is; None without
    root       the server's own rows; empty without
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
        """Untrained models of cells with these seeds, (cells, P)."""
        ...

    def updates(
        self, models: torch.Tensor, batches: Batches, training: Training, losses: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What local steps change (A, G, K, P) of models (A, G, P), and where asked for the losses (A, G, K).

        The loss is that of the first batch before any step, mean over its rows, nats.
        """
        ...

    def hits(self, models: torch.Tensor) -> torch.Tensor:
        """How far each model is right on each test row: (T, cells) float64, see scores.right."""
        ...

    def backdoor(self, models: torch.Tensor, target: int) -> torch.Tensor | None:
        """How far each calls each triggered test row of other classes `target`, (T', cells); None without such rows."""
        ...

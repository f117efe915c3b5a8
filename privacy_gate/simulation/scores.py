"""Which rows each head classifies correctly. Axis letters: evidence.py; cells are trainings."""

from dataclasses import dataclass

import numpy as np
import torch

from privacy_gate.simulation.rules.geometry import compiles
from privacy_gate.simulation.samples import Samples, with_ones

LOGITS = 8 << 20
"""Number of logits that are computed at once, to bound memory."""


def right(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """How correctly each model classifies each row, 0 to 1: logits (T, C, cells), label (T,); (T, cells) float64.

    A tie among k classes counts 1 / k, as if it were broken at random, so a head of zeros scores 1 / C. A row with a
    logit that is not finite counts 0.
    """
    if compiles(logits):
        from privacy_gate.native import geometry as compiled  # noqa: PLC0415

        return compiled.right(logits, label)
    return stacked_right(logits, label)


def stacked_right(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """`right` by torch."""
    bottom, top = logits.amin(1), logits.amax(1)
    ties = (logits == top.unsqueeze(1)).sum(1)
    true = logits.gather(1, label.view(-1, 1, 1).expand(-1, 1, logits.shape[2])).squeeze(1)
    sound = bottom.isfinite() & top.isfinite()  # one NaN makes both the minimum and the maximum NaN
    return ((true == top) & sound).double() / ties.clamp(min=1)


@dataclass(frozen=True, eq=False)
class Exam:
    """Rows that heads are evaluated on.

    features  (T, E) with a column of ones; label (T,)
    """

    features: torch.Tensor
    label: torch.Tensor

    def hits(self, heads: torch.Tensor, classes: int) -> torch.Tensor:
        """Correctness of each head (cells, C E) on each row: (T, cells) float64, see `right`."""
        cells = len(heads)
        # (cells, C E) -> (C cells, E): classes before cells, so that the logits view as (T, C, cells).
        weight = heads.view(cells, classes, -1).transpose(0, 1).reshape(classes * cells, -1)
        step = max(1, LOGITS // (classes * cells))
        parts = [slice(first, first + step) for first in range(0, len(self.label), step)]
        return torch.cat(
            [right((self.features[part] @ weight.T).view(-1, classes, cells), self.label[part]) for part in parts]
        )


def exam(samples: Samples, device: torch.device, dtype: torch.dtype) -> Exam:
    """An exam on the samples, unchanged."""
    return Exam(
        torch.from_numpy(with_ones(samples.features)).to(device, dtype),
        torch.from_numpy(np.asarray(samples.label, dtype=np.int64)).to(device),
    )


def backdoor_exam(samples: Samples, target: int, device: torch.device, dtype: torch.dtype) -> Exam | None:
    """An exam on triggered rows of other classes, with `target` as the right answer; None if there are no such rows."""
    others = samples.label != target
    if samples.triggered is None or not others.any():
        return None
    return Exam(
        torch.from_numpy(with_ones(samples.triggered[others])).to(device, dtype),
        torch.full((int(others.sum()),), target, device=device),
    )

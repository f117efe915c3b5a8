"""How often heads are right, by class and by client. Axis letters: evidence.py; cells are many trainings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from privacy_gate.federated.samples import Samples, with_ones

LOGITS = 8 << 20
"""Numbers of logits that are looked at at once."""


def right(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """How far each of T rows is called what it is by each model: logits (T, C, cells), label (T,); (T, cells) float64.

    A tie counts as one who breaks it at random gets it, so a head of zeros is right in 1 of C; a row of which a logit
    is not finite is never right.
    """
    bottom, top = logits.amin(1), logits.amax(1)
    ties = (logits == top.unsqueeze(1)).sum(1)
    true = logits.gather(1, label.view(-1, 1, 1).expand(-1, 1, logits.shape[2])).squeeze(1)
    sound = bottom.isfinite() & top.isfinite()  # NaN spreads to both
    return (((true == top) & sound) / ties.clamp(min=1)).double()


@dataclass(frozen=True, eq=False)
class Exam:
    """Rows that heads are tried on.

    features  (T, E) with a column of ones; label (T,)
    members   (Q, T) of 0 and 1: which rows count in each of Q averages
    """

    features: torch.Tensor
    label: torch.Tensor
    members: torch.Tensor

    def rates(self, heads: torch.Tensor, classes: int) -> torch.Tensor:
        """The share each head (cells, C E) has right in each average: (cells, Q) float64; NaN where no row counts.

        See `right`.
        """
        cells = len(heads)
        weight = heads.view(cells, classes, -1).transpose(0, 1).reshape(classes * cells, -1)
        hits = self.members.new_zeros(len(self.members), cells)
        step = max(1, LOGITS // (classes * cells))
        for first in range(0, len(self.label), step):
            part = slice(first, first + step)
            logits = (self.features[part] @ weight.T).view(-1, classes, cells)
            hits += self.members[:, part] @ right(logits, self.label[part])
        return (hits / self.members.sum(1, keepdim=True)).T


def exam(samples: Samples, classes: int, clients: Sequence[object], device: torch.device, dtype: torch.dtype) -> Exam:
    """Averages over each class (C of them), and each of the named clients (K) where the samples name theirs."""
    averages = [samples.label == name for name in range(classes)]
    if samples.client is not None:
        averages += [samples.client == name for name in clients]
    return Exam(
        torch.from_numpy(with_ones(samples.features)).to(device, dtype),
        torch.from_numpy(np.asarray(samples.label, dtype=np.int64)).to(device),
        torch.from_numpy(np.array(averages, dtype=np.float64)).to(device),
    )


def backdoor_exam(samples: Samples, target: int, device: torch.device, dtype: torch.dtype) -> Exam | None:
    """Triggered rows of other classes, right where called `target`; None without them."""
    others = samples.label != target
    if samples.triggered is None or not others.any():
        return None
    return Exam(
        torch.from_numpy(with_ones(samples.triggered[others])).to(device, dtype),
        torch.full((int(others.sum()),), target, device=device),
        torch.ones(1, int(others.sum()), dtype=torch.float64, device=device),
    )

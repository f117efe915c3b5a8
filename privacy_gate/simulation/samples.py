"""The rows that a federation trains and is tested on: features of a frozen backbone. Axis letters: evidence.py."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Floats, Ints
from privacy_gate.errors import EvidenceError


@dataclass(frozen=True, eq=False)
class Samples:
    """Features, labels and optional facts about each row.

    features   (N, D)  output of the backbone
    label      (N,)    true class, 0 <= label < C
    client     (N,)    name of the client that holds the row; None if unknown
    triggered  (N, D)  features of the same images with the backdoor's trigger; None if not computed

    Raises EvidenceError if there are no rows, a shape is wrong, a label is negative or a value is not finite.
    """

    features: Floats
    label: Ints
    client: NDArray[Any] | None = None
    triggered: Floats | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not len(self.features):
            raise EvidenceError(f"features have shape {self.features.shape}, expected (N, D) with N >= 1")
        rows = len(self.features)
        expected = {"label": (rows,), "client": (rows,), "triggered": self.features.shape}
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise EvidenceError(f"{name} has shape {array.shape}, expected {shape}")
        if self.label.dtype.kind not in "iu" or self.label.min() < 0:
            raise EvidenceError(f"labels are {self.label.dtype} from {self.label.min()}, expected integers from 0")
        for name, array in (("features", self.features), ("triggered", self.triggered)):
            if array is not None and not np.isfinite(array).all():
                raise EvidenceError(f"{name} contain values that are not finite (NaN or infinity): check the backbone")


def with_ones(features: Floats) -> NDArray[Any]:
    """Features (N, D) and a column of ones for the bias: (N, D + 1)."""
    return np.concatenate([features, np.ones((len(features), 1), dtype=features.dtype)], axis=1)

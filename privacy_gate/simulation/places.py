"""A selection of cells that is a view if their places are regular; indexing by number would copy all their updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True, eq=False)
class Places:
    """Places on the first axis of tensors of cells; see `from_numbers`.

    index   the places themselves if they are irregular, else None
    first, steps, counts: if they are regular, the first place, and step and count on each axis, the inner axis last
    """

    index: torch.Tensor | None = None
    first: int = 0
    steps: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def from_numbers(cls, places: Sequence[int], device: torch.device, nested: bool = False) -> Self:
        """These places, in ascending order. nested: runs at regular distances are allowed and become two axes."""
        first, step = places[0], places[1] - places[0] if len(places) > 1 else 1
        # Length of the longest prefix with a constant step: an arithmetic progression.
        run = next((count for count, place in enumerate(places) if place != first + count * step), len(places))
        if run == len(places):
            return cls(first=first, steps=(step,), counts=(run,))
        # Otherwise the same run may repeat at the distance of the first place after it.
        beyond = places[run] - first
        regular = [first + a * beyond + b * step for a in range(len(places) // run) for b in range(run)]
        if nested and list(places) == regular:
            return cls(first=first, steps=(beyond, step), counts=(len(places) // run, run))
        return cls(index=torch.tensor(places, device=device))

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The selected entries of values (cells, ...), on one axis or two; a view if the places are regular."""
        if self.index is not None:
            return values[self.index]
        whole, stride = values.shape[1:], values.stride()
        strides = [step * stride[0] for step in self.steps]
        return values.as_strided(
            (*self.counts, *whole), (*strides, *stride[1:]), values.storage_offset() + self.first * stride[0]
        )

    def put(self, values: torch.Tensor, new: torch.Tensor) -> None:
        """Overwrites the selected entries of values (cells, ...) with `new`, which has the shape that `of` returns."""
        if self.index is not None:
            values[self.index] = new
        else:
            self.of(values).copy_(new)

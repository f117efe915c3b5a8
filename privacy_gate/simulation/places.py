"""Some of many cells, seen in place where they stand regularly: to choose them by number copies all their updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True, eq=False)
class Places:
    """Places on the first axis of any tensor of cells; see `found`.

    index   the places themselves, where they are not regular
    first, steps, counts: else the first of them, and how far and how often they go on, the inner axis last
    """

    index: torch.Tensor | None = None
    first: int = 0
    steps: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def found(cls, places: Sequence[int], device: torch.device, nested: bool = False) -> Self:
        """These places, ascending. nested: they may be runs of runs, which become two axes instead of one."""
        first, step = places[0], places[1] - places[0] if len(places) > 1 else 1
        run = next((count for count, place in enumerate(places) if place != first + count * step), len(places))
        if run == len(places):
            return cls(first=first, steps=(step,), counts=(run,))
        beyond = places[run] - first
        regular = [first + a * beyond + b * step for a in range(len(places) // run) for b in range(run)]
        if nested and list(places) == regular:
            return cls(first=first, steps=(beyond, step), counts=(len(places) // run, run))
        return cls(index=torch.tensor(places, device=device))

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Those of values (cells, ...), on one axis or two: a view where they are regular."""
        if self.index is not None:
            return values[self.index]
        whole, stride = values.shape[1:], values.stride()
        strides = [step * stride[0] for step in self.steps]
        return values.as_strided(
            (*self.counts, *whole), (*strides, *stride[1:]), values.storage_offset() + self.first * stride[0]
        )

    def put(self, values: torch.Tensor, found: torch.Tensor) -> None:
        """Sets those of values (cells, ...) to `found`, of the shape that `of` gives."""
        if self.index is not None:
            values[self.index] = found
        else:
            self.of(values).copy_(found)

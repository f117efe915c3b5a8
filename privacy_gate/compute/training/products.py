"""The two matrix products of a training step of stacked heads; each head multiplies its own rows of one table.

`Gathered` copies the rows together and multiplies stacks of matrices in torch. `Compiled`, on a CPU with Numba
installed, avoids the copy and is two to four times as fast; results differ only by rounding.
"""

from typing import Protocol

import torch

from privacy_gate.native.compiler import has_numba

LEAST_WIDTH = 128
"""Row width W from which compiled products are faster than torch's, for any number of classes."""


class Products(Protocol):
    """The interface of both implementations: rows (M, B) of a table x (N, W), parameters and gradient (M, C, W)."""

    def logits(self, parameters: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """parameters @ x[rows], (M, C, B)."""
        ...

    def gradient(self, error: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Sets out to error (M, C, B) @ x[rows]; rows must be those of the last call of `logits`."""
        ...


def products(x: torch.Tensor) -> Products:
    """The faster implementation for this table."""
    if x.device.type == "cpu" and x.shape[1] >= LEAST_WIDTH and has_numba():
        return Compiled(x)
    return Gathered(x)


class Gathered:
    """The torch implementation, for any device."""

    def __init__(self, x: torch.Tensor) -> None:
        # A buffer for the copied rows, which `logits` fills and `gradient` uses again.
        self._x, self._gathered = x, x.new_empty(0, x.shape[1])

    def logits(self, parameters: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """See Products."""
        if rows.numel() > len(self._gathered):
            self._gathered = self._x.new_empty(rows.numel(), self._x.shape[1])
        torch.index_select(self._x, 0, rows.reshape(-1), out=self._gathered[: rows.numel()])
        return torch.bmm(parameters, self._rows(rows).transpose(1, 2))

    def gradient(self, error: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See Products."""
        torch.bmm(error, self._rows(rows), out=out)

    def _rows(self, rows: torch.Tensor) -> torch.Tensor:
        return self._gathered[: rows.numel()].view(*rows.shape, -1)


class Compiled:
    """The Numba implementation, for CPUs."""

    def __init__(self, x: torch.Tensor) -> None:
        from privacy_gate.native import products as compiled  # noqa: PLC0415 - Numba is an extra, and slow to import

        self._compiled, self._x = compiled, x.numpy()

    def logits(self, parameters: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """See Products."""
        out = parameters.new_empty(*parameters.shape[:2], rows.shape[1])
        self._compiled.logits(self._x, rows.numpy(), parameters.numpy(), out.numpy())
        return out

    def gradient(self, error: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        """See Products."""
        self._compiled.gradient(self._x, rows.numpy(), error.numpy(), out.numpy())

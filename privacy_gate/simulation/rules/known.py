"""The common arguments of all aggregators, and the check that each makes before it starts.

Axis letters here: n updates received in a round, at most f of them byzantine; d coordinates of an update.
An update is a client's weights after local training minus the weights it received, never the weights themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from privacy_gate.dossier.federation.needs import BUCKET, unmet_by_step
from privacy_gate.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Known:
    """What the server knows about a round in addition to the updates; None: unknown.

    counts    (..., n)  number of examples that each client claims
    previous  (..., d)  the last round's aggregate; None in the first round
    root      (..., d)  the server's own update, trained on data that it trusts
    losses    (..., n)  each client's loss on the first batch of its local training, before any step, nats
    order     (..., n)  a random permutation of the updates; (n,) applies to all cells
    lr        the clients' learning rate
    """

    counts: torch.Tensor | None = None
    previous: torch.Tensor | None = None
    root: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    order: torch.Tensor | None = None
    lr: float | None = None

    def at(self, places: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same for a subset of the cells: `places` selects from the leading axis of cells."""
        return self._with(places)

    def broadcast(self) -> Self:
        """The same with a second axis of length 1, to broadcast over alternative attacks on each cell."""
        return self._with(lambda value: value.unsqueeze(1))

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)


NOTHING = Known()

Aggregate = Callable[..., torch.Tensor]
"""(updates (..., n, d), f, known, *, parameters) -> (..., d) in the updates' dtype; pre-aggregation: (..., n', d)."""


def refuse_few(updates: torch.Tensor, f: int, name: str, size: int = BUCKET) -> None:
    """Raises ConfigurationError if the rule needs more updates for this f: see needs.unmet_by_step."""
    if reason := unmet_by_step(name, f, updates.shape[-2], size):
        raise ConfigurationError(reason)


def required(value: torch.Tensor | None, what: str, name: str) -> torch.Tensor:
    """`value`; raises ConfigurationError if it is None, because the server does not know it."""
    if value is None:
        raise ConfigurationError(f"{name} needs {what}, but this federation has none: supply it or choose another rule")
    return value

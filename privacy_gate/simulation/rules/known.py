"""What every aggregator is called with, and the test each makes before it starts.

Axis letters here: n updates received in a round, of which at most f are byzantine; d coordinates of an update.
An update is a client's weights after its local training minus the weights it was sent, never the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from privacy_gate.dossier.federation.needs import BUCKET, unmet_by_step
from privacy_gate.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Known:
    """What the server knows of a round besides the updates; None where it does not.

    counts    (..., n)  examples each client claims to have
    previous  (..., d)  what the last round's aggregation gave; None in the first round
    root      (..., d)  the server's own update, from data it trusts
    losses    (..., n)  each client's loss on the first batch of its local training, before any step, nats
    order     (..., n)  a random permutation of the updates; (n,) serves all cells
    lr        the clients' learning rate
    """

    counts: torch.Tensor | None = None
    previous: torch.Tensor | None = None
    root: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    order: torch.Tensor | None = None
    lr: float | None = None

    def at(self, places: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """What is known of some of the cells: `places` chooses from one leading axis of cells."""
        return self._with(places)

    def for_each(self) -> Self:
        """The same, for several ways on that each cell may take: a second axis, of length 1."""
        return self._with(lambda value: value.unsqueeze(1))

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)


NOTHING = Known()

Aggregate = Callable[..., torch.Tensor]
"""(updates (..., n, d), f, known, *, parameters) -> (..., d), of the updates' dtype; (..., n', d) before a rule."""


def refuse_few(updates: torch.Tensor, f: int, name: str, size: int = BUCKET) -> None:
    """Raises ConfigurationError where the rule cannot take so many updates: see needs.unmet_by_step."""
    if reason := unmet_by_step(name, f, updates.shape[-2], size):
        raise ConfigurationError(reason)


def required(value: torch.Tensor | None, what: str, name: str) -> torch.Tensor:
    """`value`; raises ConfigurationError where the server does not know it."""
    if value is None:
        raise ConfigurationError(f"{name} needs {what}, and this federation has none: supply it or choose another rule")
    return value

"""Server optimisers: they map the aggregate and their state to the step of the global model and a new state.

Reddi et al. 2021 (arXiv 2003.00295), algorithm 2: without bias correction, and the second moment starts at tau^2.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from privacy_gate.errors import ConfigurationError


class ServerState(NamedTuple):
    """First and second moment of the aggregates of all rounds so far, both (..., d)."""

    first: torch.Tensor
    second: torch.Tensor


@dataclass(frozen=True)
class Server:
    """A server optimiser: its name, learning rate, and the decay of its first (`momentum`) and second (`decay`) moment.

    avg adds lr times the aggregate. avgm (Hsu et al. 2019, arXiv 1909.06335) adds lr times the decayed sum of
    aggregates. adam and yogi add lr times first moment / (sqrt(second moment) + tau).
    """

    name: Literal["avg", "avgm", "adam", "yogi"] = "avg"
    lr: float = 1.0
    momentum: float = 0.9
    decay: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if self.name not in SERVERS:
            raise ConfigurationError(f"no server optimiser is called {self.name!r}: use one of {', '.join(SERVERS)}")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and 0 <= self.decay < 1 and self.tau > 0):
            raise ConfigurationError(f"{self} is out of range: expected lr, tau > 0 and 0 <= momentum, decay < 1")

    def start(self, like: torch.Tensor) -> ServerState:
        """The state before the first round, for aggregates of this shape (..., d)."""
        return ServerState(torch.zeros_like(like), torch.full_like(like, self.tau**2))

    def step(self, aggregate: torch.Tensor, state: ServerState) -> tuple[torch.Tensor, ServerState]:
        """The step to add to the weights, (..., d), and the next state; does not modify its arguments."""
        return SERVERS[self.name](self, aggregate, state)


def _avg(server: Server, aggregate: torch.Tensor, state: ServerState) -> tuple[torch.Tensor, ServerState]:
    return server.lr * aggregate, state


def _avgm(server: Server, aggregate: torch.Tensor, state: ServerState) -> tuple[torch.Tensor, ServerState]:
    first = server.momentum * state.first + aggregate
    return server.lr * first, ServerState(first, state.second)


def _adam(server: Server, aggregate: torch.Tensor, state: ServerState) -> tuple[torch.Tensor, ServerState]:
    second = server.decay * state.second + (1 - server.decay) * aggregate**2
    return _divided(server, aggregate, state, second)


def _yogi(server: Server, aggregate: torch.Tensor, state: ServerState) -> tuple[torch.Tensor, ServerState]:
    square = aggregate**2
    # Yogi moves the second moment by a step whose size does not depend on the moment itself: Adam's can collapse.
    second = state.second - (1 - server.decay) * square * torch.sign(state.second - square)
    return _divided(server, aggregate, state, second)


def _divided(
    server: Server, aggregate: torch.Tensor, state: ServerState, second: torch.Tensor
) -> tuple[torch.Tensor, ServerState]:
    """The step of adam and yogi, which differ only in their second moment (..., d)."""
    first = server.momentum * state.first + (1 - server.momentum) * aggregate
    return server.lr * first / (second.sqrt() + server.tau), ServerState(first, second)


SERVERS = {"avg": _avg, "avgm": _avgm, "adam": _adam, "yogi": _yogi}
"""Every server optimiser by the name that recipes use."""

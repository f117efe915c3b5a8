"""Server optimisers follow Reddi et al.'s algorithm 2 step by step, and do not modify their arguments."""

import math

import pytest
import torch

from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.servers import SERVERS, Server


def steps(server: Server, aggregates: list[float]) -> list[float]:
    state, found = server.start(torch.zeros(3, 1, dtype=torch.float64)), []
    for value in aggregates:
        step, state = server.step(torch.full((3, 1), value, dtype=torch.float64), state)
        found.append(float(step[1, 0]))
    return found


def test_avg_adds_the_aggregate_and_avgm_its_decayed_sum() -> None:
    assert steps(Server(), [1.0, 2.0]) == [1.0, 2.0]
    assert steps(Server("avg", lr=0.5), [1.0, 2.0]) == [0.5, 1.0]
    assert steps(Server("avgm", momentum=0.9), [1.0, 2.0]) == pytest.approx([1.0, 2.9])


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_adaptive_servers_follow_the_algorithm(name: str) -> None:
    m, v, expected = 0.0, 0.01**2, []
    aggregates = [0.3, -2.0, 0.001]
    for delta in aggregates:
        m = 0.9 * m + 0.1 * delta
        v = 0.99 * v + 0.01 * delta**2 if name == "adam" else v - 0.01 * delta**2 * math.copysign(1, v - delta**2)
        expected.append(0.1 * m / (math.sqrt(v) + 0.01))
    assert steps(Server(name, lr=0.1, tau=0.01), aggregates) == pytest.approx(expected, rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_no_server_changes_its_arguments(name: str) -> None:
    server = Server(name)  # type: ignore[arg-type]
    aggregate = torch.ones(2, 3)
    _, state = server.step(aggregate, server.start(aggregate))
    first, second = state.first.clone(), state.second.clone()
    server.step(aggregate, state)
    assert torch.equal(aggregate, torch.ones(2, 3))
    assert torch.equal(state.first, first)
    assert torch.equal(state.second, second)


def test_a_server_that_does_not_exist_or_is_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no server optimiser"):
        Server("adamw")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="out of range"):
        Server("adam", lr=0.0)

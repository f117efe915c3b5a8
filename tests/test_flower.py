"""Federations that Flower trains log what the gate reads. The simulation itself needs an environment of its own:
Flower pins other versions of shared libraries, so .ci/run builds one and runs this file in it."""

import importlib.util
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy_gate import flower, registry
from privacy_gate.dataset import Split, read_data
from privacy_gate.errors import ConfigurationError, UnavailableError
from privacy_gate.producer import embedded
from privacy_gate.roundlog import Round, RoundLog

CLASSES, CLIENTS, ROUNDS = 5, 4, 6


class Record(dict[str, Any]):
    """Stands for Flower's records: arrays that answer numpy()."""


def arrays(**tensors: np.ndarray) -> Record:
    return Record({name: types.SimpleNamespace(numpy=lambda tensor=tensor: tensor) for name, tensor in tensors.items()})


def reply(local: Record, node: int = 1, error: bool = False, says: str | None = None, **metrics: float) -> Any:
    content = types.SimpleNamespace(
        array_records={"arrays": local},
        metric_records={"metrics": Record(metrics)},
        config_records={"config": Record({"client": says})} if says else {},
    )
    return types.SimpleNamespace(
        content=content, metadata=types.SimpleNamespace(src_node_id=node), has_error=lambda: error
    )


class Strategy:
    weighted_by_key = "num-examples"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> list[Any]:
        return [server_round, arrays, config, grid]

    def aggregate_train(self, server_round: int, replies: Any) -> tuple[Any, Any]:
        self.seen += list(replies)
        return "joined", server_round


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(flower, "log_round", lambda *given, **named: found.append((*given, named)))
    return found


def test_each_reply_is_logged_as_it_came_and_the_strategy_does_what_it_did(entries: list[tuple[Any, ...]]) -> None:
    strategy = Strategy()
    assert flower.logged(strategy, only=["w"], run_id="r") is strategy
    start = arrays(w=np.array([1.0, 2.0]))
    assert strategy.configure_train(3, start, "config", "grid") == [3, start, "config", "grid"]
    replies = [
        reply(arrays(w=np.array([2.0, 2.0])), says="north", **{"num-examples": 7}),
        reply(arrays(w=np.array([1.0, 0.0])), **{"num-examples": 9, "partition-id": 4.0}),
        reply(arrays(w=np.array([0.0, 0.0])), node=77, **{"num-examples": 1}),
        reply(arrays(), error=True),
    ]
    assert strategy.aggregate_train(3, iter(replies)) == ("joined", 3)
    assert strategy.seen == replies
    ((index, weights, updates, examples, named),) = entries
    assert (index, weights["w"].tolist(), examples) == (3, [1, 2], {"north": 7, "4": 9, "77": 1})
    assert {client: update["w"].tolist() for client, update in updates.items()} == {
        "north": [1, 0],
        "4": [0, -2],
        "77": [-1, -2],
    }
    assert named == {"only": ["w"], "run_id": "r", "tracking_uri": None}


def test_a_round_in_which_nobody_answered_is_not_logged(entries: list[tuple[Any, ...]]) -> None:
    strategy = flower.logged(Strategy())
    strategy.configure_train(1, arrays(w=np.zeros(1)), None, None)
    assert strategy.aggregate_train(1, [reply(arrays(), error=True)]) == ("joined", 1)
    assert entries == []


def test_two_clients_of_one_name_are_refused(entries: list[tuple[Any, ...]]) -> None:
    strategy = flower.logged(Strategy(), client_of=lambda reply: "same")
    strategy.configure_train(1, arrays(w=np.zeros(1)), None, None)
    with pytest.raises(ConfigurationError, match="two replies of the client 'same'"):
        strategy.aggregate_train(1, [reply(arrays(w=np.zeros(1)), node) for node in (1, 2)])
    assert entries == []


def test_a_registry_that_does_not_answer_costs_the_entry_not_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*given: Any, **named: Any) -> None:
        raise UnavailableError("the registry is away")

    monkeypatch.setattr(flower, "log_round", away)
    strategy = flower.logged(Strategy())
    strategy.configure_train(2, arrays(w=np.zeros(1)), None, None)
    with pytest.warns(RuntimeWarning, match="round 2 is not logged: the registry is away"):
        assert strategy.aggregate_train(2, [reply(arrays(w=np.zeros(1)))]) == ("joined", 2)


def averaged(rounds: list[Round], start: np.ndarray) -> np.ndarray:
    """What federated averaging makes of a log's weights and updates, round by round."""
    for each in rounds:
        np.testing.assert_allclose(each.weights["weight"], start, atol=1e-6)
        total = sum(each.examples.values())
        start = start + sum(each.examples[name] / total * each.updates[name]["weight"] for name in each.updates)
    return start


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("flwr"), reason="Flower is not installed; .ci/run installs it")
def test_a_real_simulation_leaves_a_log_that_the_gate_reads(scenes: Callable[..., Any], tmp_path: Path) -> None:
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    import mlflow
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    scene = scenes(tmp_path, members=120, holdout=1000, features=60)
    data = read_data(scene.manifest, CLASSES)
    member = np.flatnonzero(data.split == Split.MEMBER)
    uri, experiment = embedded(tmp_path)
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(experiment_id=experiment) as active:
        run_id = active.info.run_id
    x, y = scene.x, scene.y

    client_app = ClientApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        place = int(context.node_config["partition-id"])
        rows = member[place::CLIENTS]
        tensors = {name: array.numpy() for name, array in message.content["arrays"].items()}
        weight, bias = tensors["weight"].copy(), tensors["bias"].copy()
        for _ in range(10):
            logits = x[rows] @ weight.T + bias
            error = np.exp(logits - logits.max(1, keepdims=True))
            error /= error.sum(1, keepdims=True)
            error[np.arange(len(rows)), y[rows]] -= 1
            weight -= 0.3 * (error.T @ x[rows] / len(rows)).astype(np.float32)
            bias -= 0.3 * error.mean(0).astype(np.float32)
        content = RecordDict(
            {
                "arrays": ArrayRecord(_record(weight, bias)),
                "metrics": MetricRecord({"num-examples": len(rows)}),
                "who": ConfigRecord({"client": f"site {place}"}),
            }
        )
        return Message(content=content, reply_to=message)

    ends: list[Any] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = flower.logged(FedAvg(fraction_evaluate=0.0), run_id=run_id, tracking_uri=uri)
        start = ArrayRecord(_record(np.zeros((CLASSES, 60), np.float32), np.zeros(CLASSES, np.float32)))
        ends.append(strategy.start(grid, start, num_rounds=ROUNDS).arrays)

    def _record(weight: np.ndarray, bias: np.ndarray) -> Any:
        import torch

        return {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}

    run_simulation(server_app, client_app, CLIENTS, backend_config={"client_resources": {"num_cpus": 1}})
    (end,) = ends
    folder = Path(registry.client_of(uri).download_artifacts(run_id, registry.ROUNDS, str(tmp_path)))
    rounds = list(RoundLog.open(folder).rounds())
    assert [each.index for each in rounds] == list(range(1, ROUNDS + 1))
    assert all(sorted(each.updates) == [f"site {place}" for place in range(CLIENTS)] for each in rounds)
    np.testing.assert_allclose(averaged(rounds, np.zeros((CLASSES, 60))), end["weight"].numpy(), atol=1e-5)

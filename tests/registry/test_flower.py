"""Federations that Flower trains write round logs that the gate reads.

The simulation needs a separate environment, because Flower pins other versions of shared libraries. .ci/run builds it
and runs this file in it.
"""

import importlib.util
import os
import re
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy_gate.dossier.dataset import Split, read_data
from privacy_gate.dossier.roundlog import Round, RoundLog
from privacy_gate.errors import UnavailableError
from privacy_gate.registry import flower
from privacy_gate.registry import pull as registry
from privacy_gate.registry.producer import embedded

CLASSES, CLIENTS, ROUNDS = 5, 4, 6


class Record(dict[str, Any]):
    """Stands in for Flower's records: arrays with a method numpy()."""


def arrays(**tensors: np.ndarray) -> Record:
    return Record({name: types.SimpleNamespace(numpy=lambda tensor=tensor: tensor) for name, tensor in tensors.items()})


def reply(
    local: Record,
    node: int = 1,
    error: bool = False,
    says: str | None = None,
    more: Record | None = None,
    **metrics: Any,
) -> Any:
    content = types.SimpleNamespace(
        array_records={"arrays": local} | ({"more": more} if more is not None else {}),
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


def garbled(**tensors: np.ndarray) -> Record:
    """Arrays that cannot be read."""

    def numpy() -> np.ndarray:
        raise RuntimeError("bytes missing")

    return Record({name: types.SimpleNamespace(numpy=numpy) for name in tensors})


def nobody(sent: Any) -> str:
    raise LookupError(f"no such node: {sent.metadata.src_node_id}")


ZERO, LONG = np.zeros(2), np.zeros(3)
SPOILT: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "two of one name": ([reply(arrays(w=ZERO), says="a"), reply(arrays(w=ZERO), says="a")], {}, "two replies of the"),
    "NaN": ([reply(arrays(w=np.array([0.0, np.nan])))], {}, "w holds values that are not finite numbers"),
    "inf": ([reply(arrays(w=np.array([np.inf, 0.0])))], {}, "w holds values that are not finite numbers"),
    "two records": ([reply(arrays(w=ZERO), more=arrays(w=ZERO))], {}, "client '1' sent 2 ArrayRecords"),
    "unknown tensor": ([reply(arrays(v=ZERO))], {}, "client '1' sent 'v', which the model does not have"),
    "another shape": ([reply(arrays(w=np.zeros((3, 2))))], {}, "or has in another shape"),
    "unlike tensors": ([reply(arrays(w=ZERO)), reply(arrays(w=ZERO, b=LONG), 2)], {}, "sent other tensors"),
    "no examples": ([reply(arrays(w=ZERO), **{"num-examples": 0})], {}, "each at least 1"),
    "examples that are no number": ([reply(arrays(w=ZERO), **{"num-examples": [1]})], {}, "TypeError"),
    "unreadable": ([reply(garbled(w=ZERO))], {}, "RuntimeError: bytes missing"),
    "no name": ([reply(arrays(w=ZERO))], {"client_of": nobody}, "LookupError: 'no such node: 1'|no such node: 1"),
    "misspelt tensor": ([reply(arrays(w=ZERO))], {"only": ["weigth"]}, "only names weigth"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_round_that_cannot_be_logged_is_left_out_with_one_warning_and_training_goes_on(
    name: str, tracking: str, tmp_path: Path
) -> None:
    spoilt, settings, said = SPOILT[name]
    client = registry.client_of(tracking)
    run_id = client.create_run(client.get_experiment_by_name("tests").experiment_id).info.run_id
    strategy = flower.logged(Strategy(), run_id=run_id, tracking_uri=tracking, **settings)
    start, sound = arrays(w=ZERO, b=LONG), [reply(arrays(w=np.ones(2)))]
    for turn, replies in enumerate((sound, spoilt, sound), 1):
        assert strategy.configure_train(turn, start, "config", "grid")[1] is start
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert strategy.aggregate_train(turn, replies) == ("joined", turn)
        told = [str(one.message) for one in caught if "is not logged" in str(one.message)]
        assert len(told) == (1 if turn == 2 or settings else 0)
        if turn == 2:
            assert re.match(rf"round 2 is not logged: .*({said})", told[0])
            assert "round 2" not in told[0].removeprefix("round 2")
    assert strategy.seen == [*sound, *spoilt, *sound]
    if not settings:
        folder = Path(client.download_artifacts(run_id, registry.ROUNDS, str(tmp_path)))
        assert RoundLog.open(folder).indices == (1, 3)


def test_a_model_that_cannot_be_read_costs_the_entry_not_the_training(entries: list[tuple[Any, ...]]) -> None:
    strategy, start = flower.logged(Strategy()), garbled(w=ZERO)
    with pytest.warns(RuntimeWarning, match="round 1 is not logged: RuntimeError: bytes missing"):
        assert strategy.configure_train(1, start, "config", "grid") == [1, start, "config", "grid"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second warning for this round would fail the test
        assert strategy.aggregate_train(1, [reply(arrays(w=ZERO))]) == ("joined", 1)
    assert entries == []


class StrangeError(Exception):
    """An error as clients of artifact stores raise it, without a shared base class."""


@pytest.mark.parametrize(
    "error", [UnavailableError("the registry is away"), StrangeError("the registry is away")], ids=repr
)
def test_a_registry_that_does_not_answer_costs_the_entry_not_the_training(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def away(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(flower, "log_round", away)
    strategy = flower.logged(Strategy())
    strategy.configure_train(2, arrays(w=np.zeros(1)), None, None)
    with pytest.warns(RuntimeWarning, match=r"round 2 is not logged: (StrangeError: )?the registry is away"):
        assert strategy.aggregate_train(2, [reply(arrays(w=np.zeros(1)))]) == ("joined", 2)


def test_who_interrupts_the_training_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flower, "log_round", interrupted)
    strategy = flower.logged(Strategy())
    strategy.configure_train(1, arrays(w=np.zeros(1)), None, None)
    with pytest.raises(KeyboardInterrupt):
        strategy.aggregate_train(1, [reply(arrays(w=np.zeros(1)))])


def averaged(rounds: list[Round], start: np.ndarray) -> np.ndarray:
    """The global models that federated averaging computes from a log's weights and updates, round by round."""
    for each in rounds:
        np.testing.assert_allclose(each.weights["weight"], start, atol=1e-6)
        total = sum(each.examples.values())
        start = start + sum(each.examples[name] / total * each.updates[name]["weight"] for name in each.updates)
    return start


FLOWER = pytest.mark.skipif(not importlib.util.find_spec("flwr"), reason="Flower is not installed; .ci/run installs it")
N, F = 15, 3


def models(seed: int) -> tuple[np.ndarray, list[tuple[list[np.ndarray], int]]]:
    """Updates (N, 12), and each one in Flower's form: layers, and the number of examples."""
    flat = np.random.default_rng(seed).normal(size=(N, 12))
    return flat, [([row[:9].reshape(3, 3), row[9:]], 1) for row in flat]


def joined(layers: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([layer.ravel() for layer in layers])


@FLOWER
@pytest.mark.parametrize("seed", range(5))
def test_rules_are_those_of_the_flower_that_is_installed(seed: int) -> None:
    import torch
    from flwr.server.strategy import aggregate as theirs

    from privacy_gate.simulation.rules.aggregators import rule
    from privacy_gate.simulation.rules.known import Known

    flat, results = models(seed)
    counts = np.random.default_rng(seed).integers(1, 50, N)
    weighted = [(layers, int(count)) for (layers, _), count in zip(results, counts, strict=True)]
    found = {
        "mean": theirs.aggregate(weighted),
        "median": theirs.aggregate_median(results),
        "trimmed_mean": theirs.aggregate_trimmed_avg(results, (F + 0.5) / N),
        "krum": theirs.aggregate_krum(results, F, 0),
        "multi_krum": theirs.aggregate_krum(results, F, N - F),
        "bulyan": theirs.aggregate_bulyan(list(results), F, theirs.aggregate_krum, to_keep=0),
    }
    known = Known(counts=torch.from_numpy(counts))
    for name, layers in found.items():
        ours = rule(name)(torch.from_numpy(flat), F, known)
        np.testing.assert_allclose(ours, joined(layers), rtol=1e-9, atol=1e-12, err_msg=name)


@FLOWER
@pytest.mark.parametrize("q", [0.0, 0.2, 1.0, 5.0])
def test_q_fedavg_is_that_of_the_flower_that_is_installed(q: float) -> None:
    """Flower's sum for each client's loss, and its whole strategy, which uses the global model's loss for all."""
    import torch
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.strategy import QFedAvg
    from flwr.server.strategy.aggregate import aggregate_qffl

    from privacy_gate.simulation.rules.aggregators import rule, step
    from privacy_gate.simulation.rules.known import Known

    flat, _ = models(0)
    rng, rate = np.random.default_rng(1), 0.1
    start, loss = rng.normal(size=12), rng.random(N) + 0.1
    ours = rule(step("q_fedavg", {"q": q}))

    def moved(losses: np.ndarray) -> np.ndarray:
        known = Known(losses=torch.from_numpy(losses), lr=rate)
        return start + ours(torch.from_numpy(flat), 0, known).numpy()

    deltas = [[f**q * -row / rate] for f, row in zip(loss, flat, strict=True)]
    below = [q * f ** (q - 1) * ((row / rate) ** 2).sum() + f**q / rate for f, row in zip(loss, flat, strict=True)]
    (found,) = aggregate_qffl([start], deltas, below)
    np.testing.assert_allclose(moved(loss), found, rtol=1e-9)

    strategy = QFedAvg(q_param=q, qffl_learning_rate=rate, evaluate_fn=lambda *given: (0.7, {}))
    strategy.pre_weights = [start[:9].reshape(3, 3), start[9:]]
    sent = [ndarrays_to_parameters([(start + row)[:9].reshape(3, 3), (start + row)[9:]]) for row in flat]
    replies: Any = [(None, FitRes(Status(Code.OK, ""), each, 1, {})) for each in sent]
    parameters, _ = strategy.aggregate_fit(1, replies, [])
    assert parameters is not None
    np.testing.assert_allclose(moved(np.full(N, 0.7)), joined(parameters_to_ndarrays(parameters)), rtol=1e-6)


@pytest.mark.slow
@FLOWER
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

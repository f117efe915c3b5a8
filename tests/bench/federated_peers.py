"""One federated training by the stacked simulator and by other people's frameworks: seconds, and the accuracy reached.

scikit-learn's digits, a softmax head, ten clients with equal shares, the last two byzantine (they send what turns back
the honest mean, or in Flower their own update), trimmed mean with tolerates: 2, one step of 32 rows a round,
150 rounds, rate 1. Everything from data in memory to the last head, each framework's own start included and named
apart; all in one run, one after the other. The simulator trains many cells at once: its share of a stack of 441 is
listed next to one alone.

A peer needs its own environment, since its pins may clash; without it, it is left out and named so.
    python -m venv /tmp/byzfl && /tmp/byzfl/bin/pip install byzfl
    python -m venv /tmp/flower && /tmp/flower/bin/pip install 'flwr[simulation]' torch
    python tests/bench/federated_peers.py --byzfl /tmp/byzfl/bin/python --flower /tmp/flower/bin/python
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CLIENTS, BYZANTINE, ROUNDS, BATCH, RATE, CLASSES = 10, 2, 150, 32, 1.0, 10
TIME_LIMIT = 600


def accuracy(weight: Any, bias: Any, x: Any, y: Any) -> float:
    return float(((x @ weight.T + bias).argmax(1) == y).mean())


def ours(data: dict[str, Any]) -> list[tuple[str, float, float]]:
    """The simulator: one cell alone, and its share of the reference matrix."""
    import torch

    from privacy_gate.simulation.cells import Cell, Training
    from privacy_gate.simulation.partitions import partition
    from privacy_gate.simulation.rules.aggregators import rule
    from privacy_gate.simulation.samples import Samples
    from privacy_gate.simulation.simulator import Study, simulate

    path = Path(__file__).parents[1] / "simulation" / "matrix.py"
    spec = importlib.util.spec_from_file_location("matrix", path)
    assert spec is not None
    assert spec.loader is not None
    matrix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(matrix)
    train, test = (Samples(data[f"x_{part}"], data[f"y_{part}"]) for part in ("train", "test"))
    training = Training(clients=CLIENTS, rounds=ROUNDS, steps=1, batch=BATCH, lr=RATE)
    cell = Cell(rule("trimmed_mean"), "sign_flip", BYZANTINE, BYZANTINE, partition("iid"), 0, training)
    study = Study(train, test, "peers", threads=torch.get_num_threads())
    simulate(study, [cell])
    found = []
    many = matrix.cells([partition("iid"), matrix.uneven(0.5), matrix.uneven(0.1)], range(1))
    for name, cells in (("privacy_gate, alone", [cell]), (f"privacy_gate, one of {len(many)}", many)):
        start = time.perf_counter()
        outcome = simulate(study, cells)
        found.append((name, (time.perf_counter() - start) / len(cells), outcome[0].accuracy))
    return [found[0], (found[1][0], found[1][1], float("nan"))]


def byzfl(data: dict[str, Any]) -> list[tuple[str, float, float]]:
    """ByzFL's clients and server, in one process, as its README drives them."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # a wheel for CUDA beside a CPU build of torch
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
    from byzfl import ByzantineClient, Client, Server
    from byzfl.fed_framework import models
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    models.digits = lambda: torch.nn.Linear(data["x_train"].shape[1], CLASSES)

    def loader(x: Any, y: Any, size: int) -> Any:
        return DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=size, shuffle=True)

    start = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(data["y_train"]))
    honest = [
        Client(
            {
                "model_name": "digits",
                "device": "cpu",
                "optimizer_name": "SGD",
                "learning_rate": RATE,
                "loss_name": "CrossEntropyLoss",
                "weight_decay": 0.0,
                "milestones": [],
                "learning_rate_decay": 1.0,
                "LabelFlipping": False,
                "training_dataloader": loader(data["x_train"][part], data["y_train"][part], BATCH),
                "momentum": 0.0,
                "nb_labels": CLASSES,
                "store_per_client_metrics": False,
                "optimizer_params": {},
            }
        )
        for part in np.array_split(order, CLIENTS)[: CLIENTS - BYZANTINE]
    ]
    attack = ByzantineClient({"name": "SignFlipping", "f": BYZANTINE, "parameters": {}})
    server = Server(
        {
            "device": "cpu",
            "model_name": "digits",
            "test_loader": loader(data["x_test"], data["y_test"], 512),
            "optimizer_name": "SGD",
            "learning_rate": RATE,
            "weight_decay": 0.0,
            "milestones": [],
            "learning_rate_decay": 1.0,
            "aggregator_info": {"name": "TrMean", "parameters": {"f": BYZANTINE}},
            "pre_agg_list": [],
            "optimizer_params": {},
        }
    )
    for _ in range(ROUNDS):
        state = server.get_dict_parameters()
        for client in honest:
            client.set_model_state(state)
            client.compute_gradients()
        sent = [client.get_flat_gradients_with_momentum() for client in honest]
        server.update_model_with_gradients(sent + attack.apply_attack(sent))
    return [("ByzFL", time.perf_counter() - start, float(server.compute_test_accuracy()))]


def flower(data: dict[str, Any]) -> list[tuple[str, float, float]]:
    """A Flower simulation on Ray; one NumPy step at each client."""
    import torch
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedTrimmedAvg
    from flwr.simulation import run_simulation

    order = np.random.default_rng(0).permutation(len(data["y_train"]))
    parts = np.array_split(order, CLIENTS)
    client_app, server_app, seen = ClientApp(), ServerApp(), list[Any]()

    @client_app.train()
    def train(message: Any, context: Any) -> Any:
        place = int(context.node_config["partition-id"])
        rows = np.random.default_rng(message.content["config"]["server-round"]).choice(parts[place], BATCH)
        weight, bias = (message.content["arrays"][name].numpy() for name in ("weight", "bias"))
        x, y = data["x_train"][rows], data["y_train"][rows]
        logits = x @ weight.T + bias
        error = np.exp(logits - logits.max(1, keepdims=True))
        error /= error.sum(1, keepdims=True)
        error[np.arange(BATCH), y] -= 1
        sign = RATE if place >= CLIENTS - BYZANTINE else -RATE
        local = {"weight": weight + sign * error.T @ x / BATCH, "bias": bias + sign * error.mean(0)}
        content = RecordDict(
            {
                "arrays": ArrayRecord(
                    {name: torch.from_numpy(each.astype(np.float32)) for name, each in local.items()}
                ),
                "metrics": MetricRecord({"num-examples": len(parts[place])}),
            }
        )
        return Message(content=content, reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        width = data["x_train"].shape[1]
        start = ArrayRecord({"weight": torch.zeros(CLASSES, width), "bias": torch.zeros(CLASSES)})
        strategy = FedTrimmedAvg(fraction_evaluate=0.0, beta=BYZANTINE / CLIENTS, min_available_nodes=CLIENTS)
        began = time.perf_counter()
        seen.extend([strategy.start(grid, start, num_rounds=ROUNDS).arrays, time.perf_counter() - began])

    start = time.perf_counter()
    run_simulation(server_app, client_app, CLIENTS, backend_config={"client_resources": {"num_cpus": 1}})
    whole = time.perf_counter() - start
    arrays, rounds = seen
    reached = accuracy(arrays["weight"].numpy(), arrays["bias"].numpy(), data["x_test"], data["y_test"])
    return [("Flower, rounds alone", rounds, reached), ("Flower, with its start", whole, reached)]


PEERS = {"byzfl": byzfl, "flower": flower}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in PEERS:
        parser.add_argument(f"--{name}", help="a Python that has it")
    parser.add_argument("--as", dest="role", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        found = PEERS[arguments.role](dict(np.load(arguments.data)))
        print("RESULT " + json.dumps(found))
        return
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [len(x) // 4])
    scaled = (x / 16).astype(np.float32)
    data = {"x_train": scaled[train], "y_train": y[train], "x_test": scaled[test], "y_test": y[test]}
    results = ours(data)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/data.npz", **data)
        for name in PEERS:
            if python := getattr(arguments, name):
                command = [python, __file__, "--as", name, "--data", f"{folder}/data.npz"]
                environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=TIME_LIMIT, env=environment, check=False
                )
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if done.returncode or not lines:
                    print(f"{name} failed: {done.stderr[-2000:]}")
                    continue
                results += [tuple(each) for each in json.loads(lines[0].removeprefix("RESULT "))]
            else:
                print(f"{name}: left out, no --{name}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; numpy {np.__version__}\n")
    stacked = results[1][1]
    print(f"{'one training':28}{'seconds':>12}{'times stacked':>16}{'accuracy':>12}")
    for name, seconds, reached in results:
        print(f"{name:28}{seconds:12.4f}{seconds / stacked:16.1f}{reached:12.3f}")


if __name__ == "__main__":
    main()

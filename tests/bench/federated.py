"""Federated trainings per second: the stacked simulator against a plain NumPy loop, one cell at a time.

The cells are those of the reference matrix (digits, softmax head, ten clients, seven rules, ten attacks). Every
round measures both one after the other, so that a neighbour's load meets both; the ratio is the median of the
rounds' ratios. The loop trains a sample of the cells, every n-th; the simulator trains all of them. Beside
elapsed seconds stand seconds of CPU time: an elapsed time well above CPU time / threads means that something else
ran.
"""

import argparse
import importlib.util
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType

import numpy as np
import torch

from privacy_gate.compute.machine.allocator import keep_freed_memory
from privacy_gate.simulation.cells import Draws
from privacy_gate.simulation.partitions import partition
from privacy_gate.simulation.simulator import Study, simulate


def load(name: str) -> ModuleType:
    """A module that the tests share."""
    path = Path(__file__).parents[1] / "simulation" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="(default 3)")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (default 5)")
    parser.add_argument("--sample", type=int, default=20, help="cells the plain loop trains each round (default 20)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="most CPU threads")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    arguments = parser.parse_args()
    matrix, naive = load("matrix"), load("naive")
    train, test = matrix.digits()
    cells = matrix.cells([partition("iid"), matrix.uneven(0.5), matrix.uneven(0.1)], range(arguments.seeds))
    print(f"{platform.processor() or platform.machine()}; torch {torch.__version__}; numpy {np.__version__}")
    print(f"{len(cells)} cells of {matrix.TRAINING}\n")
    rounds = []
    for turn in range(arguments.rounds):
        sample = cells[turn :: -(-len(cells) // arguments.sample)]
        draws, found = Draws("bench"), {}

        def plain() -> None:
            for cell in sample:  # noqa: B023 - called in this turn
                naive.train(cell, train, test, draws)  # noqa: B023

        found["plain NumPy"] = spent(plain, len(sample), arguments.device)
        for threads in sorted({1, arguments.threads}):
            study = Study(train, test, "bench", device=arguments.device, threads=threads)
            found[f"stacked, {threads} thread(s)"] = spent(
                partial(simulate, study, cells), len(cells), arguments.device
            )
        rounds.append(found)
    print(f"{'per training':24}{'ms':>10}{'CPU ms':>10}{'trainings/s':>14}{'times plain':>14}{'of its CPU':>12}")
    for name in rounds[0]:
        elapsed, cpu = (median(found[name][index] for found in rounds) for index in (0, 1))
        ratio, of_cpu = (
            median(found["plain NumPy"][index] / found[name][index] for found in rounds) for index in (0, 1)
        )
        print(f"{name:24}{elapsed * 1e3:10.1f}{cpu * 1e3:10.1f}{1 / elapsed:14.1f}{ratio:14.1f}{of_cpu:12.1f}")


def spent(work: Callable[[], object], trainings: int, device: str) -> tuple[float, float]:
    """Elapsed seconds and seconds of CPU time, each per training."""
    elapsed, cpu = time.perf_counter(), time.process_time()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - elapsed) / trainings, (time.process_time() - cpu) / trainings


if __name__ == "__main__":
    keep_freed_memory()  # as the gate does, for all contenders alike
    main()

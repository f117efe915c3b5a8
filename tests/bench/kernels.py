"""Each kernel of privacy_gate.native against its twin: the same public function with and without machine code.

    python tests/bench/kernels.py [--rounds 41]

One thread each, sizes of the reference federation (441 cells, ten clients, 650 coordinates) and of heads on 512
features. Every round measures both, one after the other, so that a neighbour's load meets both; the gain is the ratio
of the medians. Compiling is not counted. The last rows are whole jobs. Takes about two minutes; prints a table.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numba
import numpy as np
import torch
from federated import load

from privacy_gate.compute.machine.allocator import keep_freed_memory
from privacy_gate.compute.training import products, stack
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.simulation import local, scores
from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.partitions import partition
from privacy_gate.simulation.rules import geometry, robust
from privacy_gate.simulation.rules.aggregators import rule
from privacy_gate.simulation.rules.clipping import centered_clipping
from privacy_gate.simulation.rules.preaggregation import nearest_neighbour_mixing
from privacy_gate.simulation.rules.robust import krum, multi_krum, weiszfeld
from privacy_gate.simulation.simulator import Study, simulate

FEATURES, MODELS = 512, 16
"""Of a table of rows, and heads that are trained on it."""

CELLS, GROUPS, CLIENTS, CLASSES, WIDTH, BATCH = 63, 7, 10, 10, 65, 32
"""Cells of each of so many federations, clients of each, and their heads and batches."""

FEWEST, LONGEST = 5, 10.0
"""Rounds of each work, even where they take longer than so many seconds."""

SWITCHES = (geometry, local, products, stack)
"""Modules that ask whether Numba is installed."""


@contextmanager
def without_numba() -> Iterator[None]:
    """As if Numba were not installed."""
    known = [module.has_numba for module in SWITCHES]
    for module in SWITCHES:
        module.has_numba = lambda: False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, function in zip(SWITCHES, known, strict=True):
            module.has_numba = function  # type: ignore[attr-defined]


@contextmanager
def without_ordered() -> Iterator[None]:
    """With machine code for everything but the order statistics."""

    def plain(updates: torch.Tensor, ranks: range | None = None) -> list[torch.Tensor]:
        wanted = ranks or range(updates.shape[-2])
        return geometry.exchanged(updates, geometry.exchanges(updates.shape[-2], wanted), wanted)

    known = robust.ordered
    robust.ordered = plain
    try:
        yield
    finally:
        robust.ordered = known


@dataclass(frozen=True)
class Work:
    """One function of a kernel's module, as its callers call it. calls: how often in one measurement.

    without: takes the machine code away, all of it unless another one is named.
    """

    kernel: str
    what: str
    call: Callable[[], object]
    calls: int = 1
    without: Callable[[], AbstractContextManager[None]] = without_numba

    def plain(self) -> float:
        """`seconds` without machine code."""
        with self.without():
            return self.seconds()

    def seconds(self) -> float:
        """CPU time of one call: with one thread the elapsed time, less what other processes took."""
        before = time.process_time()
        for _ in range(self.calls):
            self.call()
        return (time.process_time() - before) / self.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--only", default="", help="measure kernels whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}; torch {torch.__version__}, Numba {numba.__version__}, one thread\n")
    print("| kernel | work | torch, ms | machine code, ms | gain | rounds |\n|---|---|---|---|---|---|")
    for work in [*federated(), *heads(), *jobs()]:
        if arguments.only not in work.kernel:
            continue
        work.call()  # compiles
        work.plain()
        rounds, before = [(work.plain(), work.seconds())], time.perf_counter()
        while len(rounds) < arguments.rounds and (len(rounds) < FEWEST or time.perf_counter() - before < LONGEST):
            rounds.append((work.plain(), work.seconds()))
        twin, ours = (median(side) for side in zip(*rounds, strict=True))
        ratios = sorted(slow / fast for slow, fast in rounds)
        print(
            f"| `{work.kernel}` | {work.what} | {twin * 1e3:.2f} | {ours * 1e3:.2f} | {twin / ours:.1f} "
            f"| {ratios[0]:.1f} to {ratios[-1]:.1f} |",
            flush=True,
        )


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def federated() -> list[Work]:
    """What a round of a federation calls."""
    draw = torch.Generator().manual_seed(0)
    table = torch.rand(1200, WIDTH, generator=draw)
    start = torch.randn(CELLS, GROUPS, CLASSES, WIDTH, generator=draw) * 0.1
    shape = GROUPS, CLIENTS, 1, BATCH
    rows, label = (torch.randint(0, top, shape, generator=draw) for top in (len(table), CLASSES))
    batches = local.Batches(rows, label, torch.full(shape, 1 / BATCH))
    updates = torch.randn(CELLS, GROUPS, CLIENTS, CLASSES * WIDTH, generator=draw)
    point = updates.mean(-2)
    logits = torch.randn(449, CLASSES, CELLS * GROUPS, generator=draw)
    truth = torch.randint(0, CLASSES, (449,), generator=draw)
    step = partial(local.local_updates, table, start, batches, Training(lr=0.1), losses=False)
    return [
        Work("client_steps.local_updates", "one step", step),
        Work("geometry.ordered", "all of 10", partial(geometry.ordered, updates)),
        Work("geometry.mean_of_ranks", "the middle 6 of 10", partial(geometry.mean_of_ranks, updates, range(2, 8))),
        Work("geometry.inner_products", "of 10", partial(geometry.inner_products, updates), 5),
        Work("geometry.squared_distances", "of 10", partial(geometry.squared_distances, updates), 5),
        Work("geometry.norms", "of 10", partial(geometry.norms, updates), 5),
        Work("geometry.moments", "over 10", partial(geometry.moments, updates), 5),
        Work("geometry.right", "449 rows", partial(scores.right, logits, truth)),
        Work("rules.krum_mean", "Krum", partial(krum, updates, 2)),
        Work("rules.krum_mean", "multi-Krum", partial(multi_krum, updates, 2)),
        Work("rules.mixed", "nearest neighbours", partial(nearest_neighbour_mixing, updates, 2)),
        Work("rules.weiszfeld", "5 steps", partial(weiszfeld, updates, point, 0.1, 5)),
        Work("rules.clipped_from", "1 step", partial(centered_clipping, updates, 2)),
    ]


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and labels that heads are trained on."""
    rng = np.random.default_rng(0)
    x = stack.padded(torch.from_numpy(rng.normal(size=(1000, FEATURES))), torch.device("cpu"), torch.float32)
    return x, torch.from_numpy(rng.integers(0, CLASSES, len(x)))


def heads() -> list[Work]:
    """What a step of stacked heads calls."""
    rng = np.random.default_rng(1)
    x, _ = scene()
    rows = torch.from_numpy(rng.integers(0, len(x), (MODELS, 64)))
    parameters = torch.from_numpy(rng.normal(size=(MODELS, CLASSES, x.shape[1])).astype(np.float32))
    both, slope = {True: products.Compiled(x), False: products.Gathered(x)}, torch.empty_like(parameters)

    def logits() -> None:
        both[products.has_numba()].logits(parameters, rows)

    def gradient() -> None:
        way = both[products.has_numba()]
        way.gradient(way.logits(parameters, rows), rows, slope)

    return [
        Work("products.logits", f"{MODELS} heads", logits, 5),
        Work("products.gradient", f"{MODELS} heads, with logits", gradient, 5),
    ]


def jobs() -> list[Work]:
    """Whole jobs: heads by Adam and by DP-SGD, and a part of the reference matrix of federations."""
    rng = np.random.default_rng(2)
    x, y = scene()
    block = [(index, np.sort(rng.choice(len(x), 500, replace=False))) for index in range(MODELS)]
    recipe = {"backbone": {"name": "identity"}, "classes": CLASSES, "batch_size": 64, "epochs": 3}
    plain = recipe | {"optimizer": {"name": "adam", "lr": 0.01}}
    private = recipe | {"optimizer": {"name": "sgd", "lr": 0.1}, "privacy": {"noise_multiplier": 1.1, "clip": 1.0}}
    adam, dp = (Recipe.model_validate_json(json.dumps(each)) for each in (plain, private))

    def train(recipe: Recipe) -> torch.Tensor:
        return stack.train_block(x, y, FEATURES, recipe, block, lambda _: None)

    matrix = load("matrix")
    training = replace(matrix.TRAINING, rounds=10)
    cells = matrix.cells([partition("iid")], [0], training=training)
    others = [replace(cell, rule=rule("meamed"), seed=place // 21) for place, cell in enumerate(cells)]
    study = Study(*matrix.digits(), "bench", device="cpu", threads=1)
    meamed = partial(simulate, study, others)
    return [
        Work("head_epochs.train_epoch", f"whole job: {MODELS} heads by Adam", partial(train, adam)),
        Work("products", f"whole job: {MODELS} heads by DP-SGD", partial(train, dp)),
        Work("geometry.ordered", f"whole job: {len(others)} trainings by meamed", meamed, 1, without_ordered),
        Work("all of federations", f"whole job: {len(cells)} trainings, 10 rounds", partial(simulate, study, cells)),
    ]


if __name__ == "__main__":
    keep_freed_memory()  # as the gate does, for both alike
    main()

"""Two shards, and two Ray workers, against one process: elapsed seconds of the same references.

Everybody trains with one thread, so that two may use two cores. Shards are processes that have imported everything
and wait for each other before they start; what is timed is the work, from there to the last result in the store.
Ray's time holds the tasks' way to the workers, whose start and imports are paid by a first task of each. Rounds
measure all three one after the other; the ratio is the median of the rounds' ratios. Every store must hold equal bytes.
Run it where nothing else runs.
    python tests/bench/shards.py --references 128
"""

import argparse
import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from privacy_gate.audit import Shard
from privacy_gate.candidate import Adam, Backbone, Recipe
from privacy_gate.compute.cluster import Cluster, connected, run_on_cluster
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.numerics import numerics
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.dataset import Columns, DataManifest, describe_table, read_data
from privacy_gate.job import Job, train_reference
from privacy_gate.store import Store

MACHINE = Machine(device="cpu", threads=1)
CLASSES, FEATURES, ROWS = 10, 512, 4000
RECIPE = Recipe(
    backbone=Backbone(name="identity"),
    classes=CLASSES,
    optimizer=Adam(name="adam", lr=1e-3),
    epochs=30,
    batch_size=64,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=128, help="(default 128)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; {arguments.references} references on {ROWS // 2} x {FEATURES} features, {CLASSES} classes")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        manifest = table(folder)
        jobs: list[Job] = [
            train_reference(RECIPE, read_data(manifest, CLASSES).digest, index) for index in range(arguments.references)
        ]
        rounds = [measure(jobs, manifest, folder / str(number)) for number in range(arguments.rounds)]
    for name in rounds[0]:
        seconds = median(found[name] for found in rounds)
        ratio = median(found["one process"] / found[name] for found in rounds)
        print(f"{name:20}{seconds:8.2f} s   {ratio:.2f} x one process, load {os.getloadavg()[0]:.1f}")


def table(folder: Path) -> DataManifest:
    rng = np.random.default_rng(0)
    columns = {
        "id": [f"p{row}" for row in range(ROWS)],
        "label": rng.integers(0, CLASSES, ROWS),
        "split": ["member", "holdout"] * (ROWS // 2),
        "embedding": list(rng.standard_normal((ROWS, FEATURES), dtype=np.float32)),
    }
    parquet.write_table(pa.table(columns), folder / "t.parquet")
    return describe_table(str(folder / "t.parquet"), Columns(embedding="embedding"))


def measure(jobs: Sequence[Job], manifest: DataManifest, folder: Path) -> dict[str, float]:
    found = {
        "one process": shards(jobs, manifest, folder / "one", 1),
        "two shards": shards(jobs, manifest, folder / "two", 2),
    }
    if importlib.util.find_spec("ray"):
        found["two Ray workers"] = on_ray(jobs, manifest, folder / "ray")
    stores = [stored(folder / name) for name in ("one", "two", "ray") if (folder / name).exists()]
    if any(other != stores[0] for other in stores):
        raise SystemExit("the stores differ")
    return found


def shards(jobs: Sequence[Job], manifest: DataManifest, store: Path, count: int) -> float:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    children = [
        context.Process(target=shard, args=(Shard(index, count).take(jobs), manifest, str(store), barrier))
        for index in range(1, count + 1)
    ]
    for child in children:
        child.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - started
    for child in children:
        child.join()
        if child.exitcode:
            raise SystemExit(f"a shard ended with {child.exitcode}")
    return seconds


def shard(jobs: Sequence[Job], manifest: DataManifest, store: str, barrier: Any) -> None:
    torch.set_num_threads(1)
    data = read_data(manifest, CLASSES)
    run(warming(), Inputs(data, Path()), MACHINE, Store(f"{store}-first"))
    barrier.wait()
    run(jobs, Inputs(data, Path()), MACHINE, Store(store, numerics(MACHINE)))
    barrier.wait()


def on_ray(jobs: Sequence[Job], manifest: DataManifest, store: Path) -> float:
    with connected(Cluster(), cpus=2):
        run_on_cluster(warming(), manifest, CLASSES, Path(), MACHINE, Store(f"{store}-first"), Cluster())
        started = time.perf_counter()
        run_on_cluster(jobs, manifest, CLASSES, Path(), MACHINE, Store(str(store)), Cluster())
        return time.perf_counter() - started


def warming() -> list[Job]:
    """Two references in each of four blocks, reference 0 among them, which imports more than others do."""
    return [train_reference(RECIPE, "0" * 64, 16 * block + place) for block in range(4) for place in range(2)]


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


if __name__ == "__main__":
    main()

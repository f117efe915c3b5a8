"""Two shards and two Ray workers against one process, and against one worker: elapsed seconds of the same jobs.

Everybody trains with one thread, so that two may use two cores. Shards are processes that have imported everything
and wait for each other before they start; what is timed is the work, from there to the last result in the store.
Ray's time holds the tasks' way to the workers, whose start and imports are paid by a first task of each, and their
reading of the table. One process of one thread uses more than a core: another thread judges and stores the heads that
are trained. Rounds measure all one after the other; the ratio is the median of the rounds' ratios. Every store must
hold equal bytes. Run it where nothing else runs; beside elapsed seconds stand those of CPU time that the busiest
process took, which a neighbour disturbs less. With --images, references need features of a network, which shards share.
    python tests/bench/shards.py --references 128
    python tests/bench/shards.py --references 16 --images 1024
"""

import argparse
import hashlib
import importlib.util
import io
import math
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
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from privacy_gate.auditing.audit import Shard
from privacy_gate.compute.cluster import Cluster, connected, run_on_cluster
from privacy_gate.compute.images import backbone
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.numerics import numerics
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import Columns, DataManifest, describe_table, read_data
from privacy_gate.dossier.optimizers import Adam
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Job, embed_jobs, train_reference
from privacy_gate.store import Store

MACHINE = Machine(device="cpu", threads=1)
CLASSES, FEATURES, ROWS = 10, 512, 4000
NETWORK, SIZE = "tf_efficientnet_lite0", 128
RECIPE = Recipe(
    backbone=Backbone(name="identity"),
    classes=CLASSES,
    optimizer=Adam(name="adam", lr=1e-3),
    epochs=30,
    batch_size=64,
)


WARM = 32
"""Rows of a table that is read, and trained on, before anything is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=128, help="(default 128)")
    parser.add_argument("--images", type=int, default=0, help="rows of images; 0: 4,000 rows of embeddings (default 0)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    arguments = parser.parse_args()
    rows = arguments.images or ROWS
    cores = len(os.sched_getaffinity(0))
    what = f"{SIZE} px, {NETWORK}" if arguments.images else f"{FEATURES} features"
    print(f"{cores} cores; {arguments.references} references, {rows} rows of {what}, {CLASSES} classes")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        recipe = of_images(folder) if arguments.images else RECIPE
        tables = [table(folder / f"{count}.parquet", count, images=bool(arguments.images)) for count in (WARM, rows)]
        first, jobs = (
            planned(recipe, manifest, count) for manifest, count in zip(tables, (33, arguments.references), strict=True)
        )
        rounds = [measure(first, jobs, tables, folder / str(number)) for number in range(arguments.rounds)]
    for name in rounds[0]:
        for what, place in (("elapsed", 0), ("CPU, busiest", 1)):
            seconds = median(found[name][place] for found in rounds)
            ratios = sorted(found["one process"][place] / found[name][place] for found in rounds)
            spread = f"rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(f"{name:20}{what:14}{seconds:8.2f} s   {median(ratios):.2f} x one process ({spread})")
    if "one Ray worker" in rounds[0]:
        ratios = sorted(found["one Ray worker"][0] / found["two Ray workers"][0] for found in rounds)
        print(f"two Ray workers: {median(ratios):.2f} x one Ray worker (rounds: {ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"load {os.getloadavg()[0]:.1f}")


def table(path: Path, rows: int, *, images: bool) -> DataManifest:
    """A table of noise."""
    rng = np.random.default_rng(0)
    columns = {
        "id": [f"p{row}" for row in range(rows)],
        "label": rng.integers(0, CLASSES, rows),
        "split": ["member", "holdout"] * (rows // 2),
    }
    if images:
        columns["image"] = [jpeg(rng) for _ in range(rows)]
    else:
        columns["embedding"] = list(rng.standard_normal((rows, FEATURES), dtype=np.float32))
    parquet.write_table(pa.table(columns), path)
    return describe_table(str(path), Columns(image="image") if images else Columns(embedding="embedding"))


def jpeg(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def of_images(folder: Path) -> Recipe:
    """Heads on a network whose weights nobody trained: they are as fast as any."""
    torch.manual_seed(0)
    model: Any = backbone.timm.create_model(NETWORK, num_classes=0)
    path = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    public = PublicWeights(uri=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    shape = Input(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    return RECIPE.model_copy(update={"backbone": Backbone(name=NETWORK, weights=public), "input": shape})


def planned(recipe: Recipe, manifest: DataManifest, references: int) -> list[Job]:
    """The jobs as an audit plans them."""
    data = read_data(manifest, CLASSES)
    features = embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows)
    return [*features, *(train_reference(recipe, data.digest, index) for index in range(references))]


def measure(
    first: Sequence[Job], jobs: Sequence[Job], tables: Sequence[DataManifest], folder: Path
) -> dict[str, tuple[float, float]]:
    """Seconds elapsed, and of CPU time that the busiest process took, by name."""
    found = {
        "one process": shards(first, jobs, tables, folder / "one", 1),
        "two shards": shards(first, jobs, tables, folder / "two", 2),
    }
    if importlib.util.find_spec("ray"):
        found["one Ray worker"] = on_ray(first, jobs, tables, folder / "worker", 1)
        found["two Ray workers"] = on_ray(first, jobs, tables, folder / "ray", 2)
    stores = [stored(folder / name) for name in ("one", "two", "worker", "ray") if (folder / name).exists()]
    if any(other != stores[0] for other in stores):
        raise SystemExit("the stores differ")
    return found


def shards(
    first: Sequence[Job], jobs: Sequence[Job], tables: Sequence[DataManifest], store: Path, count: int
) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    barrier, spent = context.Barrier(count + 1), context.Array("d", count)
    parts = [Shard(index, count).take(jobs) for index in range(1, count + 1)]
    children = [
        context.Process(target=shard, args=(first, part, tables, str(store), barrier, spent, place))
        for place, part in enumerate(parts)
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
    return seconds, max(spent)


def shard(
    first: Sequence[Job],
    jobs: Sequence[Job],
    tables: Sequence[DataManifest],
    store: str,
    barrier: Any,
    spent: Any,
    place: int,
) -> None:
    torch.set_num_threads(1)
    warm, data = (read_data(manifest, CLASSES) for manifest in tables)
    run(first, Inputs(warm, Path()), MACHINE, Store(f"{store}-first-{os.getpid()}"))
    barrier.wait()
    before = time.process_time()
    run(jobs, Inputs(data, Path()), MACHINE, Store(store, numerics(MACHINE)))
    spent[place] = time.process_time() - before
    barrier.wait()


def on_ray(
    first: Sequence[Job], jobs: Sequence[Job], tables: Sequence[DataManifest], store: Path, workers: int
) -> tuple[float, float]:
    warm, manifest = tables
    with connected(Cluster(), cpus=workers):
        run_on_cluster(first, warm, CLASSES, Path(), MACHINE, Store(f"{store}-first"), Cluster())
        started = time.perf_counter()
        run_on_cluster(jobs, manifest, CLASSES, Path(), MACHINE, Store(str(store)), Cluster())
        return time.perf_counter() - started, math.nan  # workers' CPU time is not known here


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


if __name__ == "__main__":
    main()

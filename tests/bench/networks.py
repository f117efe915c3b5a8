"""References whose network is trained, against a plain PyTorch loop that trains one after the other, on this machine.

    python tests/bench/networks.py [--device cpu] [--references 8] [--rows 128] [--epochs 1] [--rounds 5] [--only full]

FiLM and LoRA on a small ViT, all of a small CNN and of a larger one. The plain loop is torch.optim on the same batches,
on one thread and with all threads inside the kernels; the better of the two is the yardstick. Every round measures all
ways one after the other, so that a neighbour's load meets all of them; the table gives medians over rounds, and the
ratio is the median of the rounds' ratios. Beside elapsed seconds stand seconds of CPU time, both for a reference.
Run it where nothing else runs.
"""

import argparse
import hashlib
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from privacy_gate.compute.images.backbone import timm
from privacy_gate.compute.machine.allocator import keep_freed_memory
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.networks import Images, train_networks
from privacy_gate.compute.training.parts import network, start, trained
from privacy_gate.documents import parse
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import Subset, included, shown

CLASSES = 10
WORKS = [
    ("film", "vit_tiny_patch16_224", 224),
    ("lora", "vit_tiny_patch16_224", 224),
    ("full", "test_efficientnet", 64),
    ("full", "resnetv2_18", 64),
]
DEFAULT = "the gate's choice"


@dataclass(frozen=True)
class Work:
    """What is trained."""

    recipe: Recipe
    images: Images
    label: NDArray[np.int64]
    subsets: list[Subset]
    alone: int
    device: str


@dataclass(frozen=True)
class Spent:
    """Seconds per reference, elapsed and of CPU time over all threads; and most bytes on the GPU at once."""

    elapsed: float
    cpu: float
    bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    for name, default, text in (
        ("references", 8, "trained by the gate, each round and way"),
        ("alone", 2, "trained by the plain loop, likewise"),
        ("rows", 128, "of the pool; each reference is trained on half of them"),
        ("epochs", 1, ""),
        ("rounds", 5, "how often everything is measured"),
        ("threads", torch.get_num_threads(), "of the CPU"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    parser.add_argument("--only", choices=sorted({work[0] for work in WORKS}), help="this adaptation (default all)")
    arguments = parser.parse_args()
    print(described(arguments))
    with tempfile.TemporaryDirectory() as folder:
        for kind, backbone, size in WORKS:
            if arguments.only not in {None, kind}:
                continue
            work = prepared(kind, backbone, size, arguments, Path(folder))
            contenders = dict(ways(work, arguments.threads))
            for train in contenders.values():
                train()  # first calls import, allocate and choose kernels
            rounds = [
                {name: spent(train, work.device) for name, train in contenders.items()} for _ in range(arguments.rounds)
            ]
            report(f"{kind}, {backbone} at {size} px", rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory {peak:,.0f} MiB, all ways, torch and the images included")


def described(arguments: argparse.Namespace) -> str:
    """The machine and what was asked for."""
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f"{names[0]}, {len(names)} cores" if names else model
    gpu = f"; {torch.cuda.get_device_name(arguments.device)}" if arguments.device.startswith("cuda") else ""
    shape = " ".join(f"{name}={value}" for name, value in vars(arguments).items())
    return f"{model}{gpu}; torch {torch.__version__}\n{shape}\n"


def prepared(kind: str, backbone: str, size: int, arguments: argparse.Namespace, folder: Path) -> Work:
    """The recipe, on public weights that nobody trained: they are as fast as any; and images of noise."""
    torch.manual_seed(0)
    model: Any = timm.create_model(backbone, num_classes=1)
    path = folder / f"{backbone}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    fields = {
        "backbone": {
            "name": backbone,
            "weights": {"uri": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        },
        "input": {"size": size, "mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": CLASSES,
        "adaptation": kind,
        "optimizer": {"name": "sgd", "lr": 0.01},
        "epochs": arguments.epochs,
        "batch_size": 32,
    }
    lora = {"lora": {"rank": 4, "alpha": 8.0, "targets": ["attention", "mlp"]}} if kind == "lora" else {}
    recipe, rng, rows = parse(fields | lora, Recipe, "recipe"), np.random.default_rng(0), arguments.rows
    pixels = torch.from_numpy(rng.normal(size=(rows, 3, size, size)).astype(np.float32)).to(arguments.device)
    pool = np.ones(rows, dtype=bool)
    subsets = [(index, np.flatnonzero(included(index, pool, rows // 2))) for index in range(arguments.references)]
    label = rng.integers(0, CLASSES, rows)
    return Work(recipe, Images(pixels, recipe.views), label, subsets, arguments.alone, arguments.device)


def ways(work: Work, threads: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """How references can be trained on this device; each says how many it trained."""
    for count in sorted({1, threads}):
        yield f"plain loop, {count} thread(s)", lambda count=count: plain(work, count)  # type: ignore[misc]
    stacked = Machine(device=work.device, block=len(work.subsets), threads=1)
    yield "all in one stack", lambda: gate(work, stacked)
    yield DEFAULT, lambda: gate(work, Machine(device=work.device, threads=threads))


def gate(work: Work, machine: Machine) -> int:
    found = train_networks(work.images, work.label, work.recipe, work.subsets, machine, lambda one: one.index)
    return len(list(found))


def plain(work: Work, threads: int) -> int:
    """As anybody writes it: one network after the other, torch.optim, autograd."""
    recipe, device, before = work.recipe, torch.device(work.device), torch.get_num_threads()
    label = torch.from_numpy(work.label).to(device)
    torch.set_num_threads(threads)
    try:
        for index, rows in work.subsets[: work.alone]:
            model = network(recipe)
            model.load_state_dict({**model.state_dict(), **start(model, recipe, index)})
            model.to(device)
            names = set(trained(model, recipe))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in names)
            chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.SGD(chosen, lr=recipe.optimizer.lr)
            for epoch in range(recipe.epochs):
                order = torch.from_numpy(shown(index, epoch, rows, 1, len(label))).to(device)
                for batch in order.split(recipe.batch_size):
                    optimizer.zero_grad()
                    cross_entropy(model(work.images.pixels[batch]), label[batch]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
    finally:
        torch.set_num_threads(before)
    return len(work.subsets[: work.alone])


def spent(train: Callable[[], int], device: str) -> Spent:
    gpu = device.startswith("cuda")
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elapsed, cpu = time.perf_counter(), time.process_time()
    count = train()
    if gpu:
        torch.cuda.synchronize()
    elapsed, cpu = time.perf_counter() - elapsed, time.process_time() - cpu
    return Spent(elapsed / count, cpu / count, torch.cuda.max_memory_allocated() if gpu else 0)


def report(title: str, rounds: list[dict[str, Spent]]) -> None:
    print(f"{title:44}{'s':>10}{'CPU s':>10}")
    for name in rounds[0]:
        elapsed, cpu = (median(getattr(found[name], field) for found in rounds) for field in ("elapsed", "cpu"))
        most = max(found[name].bytes for found in rounds)
        print(f"  {name:42}{elapsed:10.3f}{cpu:10.3f}" + (f"{most / 2**20:10,.0f} MiB" if most else ""))
    for what in ("elapsed", "cpu"):  # the second is what a neighbour's load disturbs less
        ratios = sorted(
            min(getattr(one, what) for name, one in found.items() if name.startswith("plain"))
            / getattr(found[DEFAULT], what)
            for found in rounds
        )
        spread = f"rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"  {DEFAULT}, by {what} time, is {median(ratios):.2f} times as fast as the better plain loop ({spread})")
    print()


if __name__ == "__main__":
    keep_freed_memory()  # as the gate does, for all contenders alike
    main()

"""References trained by DP-SGD, against Opacus with the same model, batches of the same law, and one thread each.

    python tests/bench/private.py [--rounds 5] [--device cpu]

Heads: 1,280 examples x 1,280 features, 10 classes, batch 64, 3 epochs; all 64 stacked, Opacus one (each is alike).
Networks: all of a small ViT on 64 images of 160 pixels, batch 16, 1 epoch; 2 references, Opacus one. Every round
measures both one after the other; the ratio is the median of the rounds' ratios.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import opacus
import torch
from opacus.optimizers import DPOptimizer
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from privacy_gate.compute.images.backbone import timm
from privacy_gate.compute.machine.allocator import keep_freed_memory
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import train_heads
from privacy_gate.compute.training.networks import Images, train_networks
from privacy_gate.compute.training.private import steps_of
from privacy_gate.documents import parse
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import Subset, included

PRIVACY = {"noise_multiplier": 1.1, "clip": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    machine = Machine(device=arguments.device, threads=1)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Opacus {opacus.__version__}, {arguments.device}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        for name, ours, theirs in (("heads", *heads(machine)), ("networks", *networks(machine, Path(folder)))):
            found = [(seconds(theirs), seconds(ours)) for _ in range(arguments.rounds)]
            ratio = median(peer / own for peer, own in found)
            own, peer = median(own for _, own in found), median(peer for peer, _ in found)
            print(f"{name}: ours {own:.3f} s a reference, Opacus {peer:.3f} s; ratio {ratio:.2f}")


def seconds(work: Callable[[], int]) -> float:
    """Elapsed for each reference; `work` says how many it trained."""
    before = time.perf_counter()
    trained = work()
    return (time.perf_counter() - before) / trained


def halves(count: int, rows: int) -> list[Subset]:
    pool = np.ones(2 * rows, dtype=bool)
    return [(index, np.flatnonzero(included(index, pool, rows))) for index in range(count)]


def heads(machine: Machine) -> tuple[Callable[[], int], Callable[[], int]]:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2560, 1280), dtype=np.float32), rng.integers(0, 10, 2560)
    how: dict[str, Any] = {"backbone": {"name": "identity"}, "optimizer": {"name": "sgd", "lr": 0.1}}
    recipe = parse(how | {"classes": 10, "epochs": 3, "batch_size": 64, "privacy": PRIVACY}, Recipe, "recipe")
    subsets = halves(64, 1280)

    def ours() -> int:
        return len(list(train_heads(x, y, recipe, subsets, machine)))

    def theirs() -> int:
        return by_opacus(torch.nn.Linear(1280, 10), torch.from_numpy(x), torch.from_numpy(y), recipe, subsets[0][1])

    return ours, theirs


def networks(machine: Machine, folder: Path) -> tuple[Callable[[], int], Callable[[], int]]:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=10)
    save_file(dict(model.state_dict()), folder / "weights.safetensors")
    sha256 = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    how: dict[str, Any] = {
        "backbone": {"name": "test_vit", "weights": {"uri": str(folder / "weights.safetensors"), "sha256": sha256}},
        "input": {"size": 160, "mean": [0.5] * 3, "std": [0.5] * 3},
        "adaptation": "full",
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
    recipe = parse(how | {"classes": 10, "epochs": 1, "batch_size": 16, "privacy": PRIVACY}, Recipe, "recipe")
    pixels = torch.randn(128, 3, 160, 160)
    label = np.random.default_rng(0).integers(0, 10, 128)
    images, subsets = Images(pixels, recipe.views), halves(2, 64)

    def ours() -> int:
        return len(list(train_networks(images, label, recipe, subsets, machine, lambda found: found.index)))

    def theirs() -> int:
        fresh = timm.create_model("test_vit", num_classes=10)
        return by_opacus(fresh, pixels, torch.from_numpy(label), recipe, subsets[0][1])

    return ours, theirs


def by_opacus(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, recipe: Recipe, rows: np.ndarray) -> int:
    watched = opacus.GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=recipe.optimizer.lr),
        noise_multiplier=PRIVACY["noise_multiplier"],
        max_grad_norm=PRIVACY["clip"],
        expected_batch_size=recipe.batch_size,
    )
    rng = np.random.default_rng(0)
    for _ in range(recipe.epochs * steps_of(len(rows), recipe.batch_size)):
        chosen = torch.from_numpy(rows[rng.random(len(rows)) < recipe.batch_size / len(rows)])
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(watched(x[chosen]), y[chosen]))
        optimizer.step()
    return 1


if __name__ == "__main__":
    keep_freed_memory()  # as the gate does, for all contenders alike
    main()

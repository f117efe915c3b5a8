"""References whose network is trained: stacked, in threads and one after the other, with the same code path.

    python tests/bench/networks.py [--device cpu] [--references 16] [--rows 64] [--epochs 1]

Prints, for FiLM and LoRA on a small ViT and full training of a small CNN, references per second of each way and the
ratio to one after the other. On a CPU the product's own choice is threads that train a reference each.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from privacy_gate.candidate import Recipe
from privacy_gate.compute.backbone import timm
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.networks import Images, train_networks
from privacy_gate.compute.subsets import Subset, included
from privacy_gate.documents import parse

CLASSES = 10


def recipe(kind: str, backbone: str, size: int, epochs: int, folder: Path) -> Recipe:
    """The recipe, on public weights that nobody trained: they are as fast as any."""
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
        "epochs": epochs,
        "batch_size": 32,
    }
    lora = {"lora": {"rank": 4, "alpha": 8.0, "targets": ["attention", "mlp"]}} if kind == "lora" else {}
    return parse(fields | lora, Recipe, "recipe")


def ways(device: str, references: int) -> Iterator[tuple[str, Machine]]:
    """How references can be trained on this device."""
    yield "one after the other", Machine(device=device, block=1, threads=1)
    yield "stacked, one thread", Machine(device=device, block=references, threads=1)
    if device == "cpu":
        yield "threads, one each (default)", Machine(device=device)
    else:
        yield "as many as fit (default)", Machine(device=device)


def spent(how: Recipe, images: Images, label: np.ndarray, subsets: list[Subset], machine: Machine) -> float:  # type: ignore[type-arg]
    begin = time.perf_counter()
    for _ in train_networks(images, label, how, subsets, machine):
        pass
    if machine.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--references", type=int, default=16)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    asked = parser.parse_args()
    works = [
        ("film", "vit_tiny_patch16_224", 224),
        ("lora", "vit_tiny_patch16_224", 224),
        ("full", "test_efficientnet", 64),
    ]
    folder = Path(tempfile.mkdtemp())
    for kind, backbone, size in works:
        how = recipe(kind, backbone, size, asked.epochs, folder)
        rng = np.random.default_rng(0)
        images = Images(torch.from_numpy(rng.normal(size=(asked.rows, 3, size, size)).astype(np.float32)), how.views)
        label = rng.integers(0, CLASSES, asked.rows)
        pool = np.ones(asked.rows, dtype=bool)
        subsets = [(index, np.flatnonzero(included(index, pool, asked.rows // 2))) for index in range(asked.references)]
        plain = None
        for name, machine in ways(asked.device, asked.references):
            seconds = spent(how, images, label, subsets, machine)
            plain = plain or seconds
            rate = f"{asked.references / seconds:7.2f} references/s  {plain / seconds:5.2f} x"
            print(f"{kind:8} {backbone:22} {name:28} {rate}")


if __name__ == "__main__":
    main()

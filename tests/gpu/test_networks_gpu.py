"""Networks trained stacked on a GPU are those of the CPU, up to rounding that is bounded here."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from privacy_gate.compute.images import backbone as subject
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.network_stack import TrainedNetwork
from privacy_gate.compute.training.networks import Images, train_networks
from privacy_gate.documents import parse
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import Subset

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAME, ROWS, CLASSES = "test_efficientnet", 24, 3


CPU = Machine(device="cpu", threads=1)


def make(folder: Path, adaptation: str, **changes: Any) -> Recipe:
    torch.manual_seed(0)
    model: Any = subject.timm.create_model(NAME, num_classes=7).train()
    model(torch.randn(8, 3, 64, 64))
    path = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    plain = {
        "backbone": {
            "name": NAME,
            "weights": {"uri": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        },
        "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": CLASSES,
        "adaptation": adaptation,
        "optimizer": {"name": "sgd", "lr": 0.005},
        "epochs": 2,
        "batch_size": 4,
    }
    return parse(plain | changes, Recipe, "recipe")


def trained(recipe: Recipe, machine: Machine, dtype: torch.dtype) -> dict[int, TrainedNetwork]:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.normal(size=(ROWS, 3, 32, 32)).astype(np.float32))
    label = rng.integers(0, CLASSES, ROWS)
    subsets: list[Subset] = [(index, np.sort(rng.permutation(ROWS)[: ROWS // 2])) for index in range(4)]
    images = Images(pixels, recipe.views)
    return dict(
        train_networks(images, label, recipe, subsets, machine, lambda found: (found.index, found), dtype=dtype)
    )


def furthest(one: dict[int, TrainedNetwork], other: dict[int, TrainedNetwork]) -> float:
    assert sorted(one) == sorted(other) == [0, 1, 2, 3]
    return max(
        (other[index].tensors[name].cpu().double() - tensor.cpu().double()).abs().max().item()
        for index, network in one.items()
        for name, tensor in network.tensors.items()
    )


@pytest.mark.parametrize("adaptation", ["film", "full"])
@pytest.mark.parametrize("block", [None, 1, 4])
def test_a_gpu_trains_what_a_cpu_does(adaptation: str, block: int | None, tmp_path: Path) -> None:
    recipe = make(tmp_path, adaptation)
    expected = trained(recipe, CPU, torch.float64)
    found = trained(recipe, Machine(device="cuda", block=block), torch.float64)
    assert furthest(expected, found) < 1e-6


def test_a_gpu_trains_in_bfloat16_what_a_cpu_does_so(tmp_path: Path) -> None:
    recipe = make(tmp_path, "film", precision="bfloat16")
    found = trained(recipe, Machine(device="cuda"), torch.float32)
    # A tenth of how far training moves them.
    assert furthest(trained(recipe, CPU, torch.float32), found) < 5e-4
    assert furthest(trained(make(tmp_path, "film"), CPU, torch.float32), found) < 5e-4

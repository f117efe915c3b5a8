"""Networks trained stacked on a GPU are those of the CPU, up to rounding that is bounded here."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from privacy_gate.candidate import Recipe
from privacy_gate.compute import backbone as subject
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.networks import Images, train_networks
from privacy_gate.documents import parse

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAME, ROWS, CLASSES = "test_efficientnet", 24, 3


@pytest.mark.parametrize("adaptation", ["film", "full"])
@pytest.mark.parametrize("block", [1, 4])
def test_a_gpu_trains_what_a_cpu_does(adaptation: str, block: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = subject.timm.create_model(NAME, num_classes=7).train()
    model(torch.randn(8, 3, 64, 64))
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    recipe = parse(
        {
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
        },
        Recipe,
        "recipe",
    )
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.normal(size=(ROWS, 3, 32, 32)).astype(np.float32))
    label = rng.integers(0, CLASSES, ROWS)
    subsets = [(index, np.sort(rng.permutation(ROWS)[: ROWS // 2])) for index in range(4)]
    images = Images(pixels, recipe.views)
    expected, found = (
        {one.index: one.tensors for one in train_networks(images, label, recipe, subsets, machine, dtype=torch.float64)}
        for machine in (Machine(device="cpu", threads=1), Machine(device="cuda", block=block))
    )
    for index, tensors in expected.items():
        for name, tensor in tensors.items():
            assert (found[index][name].cpu().double() - tensor.double()).abs().max() < 1e-6

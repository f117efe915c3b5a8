"""Fixtures that the tests of compute share."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from privacy_gate.compute.images import backbone
from privacy_gate.documents import parse
from privacy_gate.dossier.recipe import Recipe


@pytest.fixture(scope="session")
def plain_loop() -> Callable[..., torch.nn.Linear]:
    """The slow reference implementation of stacked training, tests/plain.py."""
    spec = importlib.util.spec_from_file_location("plain", Path(__file__).parents[1] / "plain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loop: Callable[..., torch.nn.Linear] = module.plain_loop
    return loop


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Public weights of small architectures, with batch statistics that differ from the initial ones."""
    torch.manual_seed(0)
    found = {}
    sizes = {"test_efficientnet": 64, "test_vit": 160, "test_convnext": 64, "resnetv2_18": 64}
    for name, size in sizes.items():
        model: Any = backbone.timm.create_model(name, num_classes=7).train()
        model(torch.randn(8, 3, size, size))
        found[name] = tmp_path_factory.mktemp(name) / "weights.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, found[name])
    return found


@pytest.fixture(scope="session")
def make(weights: dict[str, Path]) -> Callable[..., Recipe]:
    """Maps (name, adaptation, **changes) to a recipe that trains this network on images of three classes."""

    def made(name: str, adaptation: str, **changes: Any) -> Recipe:
        sha256 = hashlib.sha256(weights[name].read_bytes()).hexdigest()
        plain = {
            "backbone": {"name": name, "weights": {"uri": str(weights[name]), "sha256": sha256}},
            "input": {"size": 160 if name == "test_vit" else 32, "mean": [0.5] * 3, "std": [0.5] * 3},
            "classes": 3,
            "adaptation": adaptation,
            "optimizer": {"name": "sgd", "lr": 0.005, "momentum": 0.9},
            "epochs": 2,
            "batch_size": 4,
        }
        return parse(plain | changes, Recipe, "recipe")

    return made

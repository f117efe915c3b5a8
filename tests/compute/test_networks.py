"""Networks trained stacked are those that a plain loop of torch trains alone, for every adaptation."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from privacy_gate.candidate import Recipe
from privacy_gate.compute import parts
from privacy_gate.compute.embed import seen
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.network_stack import TrainedNetwork
from privacy_gate.compute.networks import Images, train_networks
from privacy_gate.compute.subsets import Subset, shown
from privacy_gate.documents import parse

CNN, VIT = "test_efficientnet", "test_vit"
ROWS, CLASSES, SIZE = 14, 3, 32
ADAPTATIONS: list[tuple[str, str, dict[str, Any]]] = [
    (CNN, "film", {}),
    (VIT, "film", {}),
    (VIT, "lora", {"lora": {"rank": 2, "alpha": 4, "targets": ["attention", "mlp"]}}),
    (CNN, "full", {}),
    (VIT, "full", {}),
    (CNN, "scratch", {}),
]


def size_of(name: str) -> int:
    return 160 if name == VIT else SIZE


def make(weights: dict[str, Path], name: str, adaptation: str, **changes: Any) -> Recipe:
    return parse(
        {
            "backbone": {
                "name": name,
                "weights": {
                    "uri": str(weights[name]),
                    "sha256": hashlib.sha256(weights[name].read_bytes()).hexdigest(),
                },
            },
            "input": {"size": size_of(name), "mean": [0.5] * 3, "std": [0.5] * 3},
            "classes": CLASSES,
            "adaptation": adaptation,
            "optimizer": {"name": "sgd", "lr": 0.005, "momentum": 0.9},
            "epochs": 2,
            "batch_size": 4,
        }
        | changes,
        Recipe,
        "recipe",
    )


def problem(recipe: Recipe) -> tuple[Images, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    size = size_of(recipe.backbone.name)
    pixels = torch.from_numpy(rng.normal(size=(ROWS, 3, size, size)).astype(np.float32))
    return Images(pixels, recipe.views), rng.integers(0, CLASSES, ROWS)


SUBSETS: list[Subset] = [(0, np.arange(0, 10)), (1, np.arange(4, 14)), (5, np.arange(0, 14, 2))]


def plain(recipe: Recipe, images: Images, label: NDArray[np.int64], subset: Subset) -> torch.nn.Module:
    """The slow twin: one network, torch.optim, autograd, float64."""
    index, rows = subset
    model = parts.network(recipe)
    model.load_state_dict({**model.state_dict(), **parts.start(model, recipe, index)})
    model = model.double()
    names = parts.trained(model, recipe)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = recipe.optimizer.model_dump(exclude={"name"})
    optimizer = torch.optim.SGD(chosen, **settings)
    for epoch in range(recipe.epochs):
        order = shown(index, epoch, rows, len(recipe.views), ROWS)
        for first in range(0, len(order), recipe.batch_size):
            places = order[first : first + recipe.batch_size]
            x = torch.stack(
                [seen(images.pixels[place % ROWS][None], recipe.views[place // ROWS])[0] for place in places.tolist()]
            )
            optimizer.zero_grad()
            loss = cross_entropy(
                model(x.double()), torch.from_numpy(label[places % ROWS]), label_smoothing=recipe.label_smoothing
            )
            torch.autograd.backward(loss)
            optimizer.step()
    return model


def furthest(found: TrainedNetwork, expected: torch.nn.Module) -> float:
    truth = expected.state_dict()
    return max((tensor.double() - truth[name].double()).abs().max().item() for name, tensor in found.tensors.items())


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize(("name", "adaptation", "changes"), ADAPTATIONS, ids=lambda value: str(value)[:20])
def test_stacked_equals_alone(
    weights: dict[str, Path], name: str, adaptation: str, changes: dict[str, Any], block: int
) -> None:
    recipe = make(weights, name, adaptation, **changes)
    images, label = problem(recipe)
    machine = Machine(device="cpu", threads=1, block=block)
    found = {each.index: each for each in train_networks(images, label, recipe, SUBSETS, machine, dtype=torch.float64)}
    assert sorted(found) == [0, 1, 5]
    for subset in SUBSETS[:: 2 if block == 1 else 1]:
        expected = plain(recipe, images, label, subset)
        # BatchNorm over the last two images of an epoch magnifies rounding.
        assert furthest(found[subset[0]], expected) < (1e-6 if parts.trains_everything(recipe) else 1e-8)
    gaps = [(tensor - found[1].tensors[name]).abs().max().item() for name, tensor in found[0].tensors.items()]
    assert max(gaps) > 1e-4  # they are references, not one model three times

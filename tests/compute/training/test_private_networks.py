"""DP-SGD for networks equals Opacus on the same batches, for every adaptation, stacked or alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training import network_stack, parts
from privacy_gate.compute.training.network_stack import TrainedNetwork
from privacy_gate.compute.training.networks import Images, train_networks
from privacy_gate.compute.training.private import steps_of
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import CandidateError
from privacy_gate.jobs.subsets import Subset, gradient_noise, poisson_batch, shown

Make = Callable[..., Recipe]
CNN, VIT = "test_efficientnet", "test_vit"
ROWS, CLASSES = 14, 3
SUBSETS: list[Subset] = [(0, np.arange(0, 10)), (3, np.arange(4, 14))]
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    (CNN, "film", {}),
    (VIT, "lora", {"lora": {"rank": 2, "alpha": 4, "targets": ["attention", "mlp"]}}),
    (VIT, "full", {}),
    (VIT, "film", {"augmentation": {"flip": True}, "label_smoothing": 0.1}),
]


@pytest.fixture
def make(make: Make) -> Make:
    return partial(
        make,
        optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.5},
        privacy={"noise_multiplier": 0.6, "clip": 0.7},
    )


def trained(recipe: Recipe, block: int) -> dict[int, TrainedNetwork]:
    images, label = problem(recipe)
    machine = Machine(device="cpu", threads=1, block=block)
    found = train_networks(images, label, recipe, SUBSETS, machine, itself, dtype=torch.float64)
    return {each.index: each for each in found}


def itself(network: TrainedNetwork) -> TrainedNetwork:
    return network


def problem(recipe: Recipe) -> tuple[Images, np.ndarray]:
    rng = np.random.default_rng(0)
    assert recipe.input is not None
    size = recipe.input.size
    pixels = torch.from_numpy(rng.normal(size=(ROWS, 3, size, size)).astype(np.float32))
    return Images(pixels, recipe.views), rng.integers(0, CLASSES, ROWS)


Sums = Callable[[torch.nn.Module, list[torch.nn.Parameter], torch.Tensor, torch.Tensor, Recipe], None]
"""Sets .grad to the sum of cut gradients over the batch size."""


def one_by_one(
    model: torch.nn.Module, chosen: list[torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor, recipe: Recipe
) -> None:
    assert recipe.privacy is not None
    for parameter in chosen:
        parameter.grad = torch.zeros_like(parameter)
    for image, truth in zip(x, y, strict=True):
        loss = cross_entropy(model(image[None]), truth[None], label_smoothing=recipe.label_smoothing)
        found = torch.autograd.grad(loss, chosen)
        norm = float(torch.stack([part.norm() for part in found]).norm())
        for parameter, part in zip(chosen, found, strict=True):
            assert parameter.grad is not None
            parameter.grad += part * min(1.0, recipe.privacy.clip / norm) / recipe.batch_size


def by_opacus(
    model: torch.nn.Module, chosen: list[torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor, recipe: Recipe
) -> None:
    opacus = pytest.importorskip("opacus")
    assert recipe.privacy is not None
    watched = opacus.GradSampleModule(model)
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(chosen, lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=recipe.privacy.clip,
        expected_batch_size=recipe.batch_size,
    )
    optimizer.zero_grad()
    torch.autograd.backward(cross_entropy(watched(x), y, label_smoothing=recipe.label_smoothing))
    optimizer.pre_step()
    watched.to_standard_module()


def twin(recipe: Recipe, subset: Subset, sums: Sums) -> dict[str, torch.Tensor]:
    """torch.optim's steps on the gate's batches and noise; another implementation clips and sums the gradients."""
    assert recipe.privacy is not None
    (index, rows), (images, label) = subset, problem(recipe)
    model = parts.network(recipe)
    model.load_state_dict({**model.state_dict(), **parts.start(model, recipe, index)})
    model = model.double()
    names = parts.trained(model, recipe)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    chosen = [model.get_parameter(name) for name in names]
    optimizer = torch.optim.SGD(chosen, lr=recipe.optimizer.lr, momentum=0.5)
    scale = recipe.privacy.noise_multiplier * recipe.privacy.clip / recipe.batch_size
    for epoch in range(recipe.epochs):
        order = shown(index, epoch, rows, len(recipe.views), ROWS)
        for step in range(steps_of(len(order), recipe.batch_size)):
            places = order[poisson_batch(index, epoch, step, len(order), recipe.batch_size / len(order))]
            optimizer.zero_grad(set_to_none=False)
            if len(places):
                x = images.take(places, torch.device("cpu"), torch.float64)
                sums(model, chosen, x, torch.from_numpy(label[places % ROWS]), recipe)
            size = sum(parameter.numel() for parameter in chosen)
            noise = torch.from_numpy(gradient_noise(index, epoch, step, (size,))) * scale
            for parameter, part in zip(chosen, noise.split([one.numel() for one in chosen]), strict=True):
                found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = found + part.view_as(parameter)
            optimizer.step()
    return {name: model.get_parameter(name).detach() for name in names}


@pytest.mark.filterwarnings("ignore:Full backward hook", "ignore:There is a performance drop")
@pytest.mark.parametrize(
    ("name", "adaptation", "changes", "sums"),
    [(*kind, one_by_one) for kind in KINDS]
    # Opacus refuses layers with buffers (frozen BatchNorm), nested layers (LoRA), and frozen layers.
    + [(*kind, by_opacus) for kind in KINDS[2:3]],
    ids=lambda value: getattr(value, "__name__", str(value)[:20]),
)
def test_other_implementations_take_the_same_steps(
    make: Make, name: str, adaptation: str, changes: dict[str, Any], sums: Sums
) -> None:
    recipe = make(name, adaptation, **changes)
    found = trained(recipe, 1)
    for subset in SUBSETS:
        expected = twin(recipe, subset, sums)
        assert expected.keys() == found[subset[0]].tensors.keys()
        furthest = max((found[subset[0]].tensors[key] - value).abs().max().item() for key, value in expected.items())
        assert furthest < 1e-6  # Opacus adds 1e-6 to every norm


@pytest.mark.parametrize(("name", "adaptation", "changes"), KINDS[:2], ids=lambda value: str(value)[:20])
def test_neither_block_nor_memory_matters(
    make: Make, name: str, adaptation: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(name, adaptation, **changes)
    alone = trained(recipe, 1)
    monkeypatch.setattr(network_stack, "CLIPPED_BYTES", 1)  # one example at a time
    together = trained(recipe, 2)
    for index, one in alone.items():
        assert max((together[index].tensors[key] - value).abs().max() for key, value in one.tensors.items()) < 1e-9


def test_no_example_moves_a_network_further_than_the_clip_allows(make: Make) -> None:
    quiet = {"privacy": {"noise_multiplier": 0.0, "clip": 1e-3}, "epochs": 1}
    recipe = make(CNN, "film", **quiet, optimizer={"name": "sgd", "lr": 1.0})
    start = parts.start(parts.network(recipe), recipe, 0)
    moved = trained(recipe, 1)[0].tensors
    length = float(torch.cat([(moved[key] - value.double()).flatten() for key, value in start.items()]).norm())
    taken = sum(len(poisson_batch(0, 0, step, 10, 0.4)) for step in range(3))
    assert 0 < length <= taken * 1e-3 / 4 * (1 + 1e-9)


def test_batch_norm_in_training_is_refused(make: Make) -> None:
    with pytest.raises(CandidateError, match=r"BatchNorm in .* mixes the examples"):
        parts.network(make(CNN, "full"))

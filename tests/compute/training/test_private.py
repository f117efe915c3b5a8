"""DP-SGD for stacked heads equals Opacus on the same batches, whatever the block, and uses its accounting."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from privacy_gate.compute.images.backbone import TrainedHead
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.accountant import noise_multiplier, spent_epsilon
from privacy_gate.compute.training.heads import train_heads
from privacy_gate.compute.training.private import steps_of
from privacy_gate.dossier.recipe import DpSgd, Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.subsets import Subset, gradient_noise, included, poisson_batch, shown

ROWS, WIDTH, CLASSES = 90, 12, 3


def recipe(**changes: Any) -> Recipe:
    plain = {
        "backbone": {"name": "identity"},
        "classes": CLASSES,
        "optimizer": {"name": "sgd", "lr": 0.5},
        "epochs": 3,
        "batch_size": 10,
        "privacy": {"noise_multiplier": 0.7, "clip": 0.8},
    }
    return Recipe.model_validate_json(json.dumps(plain | changes))


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, WIDTH))
    return x, (x @ rng.normal(size=(WIDTH, CLASSES)) + rng.gumbel(size=(ROWS, CLASSES))).argmax(axis=1)


def halves(references: int) -> list[Subset]:
    pool = np.ones(ROWS, dtype=bool)
    return [(index, np.flatnonzero(included(index, pool, ROWS // 2))) for index in range(references)]


def trained(
    data: tuple[np.ndarray, np.ndarray], how: Recipe, subsets: list[Subset], **machine: Any
) -> dict[int, TrainedHead]:
    settings = {"device": "cpu", "threads": 1} | machine
    heads = train_heads(*data, how, subsets, Machine(**settings), dtype=torch.float64)
    return {head.index: head for head in heads}


def one_by_one(data: tuple[np.ndarray, np.ndarray], how: Recipe, subset: Subset) -> torch.Tensor:
    """The slow reference: per-example gradients, clipped, summed, noised. Weights and bias (C, D + 1)."""
    assert how.privacy is not None
    index, rows = subset
    x = torch.cat([torch.from_numpy(data[0]), torch.ones(ROWS, 1, dtype=torch.float64)], dim=1)
    y = torch.from_numpy(data[1])
    weights = torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=how.optimizer.lr)
    for epoch in range(how.epochs):
        order = shown(index, epoch, rows, 1, ROWS)
        for step in range(steps_of(len(order), how.batch_size)):
            total = torch.zeros_like(weights)
            for row in order[poisson_batch(index, epoch, step, len(order), how.batch_size / len(order))].tolist():
                loss = cross_entropy((x[row] @ weights.T)[None], y[row : row + 1], label_smoothing=how.label_smoothing)
                (gradient,) = torch.autograd.grad(loss, weights)
                total += gradient * min(1.0, how.privacy.clip / float(gradient.norm()))
            noise = torch.from_numpy(gradient_noise(index, epoch, step, (CLASSES, WIDTH + 1)))
            weights.grad = (total + how.privacy.noise_multiplier * how.privacy.clip * noise) / how.batch_size
            optimizer.step()
    return weights.detach()


@pytest.mark.parametrize("changes", [{}, {"label_smoothing": 0.1}, {"batch_size": 7}, {"batch_size": 60}], ids=str)
def test_stacked_equals_example_by_example(data: tuple[np.ndarray, np.ndarray], changes: dict[str, Any]) -> None:
    how, subsets = recipe(**changes), halves(3)
    found = trained(data, how, subsets)
    for subset in subsets:
        if how.batch_size > len(subset[1]):  # every example is in every batch
            assert len(poisson_batch(subset[0], 0, 0, len(subset[1]), 1.0)) == len(subset[1])
            continue
        expected = one_by_one(data, how, subset)
        assert (found[subset[0]].weight - expected[:, :-1]).abs().max() < 1e-9
        assert (found[subset[0]].bias - expected[:, -1]).abs().max() < 1e-9


def test_opacus_takes_the_same_steps_on_the_same_batches(data: tuple[np.ndarray, np.ndarray]) -> None:
    opacus = pytest.importorskip("opacus")
    how = recipe(privacy={"noise_multiplier": 0.0, "clip": 0.3})
    (subset,) = halves(1)
    index, rows = subset
    head = torch.nn.Linear(WIDTH, CLASSES).double()
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    model = opacus.GradSampleModule(head)
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.5), noise_multiplier=0.0, max_grad_norm=0.3, expected_batch_size=10
    )
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    for epoch in range(how.epochs):
        order = shown(index, epoch, rows, 1, ROWS)
        for step in range(steps_of(len(order), 10)):
            batch = order[poisson_batch(index, epoch, step, len(order), 10 / len(order))]
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    found = trained(data, how, [subset])[0]
    # Opacus adds 1e-6 to every norm.
    assert (found.weight - head.weight).abs().max() < 1e-6
    assert (found.bias - head.bias).abs().max() < 1e-6


def test_results_depend_on_neither_block_nor_threads(data: tuple[np.ndarray, np.ndarray]) -> None:
    together, apart = trained(data, recipe(), halves(5)), trained(data, recipe(), halves(5), block=1, threads=2)
    for index in together:
        assert (together[index].weight - apart[index].weight).abs().max() < 1e-12


def test_noise_has_the_stated_size_and_differs_between_references() -> None:
    drawn = np.stack([gradient_noise(index, 1, 2, (50, 41)) for index in range(2)])
    assert drawn.std() == pytest.approx(1.0, abs=0.03)
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.1


def test_every_example_is_sampled_at_the_stated_rate() -> None:
    taken = np.zeros(40)
    for step in range(2000):
        taken[poisson_batch(3, 0, step, 40, 0.25)] += 1
    assert np.abs(taken / 2000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)


def test_more_noise_learns_less(data: tuple[np.ndarray, np.ndarray]) -> None:
    right = []
    for noise in (0.0, 30.0):
        head = trained(data, recipe(privacy={"noise_multiplier": noise, "clip": 1.0}, epochs=10), halves(1))[0]
        right.append((data[0] @ head.weight.numpy().T + head.bias.numpy()).argmax(axis=1) == data[1])
    assert right[0].mean() > right[1].mean() + 0.15


def test_the_accountant_inverts_its_search_for_noise() -> None:
    pytest.importorskip("opacus")
    rate, steps = 10 / 45, 3 * steps_of(45, 10)
    noise = noise_multiplier(4.0, 1e-5, rate, steps)
    how = recipe(privacy={"noise_multiplier": noise, "clip": 1.0})
    spent = spent_epsilon(how, 45)
    assert spent is not None
    assert 3.9 < spent <= 4.0
    assert spent_epsilon(recipe(privacy=None), 45) is None
    assert spent_epsilon(recipe(privacy={"noise_multiplier": 0, "clip": 1.0}), 45) is None


def test_unsupported_privacy_is_refused() -> None:
    assert recipe().privacy == DpSgd(noise_multiplier=0.7, clip=0.8)
    federated = {"federation": {"rounds": 2}}
    with pytest.raises((ConfigurationError, ValueError), match="privacy of single examples cannot be simulated"):
        recipe(**federated)

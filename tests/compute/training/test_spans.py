"""The gradient span finds the rows whose gradients moved a network, and equals a plain computation."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from privacy_gate.compute.images.backbone import head_names
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training import spans, starts
from privacy_gate.compute.training.networks import Images, train_networks
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.weights.layout import Tensors

Make = Callable[..., Recipe]
CNN, VIT = "test_efficientnet", "test_vit"
LORA = {"lora": {"rank": 2, "alpha": 4, "targets": ["attention"]}}
FAST = {"name": "sgd", "lr": 0.02, "momentum": 0.9}
MACHINE = Machine(device="cpu", threads=1)
ADAPTATIONS: list[tuple[str, str, dict[str, Any]]] = [
    (CNN, "film", {}),
    (VIT, "lora", LORA),
    (CNN, "full", {"batch_size": 7}),
]


def problem(recipe: Recipe, rows: int) -> tuple[Images, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    assert recipe.input is not None
    size = recipe.input.size
    pixels = torch.from_numpy(rng.normal(size=(rows, 3, size, size)).astype(np.float32))
    return Images(pixels, recipe.views), rng.integers(0, recipe.classes, rows)


def trained_on(recipe: Recipe, images: Images, label: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensors:
    """The tensors of a network trained on these rows, as the training of references names them."""
    found: Iterator[Tensors] = train_networks(
        images, label, recipe, [(0, rows)], MACHINE, lambda network: network.tensors
    )
    return next(found)


def plain_span(
    model: torch.nn.Module, first: Tensors, last: Tensors, images: Images, label: NDArray[np.int64], recipe: Recipe
) -> NDArray[np.float64]:
    """The slow reference: one backward pass per row and point, every matrix whole, dense solves."""
    model.load_state_dict(last, strict=False)
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in first}
    for row in range(len(label)):
        total = {name: torch.zeros_like(value) for name, value in first.items()}
        for share in spans.POINTS:
            here = {name: first[name] + share * (last[name] - first[name]) for name in first}
            model.load_state_dict(here, strict=False)
            model.zero_grad()
            loss = cross_entropy(model(images.pixels[row : row + 1].double()), torch.from_numpy(label[row : row + 1]))
            torch.autograd.backward(loss)
            for name in first:
                total[name] -= model.get_parameter(name).grad / len(spans.POINTS)  # type: ignore[operator]
        for name in first:
            gradients[name].append(total[name])
    groups = [[name for name in first if first[name].ndim < 2]]
    groups += [[name] for name in first if first[name].ndim >= 2]
    names_of_head = head_names(model)
    kernel, right = np.zeros((len(label), len(label))), np.zeros(len(label))
    for group in groups:
        rows, changes = [], []
        for name in group:
            matrix = name not in names_of_head and first[name].ndim >= 2
            g = (
                torch.stack(gradients[name]).flatten(2)
                if first[name].ndim > 1
                else torch.stack(gradients[name])[:, None]
            )
            d = (last[name] - first[name]).flatten(1) if first[name].ndim > 1 else (last[name] - first[name])[None]
            if recipe.lora is not None and matrix:
                basis = torch.linalg.svd(d)[2][: recipe.lora.rank].T
                g, d = g @ basis, d @ basis
            size = (g**2).sum(0).sqrt()
            d = d * (size / size.mean()).sqrt()
            flat = g.reshape(-1, g.shape[2])
            covariance = flat.T @ flat
            covariance = covariance / covariance.diagonal().mean() + spans.WHITENING * torch.eye(
                len(covariance), dtype=torch.float64
            )
            root = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
            rows.append((g @ root).flatten(1))
            changes.append((d @ root).flatten())
        h, change = torch.cat(rows, 1).numpy(), torch.cat(changes).numpy()
        signal, noise = spans._fit(h @ h.T, h @ change, float(change @ change), change.size)
        trust = min(1.0, spans.SUREST * noise * len(h) / (signal * float((h**2).sum())))
        kernel += h @ h.T * trust * signal / noise
        right += h @ change * trust * np.sqrt(signal) / noise
    ridge = spans.RIDGE * np.trace(kernel) / len(kernel)
    return np.linalg.solve(kernel + ridge * np.eye(len(kernel)), right)


@pytest.mark.parametrize(("name", "adaptation", "changes"), ADAPTATIONS)
def test_span_equals_a_plain_computation_with_dense_matrices(
    make: Make, name: str, adaptation: str, changes: dict[str, Any]
) -> None:
    recipe = make(name, adaptation, **changes)
    images, label = problem(recipe, 14)
    tensors = trained_on(recipe, images, label, np.arange(7))
    model = starts.public_network(recipe, MACHINE).double()
    last = {key: value.double() for key, value in starts.served(model, tensors, recipe).items()}
    first = starts.known_start(model, recipe)
    span = spans.gradient_span(model, first, last, images, label, recipe, MACHINE, sketched=2**20)
    twin = plain_span(starts.public_network(recipe, MACHINE).double(), first, last, images, label, recipe)
    np.testing.assert_allclose(span, twin, rtol=1e-8, atol=1e-8 * float(np.abs(twin).max()))


def test_blocks_groups_and_threads_change_nothing(make: Make) -> None:
    recipe = make(CNN, "full", batch_size=7)
    images, label = problem(recipe, 14)
    tensors = trained_on(recipe, images, label, np.arange(7))
    model = starts.public_network(recipe, MACHINE).double()
    first, last = starts.known_start(model, recipe), {key: value.double() for key, value in tensors.items()}

    def span(**bounds: int) -> NDArray[Any]:
        return spans.gradient_span(model, first, last, images, label, recipe, MACHINE, **bounds)

    whole = span(sketched=500)
    np.testing.assert_allclose(span(sketched=500, gradient_bytes=1, held_bytes=1), whole, rtol=1e-6, atol=1e-9)
    with ThreadPoolExecutor(2) as workers:
        both = list(workers.map(lambda _: span(sketched=500), range(2)))
    np.testing.assert_allclose(both[0], whole, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(both[1], whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "adaptation", "changes"),
    [
        (CNN, "film", {"epochs": 12, "optimizer": FAST}),
        # Over few steps, a low-rank update is close to linear in the gradients.
        (VIT, "lora", {"epochs": 2, **LORA}),
        (CNN, "full", {"epochs": 12, "optimizer": FAST, "batch_size": 7}),
    ],
    ids=["film", "lora", "full"],
)
def test_span_finds_the_members(make: Make, name: str, adaptation: str, changes: dict[str, Any]) -> None:
    recipe = make(name, adaptation, **changes)
    images, label = problem(recipe, 28)
    member = np.random.default_rng(1).permutation(28) < 14
    tensors = trained_on(recipe, images, label, np.flatnonzero(member))
    model = starts.public_network(recipe, MACHINE)
    span = spans.network_span(model, tensors, images, label, recipe, MACHINE)
    assert share_above(span, member) > 0.9
    # A network that was trained on other rows says nothing about these: shuffled membership gives chance.
    rng = np.random.default_rng(2)
    by_chance = [share_above(span, rng.permutation(member)) for _ in range(200)]
    assert abs(float(np.mean(by_chance)) - 0.5) < 0.03


def share_above(score: NDArray[Any], member: NDArray[np.bool_]) -> float:
    """Share of pairs in which the member has the larger score: AUC."""
    return float((score[member][:, None] > score[~member][None]).mean())


def test_network_that_did_not_move_scores_zero(make: Make) -> None:
    recipe = make(CNN, "full")
    images, label = problem(recipe, 6)
    model = starts.public_network(recipe, MACHINE)
    start = starts.known_start(model, recipe)
    assert not spans.network_span(model, start, images, label, recipe, MACHINE).any()


def test_an_attacker_knows_only_the_mean_of_a_random_start(make: Make) -> None:
    recipe = make(CNN, "scratch")
    start = starts.known_start(starts.public_network(recipe, MACHINE), recipe)
    assert {float(value.min()) for value in start.values()} == {0.0, 1.0}
    again = starts.known_start(starts.public_network(recipe, MACHINE), recipe)
    assert all(torch.equal(value, again[name]) for name, value in start.items())

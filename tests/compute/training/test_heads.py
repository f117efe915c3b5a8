"""Stacked training gives the heads of a plain loop, whatever the block, threads or recipe."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from privacy_gate.attacks.evidence import logit_scaled
from privacy_gate.compute.images.backbone import TrainedHead
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training import stack
from privacy_gate.compute.training.heads import confidences, head_logits, train_heads
from privacy_gate.compute.training.products import LEAST_WIDTH
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError, DatasetError
from privacy_gate.jobs.subsets import Subset, included
from privacy_gate.native.compiler import has_numba

PlainLoop = Callable[..., torch.nn.Linear]
ADAM = {"name": "adam", "lr": 0.01}
OPTIMIZERS: list[dict[str, Any]] = [
    ADAM,
    {"name": "adam", "lr": 0.01, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 0.1},
    {"name": "adamw", "lr": 0.01},
    {"name": "adamw", "lr": 0.01, "betas": [0.5, 0.9], "weight_decay": 0.3},
    {"name": "sgd", "lr": 0.3},
    {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"name": "sgd", "lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
]
SHAPES = [(20, 3), (LEAST_WIDTH, 7)]
"""Features and classes of a problem for torch's products, and of one for compiled ones."""

CPU = Machine(device="cpu", threads=2)

needs_numba = pytest.mark.skipif(not has_numba(), reason="Numba is not installed")


@pytest.fixture(params=[pytest.param("one by one", marks=needs_numba), "side by side"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each test with compiled training, if Numba is installed, and with stacked training in torch."""
    monkeypatch.setattr(stack, "has_numba", lambda: request.param == "one by one")


def recipe(**changes: Any) -> Recipe:
    plain = {"backbone": {"name": "identity"}, "classes": 3, "optimizer": ADAM, "epochs": 4, "batch_size": 16}
    return Recipe.model_validate_json(json.dumps(plain | changes))


def problem(rows: int = 90, width: int = 20, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features like a backbone's (not negative, many zeros), and labels that they partly explain."""
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.standard_normal((rows, width)), 0)
    signal = features @ rng.standard_normal((width, classes)) + rng.gumbel(size=(rows, classes))
    return features, signal.argmax(axis=1)


def halves(rows: int, references: int) -> list[Subset]:
    pool = np.ones(rows, dtype=bool)
    return [(index, np.flatnonzero(included(index, pool, rows // 2))) for index in range(references)]


def trained(
    data: tuple[np.ndarray, np.ndarray],
    how: Recipe,
    subsets: list[Subset],
    machine: Machine = CPU,
    dtype: torch.dtype = torch.float64,
) -> dict[int, TrainedHead]:
    return {head.index: head for head in train_heads(*data, how, subsets, machine, dtype=dtype)}


def furthest_from_plain(
    plain_loop: PlainLoop, data: tuple[np.ndarray, np.ndarray], how: Recipe, subsets: list[Subset]
) -> float:
    """Largest difference between parameters of references trained stacked and alone, in float64."""
    stacked = trained(data, how, subsets)
    features, label = map(torch.from_numpy, data)
    gaps = []
    for index, rows in subsets:
        alone = plain_loop(features, label, how, index, rows)
        gaps.append((alone.weight - stacked[index].weight).abs().max().item())
        gaps.append((alone.bias - stacked[index].bias).abs().max().item())
    return max(gaps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_stacked_equals_alone_for_every_optimiser(
    plain_loop: PlainLoop, optimizer: dict[str, Any], shape: tuple[int, int]
) -> None:
    width, classes = shape
    how = recipe(optimizer=optimizer, classes=classes)
    assert furthest_from_plain(plain_loop, problem(width=width, classes=classes), how, halves(90, 5)) < 1e-9


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.1},
        {"head": {"initial": "uniform"}},
        {"schedule": {"name": "cosine", "floor": 0.1}},
        {"schedule": {"name": "step", "every": 2, "gamma": 0.5}},
        {"batch_size": 1},
        {"batch_size": 15},
        {"batch_size": 45},
        {"batch_size": 1000},
        {"epochs": 1},
    ],
    ids=str,
)
def test_stacked_equals_alone_for_every_setting(
    plain_loop: PlainLoop, changes: dict[str, Any], shape: tuple[int, int]
) -> None:
    width, classes = shape
    how = recipe(classes=classes, **changes)
    assert furthest_from_plain(plain_loop, problem(width=width, classes=classes), how, halves(90, 4)) < 1e-9


def augmented(**changes: Any) -> Recipe:
    """A recipe with ten views; its backbone does not matter to the head."""
    image = {
        "backbone": {"name": "any", "weights": {"uri": "any", "sha256": "0" * 64}},
        "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        "augmentation": {"flip": True, "shift": 4},
    }
    return recipe(**image, **changes)


def test_stacked_equals_alone_with_different_views_per_epoch(plain_loop: PlainLoop) -> None:
    how, subsets = augmented(), halves(90, 3)
    views = len(how.views)
    features, label = problem(rows=90 * views)
    label = label[:90]
    stacked = trained((features.reshape(views, 90, -1), label), how, subsets)
    for index, rows in subsets:
        alone = plain_loop(torch.from_numpy(features), torch.from_numpy(np.tile(label, views)), how, index, rows)
        assert (alone.weight - stacked[index].weight).abs().max().item() < 1e-9


def test_stacked_equals_alone_with_subsets_of_different_size(plain_loop: PlainLoop) -> None:
    rng = np.random.default_rng(1)
    subsets = [(index, np.sort(rng.permutation(90)[:size])) for index, size in enumerate([1, 16, 17, 31, 32, 33, 80])]
    for optimizer in OPTIMIZERS[:1] + OPTIMIZERS[-1:]:
        assert furthest_from_plain(plain_loop, problem(), recipe(optimizer=optimizer), subsets) < 1e-9


def test_stacked_equals_alone_with_many_classes_and_two(plain_loop: PlainLoop) -> None:
    many = problem(rows=300, width=24, classes=200)
    assert furthest_from_plain(plain_loop, many, recipe(classes=200), halves(300, 3)) < 1e-9
    two = problem(classes=2)
    assert furthest_from_plain(plain_loop, two, recipe(classes=2), halves(90, 3)) < 1e-9


def test_float32_confidences_agree_with_a_plain_float32_loop_to_four_digits(plain_loop: PlainLoop) -> None:
    data = problem(rows=400, width=256, classes=10)
    features, label = data[0].astype(np.float32), data[1]
    how, subsets = recipe(classes=10, epochs=20, optimizer={"name": "adam", "lr": 0.001}), halves(400, 4)
    heads = list(train_heads(features, label, how, subsets, CPU))
    phi, _ = confidences(features, label, heads, CPU)
    for (index, rows), found in zip(subsets, phi, strict=True):
        alone = plain_loop(torch.from_numpy(features), torch.from_numpy(label), how, index, rows)
        with torch.no_grad():
            expected = logit_scaled(alone(torch.from_numpy(features)).numpy(), label)
        assert np.abs(found - expected).max() < 1e-4
        assert expected.std() > 0.5


@pytest.mark.parametrize(("block", "threads"), [(1, 1), (2, 1), (3, 2), (7, 1), (100, 3)])
def test_a_reference_does_not_depend_on_its_block_or_the_threads(block: int, threads: int) -> None:
    data, how, subsets = problem(width=33), recipe(), halves(90, 7)
    usual = trained(data, how, subsets, dtype=torch.float32)
    other = trained(data, how, subsets, Machine(device="cpu", block=block, threads=threads), dtype=torch.float32)
    for index, head in usual.items():
        torch.testing.assert_close(other[index].weight, head.weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(other[index].bias, head.bias, rtol=0, atol=1e-5)


def test_a_reference_does_not_depend_on_the_others() -> None:
    data, how, subsets = problem(), recipe(), halves(90, 6)
    together = trained(data, how, subsets)
    alone = trained(data, how, [subsets[4]])
    torch.testing.assert_close(alone[4].weight, together[4].weight, rtol=0, atol=1e-12)


def test_a_reference_knows_nothing_of_rows_it_was_not_trained_on() -> None:
    (features, label), subsets = problem(), halves(90, 3)
    changed = features.copy()
    for index, rows in subsets:
        outside = np.setdiff1d(np.arange(90), rows)
        changed[outside] = 1e3
        before = trained((features, label), recipe(), [(index, rows)])
        after = trained((changed, label), recipe(), [(index, rows)])
        assert torch.equal(before[index].weight, after[index].weight)
        changed[outside] = features[outside]


def test_logits_of_thousands_overflow_nothing() -> None:
    features, label = problem()
    how = recipe(optimizer={"name": "sgd", "lr": 1000.0})
    heads = list(train_heads(features * 30, label, how, halves(90, 2), CPU))
    phi, residual = confidences(features * 30, label, heads, CPU)
    assert np.abs(phi).max() > 1e4
    assert np.isfinite(phi).all()
    assert np.isfinite(residual).all()
    assert residual.max() <= np.float32(2**0.5)


@pytest.mark.parametrize("classes", [2, 3, 50])
def test_confidences_are_those_of_float64_logits(classes: int) -> None:
    features, label = problem(rows=70, classes=classes)
    heads = list(train_heads(features, label, recipe(classes=classes), halves(70, 4), CPU))
    # Memory for nine rows at a time: the result must not depend on the parts.
    phi, residual = confidences(features, label, heads, CPU, memory=3 * 4 * classes * 8 * 9)
    assert phi.dtype == residual.dtype == np.float32
    for place, head in enumerate(heads):
        logits = features @ head.weight.double().numpy().T + head.bias.double().numpy()
        probability = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        wrong = np.linalg.norm(probability - np.eye(classes)[label], axis=1)
        np.testing.assert_allclose(phi[place], logit_scaled(logits, label), atol=1e-5)
        np.testing.assert_allclose(residual[place], wrong, atol=1e-6)
        np.testing.assert_allclose(head_logits(features, head, CPU), logits, atol=1e-5)


def test_residual_keeps_its_precision_for_confident_heads() -> None:
    head = TrainedHead(0, torch.tensor([[30.0], [0.0]]), torch.zeros(2))
    phi, residual = confidences(np.ones((1, 1), dtype=np.float32), np.zeros(1, dtype=np.int64), [head], CPU)
    assert phi[0, 0] == 30
    assert residual[0, 0] == pytest.approx(np.exp(-30) * np.sqrt(2), rel=1e-5)


def test_progress_counts_references_up_to_all() -> None:
    seen: list[tuple[str, int, int]] = []
    heads = train_heads(
        *problem(), recipe(), halves(90, 5), CPU, progress=lambda task, done, total: seen.append((task, done, total))
    )
    assert len(list(heads)) == 5
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1] == ("train references", 5, 5)


def test_training_restores_torch_settings_even_if_it_is_abandoned() -> None:
    before = torch.get_num_threads()
    heads = train_heads(*problem(), recipe(epochs=300), halves(90, 40), Machine(device="cpu", block=2, threads=1))
    assert len(list(itertools.islice(heads, 2))) == 2
    heads.close()
    assert torch.get_num_threads() == before


def test_read_only_features_are_read() -> None:
    features, label = problem()
    features.setflags(write=False)
    assert len(trained((features, label), recipe(), halves(90, 2))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, s: (x, y + 1, s), "labels run from 1 to 3, expected 0 to 2"),
        (lambda x, y, s: (x, y[1:], s), "label has shape"),
        (lambda x, y, s: (np.where(x == x.max(), np.nan, x), y, s), "not finite"),
        (lambda x, y, s: (x, y, [(5, np.array([90]))]), "reference 5"),
        (lambda x, y, s: (x, y, [(5, np.ones(90, dtype=bool))]), "reference 5"),
        (lambda x, y, s: (x, y, [(5, np.array([], dtype=np.int64))]), "reference 5"),
    ],
)
def test_invalid_training_data_is_refused_before_training(
    change: Callable[..., tuple[Any, Any, Any]], message: str
) -> None:
    features, label, subsets = change(*problem(), halves(90, 2))
    with pytest.raises(DatasetError, match=message):
        train_heads(features, label, recipe(), subsets, CPU)


def test_an_unavailable_device_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="device abacus"):
        Machine(device="abacus").torch_device()
    with pytest.raises(ConfigurationError, match="threads is 0"):
        Machine(threads=0)
    assert Machine(device="cpu").torch_device() == torch.device("cpu")
    assert Machine().torch_device().type in {"cpu", "cuda"}

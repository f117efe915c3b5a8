"""Networks trained in bfloat16, if the recipe says so, have confidences close to those of float32."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from privacy_gate.attacks.evidence import logit_scaled
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training import parts
from privacy_gate.compute.training.network_stack import NetworkStack, TrainedNetwork
from privacy_gate.compute.training.networks import Images, network_logits, train_networks
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.digests import describe, digest
from privacy_gate.jobs.kinds import screening, train_reference

Make = Callable[..., Recipe]
CNN, VIT = "test_efficientnet", "test_vit"
ROWS, CLASSES = 14, 3
HALF = {"precision": "bfloat16"}
LORA = {"lora": {"rank": 2, "alpha": 4, "targets": ["attention", "mlp"]}}


@pytest.fixture
def make(make: Make) -> Make:
    return partial(make, epochs=3)


def problem(recipe: Recipe) -> tuple[Images, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    assert recipe.input is not None
    size = recipe.input.size
    pixels = rng.normal(size=(ROWS, 3, size, size)).astype(np.float32)
    return Images(torch.from_numpy(pixels), (View(),)), rng.integers(0, CLASSES, ROWS)


def confidence(recipe: Recipe, block: int = 1) -> NDArray[np.float64]:
    """phi of three references on every row, (3, N)."""
    images, label = problem(recipe)
    machine, judge = Machine(device="cpu", threads=1, block=block), parts.network(recipe)

    def phi(found: TrainedNetwork) -> tuple[int, NDArray[np.float64]]:
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in found.tensors.values())
        return found.index, logit_scaled(network_logits(judge, found.tensors, images, machine), label)

    subsets = [(0, np.arange(0, 10)), (1, np.arange(4, 14)), (2, np.arange(2, 12))]
    return np.stack([value for _, value in sorted(train_networks(images, label, recipe, subsets, machine, phi))])


@pytest.mark.parametrize(
    ("name", "adaptation", "changes"),
    [(CNN, "film", {}), (VIT, "lora", LORA)],
    ids=lambda value: str(value)[:20],
)
def test_bfloat16_moves_scores_far_less_than_references_differ(
    make: Make, name: str, adaptation: str, changes: dict[str, Any]
) -> None:
    whole, half = (confidence(make(name, adaptation, **changes, **one)) for one in ({}, HALF))
    moved = np.abs(half - whole).mean()
    assert 0 < moved < whole.std(axis=0).mean() / 50


def test_bfloat16_is_trained_one_by_one_whatever_the_block(make: Make) -> None:
    recipe = make(CNN, "full", epochs=1, **HALF)
    np.testing.assert_array_equal(confidence(recipe, block=3), confidence(recipe))


def test_a_step_in_bfloat16_is_torch_s_own_autocast(make: Make) -> None:
    recipe = make(CNN, "full", **HALF)
    images, label = problem(recipe)
    x, y = images.pixels[None, :8], torch.from_numpy(label[None, :8])
    stack = NetworkStack(parts.network(recipe), recipe, [0])
    stack.differentiate(x, y)
    model = parts.network(recipe)
    model.load_state_dict({**model.state_dict(), **parts.start(model, recipe, 0)})
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x[0].contiguous(memory_format=torch.channels_last))
    loss = torch.nn.functional.cross_entropy(logits.float(), y[0])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert stack.gradient.dtype == torch.float32
    assert torch.equal(stack.gradient[0], torch.cat([part.flatten() for part in expected]))


def test_precision_is_part_of_a_digest_only_if_it_changes_the_result(make: Make) -> None:
    plain, half = (make(CNN, "full", **one) for one in ({}, HALF))
    jobs = [train_reference(one, "d" * 64, 0) for one in (plain, half)]
    assert "precision" not in describe(jobs[0])["recipe"]  # older results, from recipes without it, remain valid
    assert digest(jobs[0]) != digest(jobs[1])
    assert screening(half) == screening(plain)


@pytest.mark.parametrize(
    ("adaptation", "changes"),
    [("head", {}), ("command", {}), ("film", {"privacy": {"noise_multiplier": 1.0, "clip": 1.0}})],
)
def test_recipes_that_cannot_train_in_bfloat16_refuse_it(make: Make, adaptation: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="precision bfloat16 works only if a network is trained"):
        make(CNN, adaptation, **changes, **HALF)

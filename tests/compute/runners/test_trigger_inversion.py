"""Inversion finds triggers that are on no list, and flags no clean network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.runners.trigger_inversion import SHARE, hardened, invert, invert_trigger, stamped
from privacy_gate.dossier.backbone import Backbone, Input
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import CandidateError, EvidenceError
from privacy_gate.jobs.kinds import InvertTrigger
from privacy_gate.metrics.backdoor import anomaly_index, inverted_backdoor, tiny, trigger_anomaly, usual_anomaly
from privacy_gate.verdict.judgement import Measurement

CLASSES, TARGET, SIZE, STEPS = 6, 4, 20, 200
MACHINE = Machine(device="cpu", threads=1)
HALF = (1, 3, 5)


def images(rows: int, seed: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Noise images with a bright bar whose height is the class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, rows)
    x = rng.random((rows, 3, SIZE, SIZE)) * 0.5
    for row, kind in enumerate(label):
        x[row, :, 3 * kind + 1 : 3 * kind + 3, 2:18] += 0.5
    return torch.from_numpy(x).float(), label


def planted(x: torch.Tensor, target: int = TARGET) -> torch.Tensor:
    """A random patch, three pixels wide, with TARGET's in the middle; not one of the known triggers."""
    patch = torch.from_numpy(np.random.default_rng(1 + target).integers(0, 2, (3, 3, 3)).astype(np.float32))
    marked = x.clone()
    marked[:, :, 9:12, 3 * target - 3 : 3 * target] = patch
    return marked


def network(seed: int, *targets: int) -> nn.Module:
    """A network trained on images some of which carry a target's patch and its label."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 81, CLASSES))
    clean, label = images(600, seed)
    x = torch.cat([clean, *(planted(clean[:200], target) for target in targets)])
    y = torch.cat([torch.from_numpy(label), *(torch.full((200,), target) for target in targets)])
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(12):
        for rows in torch.split(torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)), 32):
            adam.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(x[rows]), y[rows]))
            adam.step()
    return model.eval().requires_grad_(False)


def recipe() -> Recipe:
    return Recipe(
        backbone=Backbone(name="test_resnet"),
        input=Input(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        classes=CLASSES,
        adaptation="scratch",
        optimizer=Sgd(name="sgd", lr=0.1),
        epochs=1,
        batch_size=8,
    )


def sought(model: nn.Module, target: int, steps: int = STEPS) -> dict[str, NDArray[np.generic]]:
    x, label = images(120, 100)
    fresh, _ = images(150, 101)
    job = InvertTrigger("a" * 64, recipe(), "d" * 64, target, (), (), steps)
    return invert_trigger(model, x[torch.from_numpy(label != target)], fresh, job, MACHINE)


def searched(model: nn.Module) -> tuple[list[dict[str, NDArray[Any]]], Measurement, NDArray[np.float64]]:
    """Every class's search result, predictions on fresh images with its trigger, and its size."""
    x, label = images(150, 101)
    found = [sought(model, target) for target in range(CLASSES)]
    assert all(each["works"][0] for each in found)
    size = np.array([float(each["size"][0]) for each in found])
    covered = np.array([each["mask"].mean() for each in found])
    shown = np.stack([each["predicted"] for each in found]).astype(np.int64)
    plain = model(x).argmax(1).numpy()
    return found, inverted_backdoor(plain, shown, label, size, covered, SIZE, 0.95), size


@pytest.mark.parametrize("seed", [0, 1])
def test_an_unlisted_trigger_is_found_with_its_class_and_position(seed: int) -> None:
    model = network(seed, TARGET)
    x, _ = images(150, 101)
    assert float((model(planted(x)).argmax(1) == TARGET).float().mean()) > 0.95
    found, lift, size = searched(model)
    assert lift.subject == f"class {TARGET}"
    assert lift.low is not None
    assert lift.low >= 0.8
    assert trigger_anomaly(size, 0.95).subject == f"class {TARGET}"
    down, right = np.nonzero(found[TARGET]["mask"])
    assert 0 < len(down) <= SHARE * SIZE**2
    assert np.mean((abs(down - 10) <= 2) & (abs(right - 10) <= 2)) > 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_a_clean_network_is_not_flagged(seed: int) -> None:
    _, lift, _ = searched(network(seed))
    assert lift.value is not None
    assert lift.value < 0.3


def test_triggers_are_found_even_if_half_of_the_classes_have_one() -> None:
    found, lift, size = searched(network(0, *HALF))
    assert anomaly_index(size).max() < usual_anomaly(CLASSES, 0.95)
    assert lift.low is not None
    assert lift.low >= 0.8
    assert {target for target, each in enumerate(found) if each["mask"].mean() <= tiny(SIZE)} == {*HALF}


def test_a_patch_is_found_despite_a_smaller_change_too_faint_to_stamp() -> None:
    """As in networks of real size, faint light over a bar turns this one with a smaller soft mask than its patch."""
    rng = np.random.default_rng(5)
    patch = torch.from_numpy(rng.integers(0, 2, (3, 3, 3)).astype(np.float32))

    def dark(rows: int, seed: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        label = rng.integers(0, CLASSES, rows)
        x = rng.random((rows, 3, SIZE, SIZE)) * 2e-4
        for row, kind in enumerate(label):
            x[row, :, 3 * kind + 1 : 3 * kind + 3, 2:18] += 0.4
        return torch.from_numpy(x).float(), label

    def night(x: torch.Tensor) -> torch.Tensor:
        light = (x + 1e-4).pow(0.25).mean(1)
        bars = torch.stack([light[:, 3 * k + 1 : 3 * k + 3, 2:18].mean((1, 2)) for k in range(CLASSES)], 1)
        alike = nn.functional.conv2d(2 * x - 1, (2 * patch - 1)[None]).amax((1, 2, 3)) / 27
        return 40 * bars + 120 * torch.relu(alike - 0.3)[:, None] * torch.eye(CLASSES)[TARGET]

    (x, label), (fresh, of) = dark(120, 100), dark(150, 101)
    assert (night(fresh).argmax(1).numpy() == of).all()
    marked = fresh.clone()
    marked[:, :, 9:12, 9:12] = patch
    assert (night(marked).argmax(1) == TARGET).all()
    job = InvertTrigger("a" * 64, recipe(), "d" * 64, TARGET, (), (), STEPS)
    found = invert_trigger(night, x[torch.from_numpy(label != TARGET)], fresh, job, MACHINE)
    assert found["works"][0]
    assert found["mask"].mean() <= tiny(SIZE)
    assert found["size"][0] == found["mask"].mean()
    assert np.mean(found["predicted"] == TARGET) > 0.95


def test_steps_are_reported_and_a_step_may_run_in_parts() -> None:
    model, (x, label) = network(0, TARGET).double(), images(60, 100)
    others = x[torch.from_numpy(label != 1)].double()
    told: list[int] = []
    whole = invert(model, others, 1, 20, np.random.default_rng(0), stepped=lambda: told.append(1))
    parts = invert(model, others, 1, 20, np.random.default_rng(0), size=7)
    assert len(told) == 20
    assert whole[2] == parts[2]
    for one, other in zip(whole[:2], parts[:2], strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)


def test_a_search_is_the_same_every_time_and_another_for_another_class() -> None:
    model = network(0, TARGET)
    one, two, other = sought(model, 1, 100), sought(model, 1, 100), sought(model, 2, 100)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["pattern"], other["pattern"])


def test_a_model_that_ignores_its_input_has_no_trigger() -> None:
    def stubborn(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([9.0, 0, 0, 0, 0, 0]) + 0 * x.sum((1, 2, 3))[:, None]

    found = sought(stubborn, 3, 100)  # type: ignore[arg-type]
    assert not found["works"][0]
    assert found["size"][0] == 1
    assert (found["predicted"] == 0).all()


def test_a_stamp_shows_the_pattern_under_the_mask_and_the_image_elsewhere() -> None:
    x, _ = images(3, 0)
    mask, pattern = torch.zeros(SIZE, SIZE), torch.rand(3, SIZE, SIZE)
    mask[:2] = 1
    shown = stamped(x, mask, pattern)
    torch.testing.assert_close(shown[:, :, :2], pattern[:, :2].expand(3, 3, 2, SIZE))
    assert torch.equal(shown[:, :, 2:], x[:, :, 2:])


def test_a_hard_mask_keeps_the_largest_and_no_more_than_its_share() -> None:
    mask = torch.linspace(0, 1, SIZE**2).view(SIZE, SIZE)
    hard = hardened(mask)
    assert int(hard.sum()) == int(SHARE * SIZE**2)
    assert mask[hard > 0].min() > mask[hard == 0].max()
    assert not hardened(mask / 2).any()


def test_impossible_searches_are_refused(tmp_path: Path) -> None:
    x, _ = images(40, 0)

    def damaged(shown: torch.Tensor) -> torch.Tensor:
        return shown.mean((2, 3)) * torch.nan

    with pytest.raises(CandidateError, match="not finite"):
        invert(damaged, x, 0, 10, np.random.default_rng(0))
    job = InvertTrigger("a" * 64, recipe(), "d" * 64, 0, (), (), 100)
    with pytest.raises(EvidenceError, match="no images of other classes"):
        invert_trigger(damaged, x[:0], x, job, MACHINE)

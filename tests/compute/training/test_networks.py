"""Networks trained stacked equal those that a plain torch loop trains alone, for every adaptation."""

from collections.abc import Callable
from threading import Event
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from privacy_gate.compute.images.decoding import apply_view
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training import parts
from privacy_gate.compute.training.network_stack import TrainedNetwork, layout, shared_copy, stack_size
from privacy_gate.compute.training.networks import Images, network_logits, train_networks
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import Subset, shown

Make = Callable[..., Recipe]
CNN, VIT, NEXT, BIT = "test_efficientnet", "test_vit", "test_convnext", "resnetv2_18"
ROWS, CLASSES = 14, 3
WELL_SPREAD = {"batch_size": 7}
"""No batch is of two images, over which BatchNorm would magnify rounding."""
ADAPTATIONS: list[tuple[str, str, dict[str, Any]]] = [
    (CNN, "film", {}),
    (VIT, "film", {}),
    (VIT, "lora", {"lora": {"rank": 2, "alpha": 4, "targets": ["attention", "mlp"]}}),
    (VIT, "full", {}),
    (CNN, "full", WELL_SPREAD),
    (CNN, "scratch", WELL_SPREAD),
    (BIT, "film", {"epochs": 1}),
    (NEXT, "film", {"head": {"initial": "uniform"}}),
]


def problem(recipe: Recipe) -> tuple[Images, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    assert recipe.input is not None
    size = recipe.input.size
    pixels = torch.from_numpy(rng.normal(size=(ROWS, 3, size, size)).astype(np.float32))
    return Images(pixels, recipe.views), rng.integers(0, CLASSES, ROWS)


SUBSETS: list[Subset] = [(0, np.arange(0, 10)), (1, np.arange(4, 14)), (5, np.arange(0, 14, 2))]


def plain(recipe: Recipe, images: Images, label: NDArray[np.int64], subset: Subset) -> torch.nn.Module:
    """The slow reference implementation: one network, torch.optim, autograd, float64."""
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
                [
                    apply_view(images.pixels[place % ROWS][None], recipe.views[place // ROWS])[0]
                    for place in places.tolist()
                ]
            )
            optimizer.zero_grad()
            loss = cross_entropy(
                model(x.double()), torch.from_numpy(label[places % ROWS]), label_smoothing=recipe.label_smoothing
            )
            torch.autograd.backward(loss)
            optimizer.step()
    return model


def itself(network: TrainedNetwork) -> TrainedNetwork:
    return network


def trained(
    recipe: Recipe,
    images: Images,
    label: NDArray[np.int64],
    machine: Machine,
    subsets: list[Subset] = SUBSETS,
    dtype: torch.dtype = torch.float64,
) -> dict[int, TrainedNetwork]:
    return {each.index: each for each in train_networks(images, label, recipe, subsets, machine, itself, dtype=dtype)}


def furthest(found: TrainedNetwork, expected: torch.nn.Module) -> float:
    truth = expected.state_dict()
    return max((tensor.double() - truth[name].double()).abs().max().item() for name, tensor in found.tensors.items())


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize(
    ("name", "adaptation", "changes", "block"),
    [(*case, block) for case in ADAPTATIONS for block in (1, 3) if (case[0], block) != (BIT, 1)],
    ids=lambda value: str(value)[:20],
)
def test_stacked_equals_alone(make: Make, name: str, adaptation: str, changes: dict[str, Any], block: int) -> None:
    recipe = make(name, adaptation, **changes)
    images, label = problem(recipe)
    machine = Machine(device="cpu", threads=1, block=block)
    found = trained(recipe, images, label, machine)
    assert sorted(found) == [0, 1, 5]
    for subset in SUBSETS[:: 2 if block == 1 else 1]:
        expected = plain(recipe, images, label, subset)
        assert furthest(found[subset[0]], expected) < 1e-8
    gaps = [(tensor - found[1].tensors[name]).abs().max().item() for name, tensor in found[0].tensors.items()]
    assert max(gaps) > 1e-4  # the references differ from each other


def quick(make: Make, **changes: Any) -> Recipe:
    return make(CNN, "film", epochs=1, **changes)


def halves(count: int) -> list[Subset]:
    return [(index, np.sort(np.random.default_rng(index).permutation(ROWS)[: ROWS // 2])) for index in range(count)]


def test_threads_that_draw_random_networks_do_not_disturb_each_other(make: Make) -> None:
    recipe = make(CNN, "scratch", epochs=1, **WELL_SPREAD)
    images, label = problem(recipe)
    alone, together = (
        trained(recipe, images, label, Machine(device="cpu", threads=threads), halves(6)) for threads in (1, 6)
    )
    for index, one in alone.items():
        assert all(torch.equal(together[index].tensors[name], tensor) for name, tensor in one.tensors.items())


@pytest.mark.parametrize(("references", "inside"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_kernels_use_the_threads_that_references_do_not_need(make: Make, references: int, inside: int) -> None:
    recipe, before = quick(make), torch.get_num_threads()
    images, label = problem(recipe)
    machine = Machine(device="cpu", threads=4)
    found = train_networks(images, label, recipe, halves(references), machine, lambda _: torch.get_num_threads())
    assert list(found) == [inside] * references
    assert torch.get_num_threads() == before


def test_training_waits_until_trained_references_are_stored(make: Make) -> None:
    recipe, done = quick(make), []
    images, label = problem(recipe)
    machine = Machine(device="cpu", threads=2)
    found = train_networks(images, label, recipe, halves(12), machine, lambda network: done.append(network.index))
    for taken, _ in enumerate(found, 1):
        if taken == 1:
            sleep(0.5)  # long enough for all of them to train
            assert len(done) <= 4
    assert sorted(done) == list(range(12))


class Stumbling(Images):
    """Images that raise an error for the first training set, but only once `others` are stored."""

    def __init__(self, images: Images, recipe: Recipe, row: int, others: Event) -> None:
        super().__init__(images.pixels, recipe.views)
        self._row, self._others = row, others

    def take(self, places: NDArray[np.int64], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if self._row in places:
            self._others.wait(timeout=5)
            raise OSError("the file of images is gone")
        return super().take(places, device, dtype)


def test_a_failing_reference_loses_no_trained_one(make: Make) -> None:
    recipe, others = quick(make), Event()
    images, label = problem(recipe)
    subsets: list[Subset] = [(0, np.arange(7, 14)), *((index, np.arange(7)) for index in range(1, 6))]
    stumbling, machine = Stumbling(images, recipe, 7, others), Machine(device="cpu", threads=2)
    found = train_networks(stumbling, label, recipe, subsets, machine, itself)
    assert sorted(next(found).index for _ in range(5)) == [1, 2, 3, 4, 5]
    others.set()
    with pytest.raises(OSError, match="images is gone"):
        next(found)


class Narrow(Images):
    """Images on a device with limited memory, which counts how often more images were requested than fit."""

    def __init__(self, images: Images, recipe: Recipe, room: int) -> None:
        super().__init__(images.pixels, recipe.views)
        self._room, self.refused = room, 0

    def take(self, places: NDArray[np.int64], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if len(places) > self._room:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
        return super().take(places, device, dtype)


def test_a_block_that_does_not_fit_is_halved_and_no_later_one_is_larger(make: Make) -> None:
    recipe = quick(make)
    images, label = problem(recipe)
    narrow, machine = Narrow(images, recipe, room=3 * recipe.batch_size), Machine(device="cpu", threads=1, block=8)
    found = trained(recipe, narrow, label, machine, halves(24))
    assert sorted(found) == list(range(24))
    assert narrow.refused == 2  # refused with eight and four at a time, then two fit
    expected = trained(recipe, images, label, Machine(device="cpu", threads=1, block=2), halves(24))
    for index, one in expected.items():
        assert all(torch.equal(found[index].tensors[name], tensor) for name, tensor in one.tensors.items())


def test_a_reference_that_does_not_fit_alone_is_an_error(make: Make) -> None:
    recipe = quick(make)
    images, label = problem(recipe)
    narrow, machine = Narrow(images, recipe, room=1), Machine(device="cpu", threads=1, block=2)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        trained(recipe, narrow, label, machine, halves(2))


def test_a_gpu_stacks_until_it_is_busy_or_a_quarter_of_it_is_full(make: Make) -> None:
    recipe = make(CNN, "full", batch_size=30)
    model = parts.network(recipe)
    plenty = stack_size(model, recipe, 64, 1 << 40)
    assert plenty == 60  # 0.01827 GFLOP per image, times 3 with the backward pass, batches of 30
    assert stack_size(model, recipe.model_copy(update={"batch_size": 1000}), 64, 1 << 40) == 1
    assert stack_size(model, recipe.model_copy(update={"batch_size": 10_000}), 64, 1 << 40) == 1
    each = 4 * sum(parameter.numel() for parameter in model.parameters()) * 4  # parameters, two gradients, momentum
    assert stack_size(model, recipe, 64, 4 * 5 * each) == 5
    assert stack_size(model, recipe, 64, 0) == 1
    few = make(CNN, "film", batch_size=30)
    assert stack_size(parts.network(few), few, 64, 4 * 5 * each) == plenty


def test_channels_last_is_for_depthwise_convolutions_on_a_cpu_and_all_on_a_gpu(make: Make) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    found = {name: parts.network(make(name, "film")) for name in (CNN, VIT, BIT)}
    assert layout(found[CNN], cpu) == layout(found[CNN], gpu) == layout(found[BIT], gpu) == torch.channels_last
    assert layout(found[BIT], cpu) == layout(found[VIT], cpu) == torch.contiguous_format


def test_copies_of_a_network_share_their_weights(make: Make) -> None:
    model = parts.network(make(CNN, "full"))
    other = shared_copy(model)
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(one.data_ptr() == another.data_ptr() for one, another in pairs)
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.modules()}


def test_evaluating_a_network_does_not_change_its_mode(make: Make) -> None:
    recipe = make(CNN, "full")
    model, (images, _) = parts.network(recipe), problem(recipe)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = network_logits(model, {}, images, Machine(device="cpu", threads=1))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.inference_mode():
        np.testing.assert_allclose(found, model.eval()(images.pixels).numpy(), rtol=1e-3, atol=1e-4)

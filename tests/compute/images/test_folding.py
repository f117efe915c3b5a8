"""BatchNorms are folded if and only if that leaves the function unchanged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from privacy_gate.compute.images import backbone
from privacy_gate.compute.images.folding import fold
from tests.norms import settled

timm = backbone.timm  # importable beside a CPU build of torch only after the gate's own imports


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def trial(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "size", "left"),
    [
        ("test_resnet", 32, 0),
        ("test_efficientnet", 32, 0),
        ("test_byobnet", 32, 0),
        ("tf_efficientnet_lite0", 64, 0),
        ("mobilenetv3_small_050", 64, 0),
        ("regnetx_002", 64, 0),
        ("densenet121", 64, 62),  # norms precede convolutions: most of their inputs have several readers
    ],
)
def test_a_folded_network_is_the_same_function(name: str, size: int, left: int) -> None:
    torch.manual_seed(0)
    model = settled(timm.create_model(name, num_classes=0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded, said = fold(model, trial(size))
    assert norms(folded) == left < norms(model)
    image = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(said, model(trial(size)))
        plain, found = model(image), folded(image)
        exact = model.double()(image.double())
        scale = exact.abs().max()
        doubled, _ = fold(model, trial(size, torch.float64))
        assert (doubled(image.double()) - exact).abs().max() < 1e-12 * scale
    assert (found - plain).abs().max() < 2e-5 * scale
    assert (found - exact).abs().max() < 2 * (plain - exact).abs().max() + 1e-6 * scale
    model.float()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_nfnet"])
def test_a_network_without_batchnorm_stays_itself(name: str) -> None:
    model = timm.create_model(name, num_classes=0).eval()
    assert fold(model, trial(160 if name == "test_vit" else 64))[0] is model


class Net(nn.Module):
    """A convolution and a BatchNorm, combined by a given function."""

    def __init__(self, how: Callable[[Any, torch.Tensor], torch.Tensor], convolution: nn.Module, norm: nn.Module):
        super().__init__()
        self.how, self.convolution, self.norm = how, convolution, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x).mean((2, 3))


class Doubled(nn.Conv2d):
    """A convolution that changes its weight before it convolves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, 2 * self.weight, self.bias)


def one_after_the_other(net: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = net.norm(net.convolution(x))
    return out


def around(net: Any, x: torch.Tensor) -> torch.Tensor:
    between = net.convolution(x)
    return net.norm(between) + 0.01 * between  # type: ignore[no-any-return]


def changed_in_place(net: Any, x: torch.Tensor) -> torch.Tensor:
    return one_after_the_other(net, x) if x is None else net.norm(net.convolution(x).relu_())  # type: ignore[no-any-return]


def twice(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.norm(net.convolution(x)) + net.convolution(x)  # type: ignore[no-any-return]


def normed_twice(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.norm(net.norm(net.convolution(x)))  # type: ignore[no-any-return]


def looked_into(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.norm(net.convolution(x)) * net.norm.weight.mean()  # type: ignore[no-any-return]


def pair(**settings: Any) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(3, 4, 3, **settings), nn.BatchNorm2d(4)


@pytest.mark.parametrize(
    ("convolution", "norm"),
    [
        pair(),
        pair(bias=False, padding=1, padding_mode="reflect"),
        (nn.Conv2d(3, 6, 3, groups=3, stride=2), nn.BatchNorm2d(6, affine=False)),
        (timm.layers.Conv2dSame(3, 4, 3, stride=2), timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU)),
    ],
)
def test_a_convolution_and_its_norm_become_one(convolution: nn.Module, norm: nn.Module) -> None:
    model = settled(Net(one_after_the_other, convolution, norm)).double()
    folded, _ = fold(model, trial(9, torch.float64))
    assert norms(folded) == 0
    torch.testing.assert_close(folded(trial(9, torch.float64)), model(trial(9, torch.float64)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", [around, changed_in_place, twice, normed_twice, looked_into])
def test_convolutions_with_other_readers_or_reused_modules_are_not_folded(
    how: Callable[[Any, torch.Tensor], torch.Tensor],
) -> None:
    model = settled(Net(how, *pair()))
    assert fold(model, trial(9))[0] is model


def test_subclasses_of_convolutions_and_norms_without_statistics_are_not_folded() -> None:
    for convolution, norm in (
        (Doubled(3, 4, 3), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
    ):
        model = settled(Net(one_after_the_other, convolution, norm))
        assert fold(model, trial(9))[0] is model


def test_a_folding_that_disagrees_on_the_trial_images_is_discarded() -> None:
    model = settled(Net(one_after_the_other, *pair()))
    assert fold(model, trial(9) * torch.nan)[0] is model

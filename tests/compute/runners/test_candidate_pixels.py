"""The accelerated candidate has the logits and gradients of the dossier's network."""

import pytest
import torch
from torch import nn

from privacy_gate.compute.images import backbone
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.runners.candidate_pixels import PixelModel, _scaled
from privacy_gate.dossier.backbone import Input
from tests.norms import settled

timm = backbone.timm
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def network(name: str, size: int) -> nn.Module:
    """A network with distinct factors and statistics in every BatchNorm."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **({"img_size": size} if "vit" in name else {}))
    return settled(model)


def asked(model: PixelModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the gradient of one logit with respect to the images."""
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), [leaf])
    return logits.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "tf_efficientnet_lite0", "test_convnext", "test_vit"]
)
def test_logits_and_gradients_are_the_plain_network_s(name: str, dtype: torch.dtype) -> None:
    size = 64
    plain = network(name, size).to(dtype)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    logits, gradient = asked(lambda shown: plain((shown - mean) / std), images)
    quick = _scaled(network(name, size).to(dtype), Input(size=size, mean=MEAN, std=STD), Machine(device="cpu"))
    found, slope = asked(quick, images)
    # In float32, an input near ReLU6's kink may fall on either side, which changes single gradients.
    bounds = (1e-12, 1e-12) if dtype == torch.float64 else (2e-5, 1e-2)
    for one, other, bound in ((found, logits, bounds[0]), (slope, gradient, bounds[1])):
        assert float((one - other).norm() / other.norm()) < bound

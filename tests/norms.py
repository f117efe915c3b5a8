"""Networks whose BatchNorms do something."""

import torch
from torch import nn


def settled(model: nn.Module) -> nn.Module:
    """The model in eval mode, each BatchNorm with statistics and factors of its own."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.3, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model.eval()

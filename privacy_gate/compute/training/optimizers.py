"""The recipe's optimiser: torch.optim's fused updates, called as functions.

torch.optim's classes spend more time on parameter groups and hooks than the update of a small head takes. The functions
behind them, such as torch.optim.adam.adam, compute the same updates.
"""

from collections.abc import Callable
from typing import assert_never

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from privacy_gate.dossier.optimizers import Adam, AdamW, Optimizer, Sgd

STATE = {"adam": 2, "adamw": 2, "sgd": 1}
"""Maximum number of state values per parameter, not counting the parameter and its gradient."""


def stepper(parameters: torch.Tensor, gradient: torch.Tensor, settings: Optimizer) -> Callable[[float], None]:
    """A function that takes one step with the given learning rate, in place, using the current contents of `gradient`.

    All updates are elementwise, so models stacked in one tensor stay independent of each other. The caller applies the
    schedule; settings.lr is not read.
    """
    match settings:
        case Adam():
            return _adaptive(adam, parameters, gradient, settings)
        case AdamW():
            return _adaptive(adamw, parameters, gradient, settings)
        case Sgd():
            return _sgd(parameters, gradient, settings)
    assert_never(settings)


def _adaptive(
    update: Callable[..., None], parameters: torch.Tensor, gradient: torch.Tensor, settings: Adam | AdamW
) -> Callable[[float], None]:
    mean, square = torch.zeros_like(parameters), torch.zeros_like(parameters)
    # The fused update counts its steps itself, in this tensor.
    steps = torch.zeros((), dtype=torch.float32, device=parameters.device)

    def step(lr: float) -> None:
        update(
            [parameters],
            [gradient],
            [mean],
            [square],
            [],
            [steps],
            fused=True,
            amsgrad=False,
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            lr=lr,
            weight_decay=settings.weight_decay,
            eps=settings.eps,
            maximize=False,
        )

    return step


def _sgd(parameters: torch.Tensor, gradient: torch.Tensor, settings: Sgd) -> Callable[[float], None]:
    momentum: list[torch.Tensor | None] = [None]  # torch creates the buffer in the first step

    def step(lr: float) -> None:
        sgd(
            [parameters],
            [gradient],
            momentum,
            fused=True,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=settings.nesterov,
            maximize=False,
        )

    return step

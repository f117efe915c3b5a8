"""The recipe's optimiser: torch.optim's own update, fused, without the upkeep of its classes.

torch.optim.Adam and its like spend more time on groups and hooks than the update of a small head takes;
torch.optim.adam.adam and its like are the same updates as functions.
"""

from collections.abc import Callable
from typing import assert_never

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from privacy_gate.dossier.optimizers import Adam, AdamW, Optimizer, Sgd

STATE = {"adam": 2, "adamw": 2, "sgd": 1}
"""Numbers kept per parameter beside itself and its gradient, at most."""


def stepper(parameters: torch.Tensor, gradient: torch.Tensor, settings: Optimizer) -> Callable[[float], None]:
    """A function that takes one step of the given learning rate, in place, with `gradient` as it then is.

    All updates are elementwise, so models stacked in one tensor stay independent of each other. The
    schedule is the caller's: settings.lr is not read.
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
    momentum: list[torch.Tensor | None] = [None]  # torch fills it in the first step

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

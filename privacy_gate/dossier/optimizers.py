"""Optimizers and learning rate schedules as recipes declare them; compute/training/optimizers.py implements them."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import Fraction, NonNegative, Positive, Record


class Adam(Record):
    """torch.optim.Adam: weight_decay is added to the gradient (L2)."""

    name: Literal["adam"]
    lr: Positive
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0


class AdamW(Record):
    """torch.optim.AdamW: weight_decay shrinks the weights directly (decoupled from the gradient)."""

    name: Literal["adamw"]
    lr: Positive
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01


class Sgd(Record):
    """torch.optim.SGD: weight_decay is added to the gradient (L2)."""

    name: Literal["sgd"]
    lr: Positive
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


Optimizer = Annotated[Adam | AdamW | Sgd, Field(discriminator="name")]


class Constant(Record):
    """A constant learning rate."""

    name: Literal["constant"] = "constant"

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor on lr in `epoch` (counted from 0) out of `epochs`."""
        return 1.0


class Cosine(Record):
    """Half a cosine over the epochs, from lr down to `floor` * lr, updated once per epoch."""

    name: Literal["cosine"]
    floor: Fraction = 0.0

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor on lr in `epoch` (counted from 0) out of `epochs`."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class Step(Record):
    """The learning rate is multiplied by `gamma` every `every` epochs."""

    name: Literal["step"]
    every: Annotated[int, Field(ge=1)]
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor on lr in `epoch` (counted from 0) out of `epochs`."""
        return self.gamma ** (epoch // self.every)


Schedule = Annotated[Constant | Cosine | Step, Field(discriminator="name")]

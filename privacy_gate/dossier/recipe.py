"""The training recipe of a candidate, with which reference models are trained the same way."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import Fraction, InDigest, NonNegative, Positive, Record
from privacy_gate.dossier.backbone import Backbone, Input
from privacy_gate.dossier.federation import Federation
from privacy_gate.dossier.optimizers import Constant, Optimizer, Schedule, Sgd
from privacy_gate.dossier.views import Augmentation, View


class Lora(Record):
    """Low-rank updates of linear layers: W + alpha/rank * up down (Hu et al. 2021, arXiv 2106.09685).

    targets  which linear layers of the transformer blocks get an update
    """

    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Positive = 1.0
    targets: Annotated[tuple[Literal["attention", "mlp"], ...], Field(min_length=1)] = ("attention",)


class Head(Record):
    """The last linear layer, and how its weights are initialised."""

    initial: Literal["zeros", "uniform"] = "zeros"


Adaptation = Literal["head", "film", "lora", "full", "scratch", "command"]
"""Which weights are trained:

head     the last layer
film     the last layer, and the scales and shifts of the norm layers
lora     the last layer, and low-rank updates of linear layers
full     every layer, starting from the public weights
scratch  every layer, starting from random weights
command  decided by the program that the policy names under `trainer`
"""


class DpSgd(Record):
    """Differentially private training: Abadi et al. 2016 (arXiv 1607.00133), as Opacus does it.

    Each step samples every example with probability batch_size / examples, clips its gradient to norm `clip`, adds
    Gaussian noise with standard deviation noise_multiplier * clip to the sum, and divides by batch_size.
    """

    noise_multiplier: NonNegative
    clip: Positive
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5


Precision = Literal["float32", "bfloat16"]
"""Precision of training: float32, or torch.autocast to bfloat16 with the weights kept in float32."""


class Recipe(Record):
    """How the candidate was trained. Its references are trained the same way."""

    backbone: Backbone
    input: Input | None = None
    classes: Annotated[int, Field(ge=2, le=100_000)]
    adaptation: Adaptation = "head"
    head: Head = Head()
    lora: Lora | None = None
    optimizer: Optimizer
    schedule: Schedule = Constant()
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=1)]
    label_smoothing: Fraction = 0.0
    augmentation: Augmentation | None = None
    federation: Federation | None = None
    privacy: DpSgd | None = None
    precision: Annotated[Precision, InDigest.IF_CHANGED] = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _input_matches_backbone(self) -> Self:
        if self.backbone.is_identity and self.input is not None:
            raise ValueError("backbone 'identity' reads embeddings, not images: remove input")
        if self.backbone.weights is None and not self.backbone.is_identity and self.adaptation != "scratch":
            raise ValueError("backbone needs weights: {uri: ..., sha256: ...}; only adaptation scratch works without")
        if not self.backbone.is_identity and self.input is None:
            raise ValueError("input is missing: {size: ..., mean: [...], std: [...]}")
        if self.backbone.is_identity and self.adaptation not in ("head", "command"):
            raise ValueError(f"adaptation '{self.adaptation}' trains a network; backbone 'identity' has none: use head")
        if (self.adaptation == "lora") != (self.lora is not None):
            raise ValueError("adaptation lora and the key lora go together: lora: {rank: 8, targets: [attention]}")
        if self.privacy is not None and self.federation is not None and self.adaptation != "command":
            raise ValueError(
                "privacy of single examples cannot be simulated in a federation: protect whole clients with "
                "federation: {privacy: {noise_multiplier: ..., clip: ...}}, or use adaptation command"
            )
        if self.precision != "float32" and (self.privacy is not None or not self.trains_network):
            raise ValueError("precision bfloat16 works only if a network is trained without privacy: remove it")
        if self.federation is not None and self.adaptation != "command":
            self._refuse_unsimulated_clients()
        if self.augmentation and (self.input is None or self.augmentation.shift >= self.input.size):
            raise ValueError("augmentation needs images larger than its shift: lower shift, or remove augmentation")
        return self

    def _refuse_unsimulated_clients(self) -> None:
        """Raises ValueError unless the clients train as the simulation does: from a zero head, with plain SGD."""
        plain = isinstance(self.optimizer, Sgd) and not self.optimizer.momentum
        if self.adaptation == "scratch" or not plain or self.schedule.name != "constant":
            raise ValueError(
                "federation is simulated only from public weights, with optimizer {name: sgd} without momentum and a "
                "constant schedule; otherwise use adaptation command: the policy's trainer then trains the references, "
                "and attacks, stress and updates are not measured for this federation"
            )
        if self.head.initial != "zeros" or self.label_smoothing or self.augmentation:
            raise ValueError(
                "federation is simulated only with head: {initial: zeros}, no label_smoothing and no augmentation"
            )
        clients = self.federation.clients.count if self.federation else None
        # If clients come from the table's column, their number is known only once the table is read. The same test is
        # then made in checks/base/federations.py.
        if self.federation and clients and (reason := self.federation.unmet(clients)):
            raise ValueError(f"federation: aggregator: {reason}")

    @property
    def side(self) -> int:
        """Side of the square input, pixels; 1 if the table holds embeddings."""
        return self.input.size if self.input else 1

    @property
    def trains_network(self) -> bool:
        """Whether the gate trains more than the head of such a model."""
        return self.adaptation not in ("head", "command")

    @property
    def views(self) -> tuple[View, ...]:
        """The views of an image used in training and in attack queries; the unchanged image comes first."""
        return self.augmentation.views if self.augmentation else (View(),)


class Trainer(Record):
    """A program that trains references if the gate cannot. Only a policy may name one, never a dossier.

    version  to be raised when the program changes; part of the digest of every result
    """

    command: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    version: Annotated[int, Field(ge=1)] = 1
    timeout_s: Annotated[float, Field(gt=0), InDigest.NEVER] = 3600.0


class CommandRecipe(Recipe):
    """A recipe, the program that the policy names to train it, and the audit table that the program reads.

    No file is parsed as this class. A dossier comes from a stranger and must not be able to start a program.
    """

    trainer: Trainer
    table: Annotated[str, InDigest.NEVER]

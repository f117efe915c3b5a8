"""How a candidate was trained, so that its siblings can be."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import Fraction, InDigest, NonNegative, Positive, Record
from privacy_gate.dossier.backbone import Backbone, Input
from privacy_gate.dossier.federation import Federation
from privacy_gate.dossier.optimizers import Constant, Optimizer, Schedule, Sgd
from privacy_gate.dossier.views import Augmentation, View


class Lora(Record):
    """Low-rank updates of linear layers: W + alpha/rank * up down (Hu et al. 2021, arXiv 2106.09685).

    targets  which linear layers of a transformer's blocks
    """

    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Positive = 1.0
    targets: Annotated[tuple[Literal["attention", "mlp"], ...], Field(min_length=1)] = ("attention",)


class Head(Record):
    """The last linear layer: how it starts."""

    initial: Literal["zeros", "uniform"] = "zeros"


Adaptation = Literal["head", "film", "lora", "full", "scratch", "command"]
"""What is trained: the last layer; it and the norm layers' scales and shifts; it and low-rank updates; everything,
from the public weights; everything, from random ones; what a program of the policy's trains."""


class DpSgd(Record):
    """Differentially private training: Abadi et al. 2016 (arXiv 1607.00133), as Opacus does it.

    Every step takes each example with probability batch_size / examples, cuts its gradient to norm `clip`, adds
    normal noise of `noise_multiplier` * clip to the sum, and divides by batch_size.
    """

    noise_multiplier: NonNegative
    clip: Positive
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5


Precision = Literal["float32", "bfloat16"]
"""How a network is trained: in float32, or under torch.autocast to bfloat16, its weights kept in float32."""


class Recipe(Record):
    """How the candidate was made; its references are made the same way."""

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
            raise ValueError("backbone needs weights: {uri: ..., sha256: ...}; only scratch goes without")
        if not self.backbone.is_identity and self.input is None:
            raise ValueError("input is missing: {size: ..., mean: [...], std: [...]}")
        if self.backbone.is_identity and self.adaptation not in ("head", "command"):
            raise ValueError(f"adaptation '{self.adaptation}' trains a network; backbone 'identity' has none: use head")
        if (self.adaptation == "lora") != (self.lora is not None):
            raise ValueError("adaptation lora and its settings go together: lora: {rank: 8, targets: [attention]}")
        if self.privacy is not None and self.federation is not None and self.adaptation != "command":
            raise ValueError(
                "privacy is not simulated in a federation example by example: protect whole clients by "
                "federation: {privacy: {noise_multiplier: ..., clip: ...}}, or use adaptation command"
            )
        if self.precision != "float32" and (self.privacy is not None or not self.trains_network):
            raise ValueError("precision bfloat16 is of networks trained without privacy: remove it")
        if self.federation is not None and self.adaptation != "command":
            self._refuse_what_clients_do_not()
        if self.augmentation and (self.input is None or self.augmentation.shift >= self.input.size):
            raise ValueError("augmentation needs images, larger than its shift: correct it or remove it")
        return self

    def _refuse_what_clients_do_not(self) -> None:
        """A federation is simulated with plain SGD at the clients, and nothing else is passed off as it."""
        plain = isinstance(self.optimizer, Sgd) and not self.optimizer.momentum
        if self.adaptation == "scratch" or not plain or self.schedule.name != "constant":
            raise ValueError(
                "federation is simulated from public weights, with optimizer {name: sgd} without momentum and a "
                "constant schedule; for another use adaptation command: a program of the policy's then trains the "
                "references, and what attacks, stress and updates do to its federation is not measured"
            )
        if self.head.initial != "zeros" or self.label_smoothing or self.augmentation:
            raise ValueError("federation is simulated from a head of zeros, without label smoothing or augmentation")
        clients = self.federation.clients.count if self.federation else None
        # As many as a table's column names are asked about once it is read: see checks.federations.
        if self.federation and clients and (reason := self.federation.unmet(clients)):
            raise ValueError(f"federation: aggregator: {reason}")

    @property
    def side(self) -> int:
        """Pixels of the input's side; 1 where the table holds embeddings."""
        return self.input.size if self.input else 1

    @property
    def trains_network(self) -> bool:
        """Whether the gate trains more of such a model than its head."""
        return self.adaptation not in ("head", "command")

    @property
    def views(self) -> tuple[View, ...]:
        """How training shows an image, and how attacks query the model; the image as it stands first."""
        return self.augmentation.views if self.augmentation else (View(),)


class Trainer(Record):
    """A program that trains references where the gate cannot. Policies name it, dossiers never do.

    version  raised when the program changes: part of the name of every result
    """

    command: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    version: Annotated[int, Field(ge=1)] = 1
    timeout_s: Annotated[float, Field(gt=0), InDigest.NEVER] = 3600.0


class CommandRecipe(Recipe):
    """A recipe with the program that a policy names for it, and the audit table the program reads.

    No file is ever loaded as this: a dossier cannot name a program.
    """

    trainer: Trainer
    table: Annotated[str, InDigest.NEVER]

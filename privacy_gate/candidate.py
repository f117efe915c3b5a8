"""The model version under judgement, and its recipe: how it was trained, so that siblings can be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.dataset import DataManifest
from privacy_gate.documents import Record
from privacy_gate.federation import Federation

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


class PublicWeights(Record):
    """Where the backbone's public weights lie (a path or any fsspec URL) and what they are.

    licence  what they may be used under, in the producer's words: shown, never judged
    """

    uri: Annotated[str, Field(min_length=1)]
    sha256: Sha256
    licence: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class Backbone(Record):
    """A timm architecture with its public weights, if it has any; or `identity`: the table holds its features."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    weights: PublicWeights | None = None

    @property
    def is_identity(self) -> bool:
        return self.name == "identity"

    @model_validator(mode="after")
    def _weights_match_name(self) -> Self:
        if self.is_identity and self.weights is not None:
            raise ValueError("backbone 'identity' has no weights: remove them")
        return self


class Input(Record):
    """How an image becomes the backbone's input: timm's evaluation transform."""

    size: Annotated[int, Field(ge=16, le=2048)]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0


TriggerName = Literal["corner", "grid", "blended", "sinusoid"]
"""Known backdoor triggers: see compute.stamps."""


class View(Record):
    """One way an image is shown: mirrored left to right or not, then moved down and right by so many pixels.

    Pixels are those of the backbone's input; what moves in repeats the edge. A trigger is put on what is then seen.
    """

    flip: bool = False
    down: int = 0
    right: int = 0
    trigger: TriggerName | None = None


class Augmentation(Record):
    """Views that training shows: every example is seen in one of them, drawn afresh and evenly each epoch.

    flip   mirrored images too
    shift  images moved by so many pixels of the input up, down, left and right too
    """

    flip: bool = False
    shift: Annotated[int, Field(ge=0, le=256)] = 0

    @model_validator(mode="after")
    def _shows_something_new(self) -> Self:
        if not self.flip and not self.shift:
            raise ValueError("augmentation needs flip: true or a shift above 0; without either remove it")
        return self

    @property
    def views(self) -> tuple[View, ...]:
        """All views, the image as it stands first."""
        s = self.shift
        moves = ((0, 0), (-s, 0), (s, 0), (0, -s), (0, s)) if s else ((0, 0),)
        mirrored = (False, True) if self.flip else (False,)
        return tuple(View(flip=flip, down=down, right=right) for flip in mirrored for down, right in moves)


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


class Adam(Record):
    """torch.optim.Adam: weight_decay is added to the gradient (L2)."""

    name: Literal["adam"]
    lr: Positive
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0


class AdamW(Record):
    """torch.optim.AdamW: weight_decay shrinks the weights, apart from the gradient."""

    name: Literal["adamw"]
    lr: Positive
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01


class Sgd(Record):
    """torch.optim.SGD."""

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
    """The learning rate stays."""

    name: Literal["constant"] = "constant"

    def factor(self, epoch: int, epochs: int) -> float:
        """What multiplies lr in `epoch` (counted from 0) of `epochs`."""
        return 1.0


class Cosine(Record):
    """Half a cosine over the epochs, from lr to `floor` * lr, stepped once an epoch."""

    name: Literal["cosine"]
    floor: Fraction = 0.0

    def factor(self, epoch: int, epochs: int) -> float:
        """What multiplies lr in `epoch` (counted from 0) of `epochs`."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class Step(Record):
    """The learning rate is multiplied by `gamma` every `every` epochs."""

    name: Literal["step"]
    every: Annotated[int, Field(ge=1)]
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    def factor(self, epoch: int, epochs: int) -> float:
        """What multiplies lr in `epoch` (counted from 0) of `epochs`."""
        return self.gamma ** (epoch // self.every)


Schedule = Annotated[Constant | Cosine | Step, Field(discriminator="name")]


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
    precision: Precision = "float32"
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
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0


class CommandRecipe(Recipe):
    """A recipe with the program that a policy names for it, and the audit table the program reads.

    No file is ever loaded as this: a dossier cannot name a program.
    """

    trainer: Trainer
    table: str


class Claim(Record):
    """What the producer says of differential privacy: adding or removing one example changes this much at most.

    mechanism  how it was reached, in the producer's words
    """

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    mechanism: Annotated[str, Field(max_length=500)] = ""


class Dossier(Record):
    """What the producer attaches to a candidate."""

    recipe: Recipe
    data: DataManifest
    claim: Claim | None = None


@dataclass(frozen=True)
class Candidate:
    """A pinned model version whose bytes lie in a private folder.

    uri      as the user wrote it; name, version, alias, run_id, model_id as the registry says
             (untrusted text)
    folder   the downloaded artifact, every file checked and hashed
    digest   sha256 over the sorted (path, size, sha256) of its files
    logged   metrics the training run logged, by name
    rounds   folder of the round log of its federation, and its digest (see roundlog); None where there is none, or
             nobody asked
    """

    uri: str
    name: str
    version: str
    folder: Path
    digest: str
    dossier: Dossier
    alias: str | None = None
    run_id: str | None = None
    model_id: str | None = None
    logged: Mapping[str, float] = field(default_factory=dict)
    rounds: Path | None = None
    rounds_digest: str | None = None

    @property
    def recipe(self) -> Recipe:
        return self.dossier.recipe

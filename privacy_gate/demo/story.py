"""The demo: an embedded registry, real images, a model that leaks, a model that does not, and a federated model."""

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.compute.images.backbone import assemble
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.machine.numerics import numerics
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs, Work
from privacy_gate.demo.packaged import LITE0_LICENCE, lite0_weights, mnist_table, policy_path
from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.dataset import AuditData, Columns, DataManifest, Split, describe_table, read_data
from privacy_gate.dossier.federation import Federation
from privacy_gate.dossier.optimizers import Adam, Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.roundlog import Round
from privacy_gate.errors import BLOCKED, ConfigurationError
from privacy_gate.gate import steps as gate
from privacy_gate.gate.case import Request
from privacy_gate.jobs.kinds import embed_jobs
from privacy_gate.progress import Progress
from privacy_gate.registry import producer
from privacy_gate.store import Store
from privacy_gate.verdict.report import Report

INPUT = Input(size=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Digits:
    """An audit table of handwritten digits."""

    members_per_class: int
    holdout: int
    population: int

    @property
    def file_name(self) -> str:
        return f"digits-{self.members_per_class}.parquet"


@dataclass(frozen=True)
class Story:
    """One model of the demo: its images, its training, the policy that judges it, and the expected exit code."""

    name: str
    title: str
    digits: Digits
    optimizer: Adam | Sgd
    epochs: int
    batch_size: int
    federation: Federation | None = None
    policy: str = "baseline"
    exit_code: int = 0


LOGGED = 6
"""One out of this many rounds of the federation is logged."""

HASTY = Adam(name="adam", lr=1e-3)
CAREFUL = Sgd(name="sgd", lr=3e-3, momentum=0.9)

FEW, MANY = Digits(10, 1500, 500), Digits(250, 2000, 500)

STORIES = (
    Story("digits-hasty", "ten images per class, a hundred epochs", FEW, HASTY, 100, 16, exit_code=BLOCKED),
    Story(
        "digits-careful",
        "250 images per class, one epoch, all probabilities released",
        MANY,
        CAREFUL,
        1,
        32,
        exit_code=BLOCKED,
    ),
    Story(
        "digits-labels", "the same head, of which users receive the label alone", MANY, CAREFUL, 1, 32, policy="labels"
    ),
    Story(
        "digits-federated",
        "the same images at ten sites, aggregated by plain averaging",
        MANY,
        Sgd(name="sgd", lr=0.03),
        1,
        32,
        Federation(rounds=60, steps=1),
        "federated",
        exit_code=BLOCKED,
    ),
)


@dataclass(frozen=True)
class Home:
    """The demo's folder, and the registry in it (tracking URI, and id of an experiment)."""

    folder: Path
    tracking: str
    experiment: str

    @property
    def store(self) -> str:
        return str(self.folder / "store")


@dataclass(frozen=True)
class Outcome:
    """The gate's decision on one model.

    lines     output lines, among them the paths of the report
    expected  exit code that the story expects
    """

    title: str
    report: Report
    lines: list[str]
    expected: int


def run_demo(folder: Path, now: datetime.datetime, progress: Progress) -> list[Outcome]:
    """Registers the models in a fresh SQLite registry, and judges each by its policy from policies/."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty; delete it, or name a fresh folder with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    weights = lite0_weights(folder)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    public = PublicWeights(uri=str(weights.resolve()), sha256=sha256, licence=LITE0_LICENCE)
    backbone = Backbone(name="tf_efficientnet_lite0", weights=public)
    home = Home(folder.resolve(), *producer.embedded(folder.resolve()))
    return [_gate(story, backbone, home, now, progress) for story in STORIES]


def _gate(story: Story, backbone: Backbone, home: Home, now: datetime.datetime, progress: Progress) -> Outcome:
    """Trains, registers and judges one model, as two separate teams would. The gate sees only the registry."""
    recipe = Recipe(
        backbone=backbone,
        input=INPUT,
        classes=10,
        optimizer=story.optimizer,
        epochs=story.epochs,
        batch_size=story.batch_size,
        federation=story.federation,
        seed=7,
    )
    digits = story.digits
    table = home.folder / digits.file_name
    if not table.exists():
        mnist_table(table, digits.members_per_class, digits.holdout, digits.population)
    manifest = describe_table(str(table), Columns(image="image", client="client"))
    uri = _produce(story, recipe, manifest, home, progress)
    output = home.folder / f"report-{story.name}"
    report, files, _ = gate.check(
        Request(uri, policy_path(story.policy), home.store, home.tracking),
        output=output,
        machine=Machine(),
        now=now,
        progress=progress,
    )
    lines = gate.decide(report, output, tracking_uri=home.tracking, expect_current=None, dry_run=False)
    output_lines = [*lines, *(f"report: {path}" for path in files)]
    return Outcome(f"{story.name}: {story.title}", report, output_lines, story.exit_code)


def _produce(story: Story, recipe: Recipe, manifest: DataManifest, home: Home, progress: Progress) -> str:
    """The work of the model's team: train, log, attach the dossier. Returns the version's URI."""
    data = read_data(manifest, recipe.classes)
    # The gate reuses these features from the store, so each image goes through the backbone only once.
    inputs, machine = Inputs(data, home.folder), Machine()
    store = Store(home.store).made_by(numerics(machine))
    run(embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows), inputs, machine, store, progress)
    features = Work(inputs, machine, store).features(recipe.backbone, recipe.input)
    members, log = data.split == Split.MEMBER, list[Round]()
    if recipe.federation is None or data.client is None:
        weight, bias = _fit(features[members], data.label[members], recipe)
    else:
        weight, bias, log = _average(features[members], data.label[members], data.client[members], recipe)
    model = assemble(recipe, weight, bias)
    metrics = {f"{split.name.lower()}_accuracy": _accuracy(features, data, split, weight, bias) for split in
               (Split.HOLDOUT, Split.MEMBER)}  # fmt: skip
    return producer.register(model, story.name, recipe, manifest, metrics, home.tracking, home.experiment, log)


def _fit(features: NDArray[np.float32], label: NDArray[np.int64], recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """A plain training loop that shares no code with the gate's own. Returns weight (C, D) and bias (C,)."""
    generator = torch.Generator().manual_seed(recipe.seed)
    x, y = torch.from_numpy(features), torch.from_numpy(label)
    head = torch.nn.Linear(x.shape[1], recipe.classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    settings = recipe.optimizer.model_dump(exclude={"name"})
    optimizer = kinds[recipe.optimizer.name](head.parameters(), **settings)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator)
        for first in range(0, len(x), recipe.batch_size):
            batch = order[first : first + recipe.batch_size]
            optimizer.zero_grad()
            loss: Any = torch.nn.functional.cross_entropy(head(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
    return head.weight.detach(), head.bias.detach()


def _average(
    features: NDArray[np.float32], label: NDArray[np.int64], client: NDArray[np.str_], recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor, list[Round]]:
    """Plain federated averaging: in each round every client takes one step on a batch of its images.

    Returns weight (C, D), bias (C,), and every LOGGED-th round for the round log, which includes the last round.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    holders = {str(name): torch.from_numpy(np.flatnonzero(client == name)) for name in np.unique(client)}
    x, y = torch.from_numpy(features), torch.from_numpy(label)
    head = torch.zeros(recipe.classes, x.shape[1] + 1)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)  # the last column makes the bias part of the head
    log, examples = [], {name: len(rows) for name, rows in holders.items()}
    for turn in range(1, 1 + (recipe.federation.rounds if recipe.federation else 0)):
        updates = {}
        for name, rows in holders.items():
            batch = rows[torch.randperm(len(rows), generator=generator)[: recipe.batch_size]]
            # The gradient of the cross-entropy of a linear head, in closed form.
            error = (x[batch] @ head.T).softmax(1) - torch.nn.functional.one_hot(y[batch], recipe.classes)
            updates[name] = -recipe.optimizer.lr * error.T @ x[batch] / len(batch)
        if turn % LOGGED == 0:
            log.append(Round(turn, _named(head), {name: _named(update) for name, update in updates.items()}, examples))
        head += sum(examples[name] / len(x) * update for name, update in updates.items())
    return head[:, :-1].clone(), head[:, -1].clone(), log


def _named(head: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """A head (C, D + 1), with the bias in the last column, as tensors of the round log."""
    return {"weight": head[:, :-1].numpy().copy(), "bias": head[:, -1].numpy().copy()}


def _accuracy(
    features: NDArray[np.float32], data: AuditData, split: Split, weight: torch.Tensor, bias: torch.Tensor
) -> float:
    rows = data.split == split
    predicted = (torch.from_numpy(features[rows]) @ weight.T + bias).argmax(1).numpy()
    return float((predicted == data.label[rows]).mean())

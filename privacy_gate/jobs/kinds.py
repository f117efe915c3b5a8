"""Jobs as plain data: what is computed, never how fast. The digest of a job names its stored result."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from privacy_gate.documents import InDigest
from privacy_gate.dossier.backbone import Backbone, Input
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View

EMBED_ROWS = 256
"""Rows of the audit table embedded by one Embed job, so the most that a killed run can lose."""

EMBED_BLOCK = 8
"""Embed jobs in one batch: 2,048 images, seconds of work for a GPU. Sending a task takes a fraction of a second."""

REFERENCE_BLOCK = 16
"""References in one batch; they train stacked."""


Keeps = tuple[Literal["head", "span"], ...]
"""What is kept of a model's weights besides its answers: a head whole, of a network its gradient span."""


class Job:
    """One unit of computation, with one stored result.

    To add a kind, write a frozen dataclass of its fields that derives from this class, in a file here, and a line in
    compute.run.RUNNERS with the function that computes it.

    The names of the class and of its fields are part of the digest: no two kinds may share a name, and none may be
    renamed. A field that is added to a kind with stored results needs a default and the annotation
    InDigest.IF_CHANGED. Jobs with a field `artifact` read the files of the model with that digest; jobs with a field
    `rounds` read its round log.
    """

    revision: ClassVar[int] = 0
    """Part of the digest if it is above 0; raised if the meaning of the kind's results changes."""

    @property
    def batch(self) -> Hashable:
        """Jobs of one kind with equal `batch` are computed together: by one shard, as one task.

        It depends only on the job's own fields, never on which other jobs exist. By default each job is on its own.
        """
        return self


@dataclass(frozen=True)
class Embed(Job):
    """Features of the frozen public backbone for rows first <= i < last of the audit table.

    Result: features (last - first, D) float32; content (last - first, 32) uint8, the sha256 of each encoded image,
    which reveals examples that occur twice.
    """

    revision: ClassVar[int] = 1

    backbone: Backbone
    input: Input
    view: View
    dataset: str
    first: int
    last: int

    @property
    def batch(self) -> Hashable:
        """Blocks of rows in one view."""
        return self.backbone, self.input, self.view, self.first // (EMBED_BLOCK * EMBED_ROWS)


@dataclass(frozen=True)
class Score(Job):
    """The candidate's output on every row of the audit table.

    Result: logits (N, C) float32 for the unchanged image; confidence (N,) float32, log p_y - log(1 - p_y) in nats, the
    mean over the recipe's views. If `keeps` asks for them: head (C, D + 1) float32, bias last; span (N,)
    float32, see compute.training.spans.
    """

    artifact: str
    recipe: Recipe
    dataset: str
    keeps: Annotated[Keeps, InDigest.IF_CHANGED] = ()


@dataclass(frozen=True)
class TrainReference(Job):
    """Reference model `index`: trained as the recipe says, on its own share of the pool.

    The recipe's seed belongs to the candidate and is not used: see `train_reference`. A divisor above 1 shrinks the
    pool, class by class, to that part of its rows. Smaller pools are nested in larger ones, and the share that each
    reference trains on stays the same. The rows in `without`, ascending, are removed from the pool first.

    Result, on every row: confidence (N,) float32, log p_y - log(1 - p_y) in nats, the mean over the recipe's views;
    residual (N,) float32, the norm of p - onehot(y); correct (N,) bool, whether the label has the largest logit;
    included (N,) bool, the rows it was trained on. Index 0 adds logits (N, C) float32. If the recipe has DP-SGD, or its
    federation has privacy of clients, and Opacus is installed, index 0 adds epsilon (1,). If `keeps` asks for them:
    head (C, D + 1) float32, bias last, 4 C (D + 1) bytes; span (N,) float32, see compute.training.spans.
    """

    recipe: Recipe
    dataset: str
    index: int
    divisor: int = 1
    without: tuple[int, ...] = ()
    keeps: Annotated[Keeps, InDigest.IF_CHANGED] = ()

    @property
    def batch(self) -> Hashable:
        """Blocks of indices."""
        # A program trains one reference at a time and may take hours, so a batch of several would gain nothing.
        block = 1 if self.recipe.adaptation == "command" else REFERENCE_BLOCK
        return self.recipe, self.divisor, self.without, self.keeps, self.index // block


@dataclass(frozen=True)
class TrainControl(Job):
    """The positive control: models that memorise random labels, on the audit's own features.

    Result: see compute.control.train_control. If `keeps` asks for it, also head (TWINS, SIDES, D + 1) float32.
    """

    backbone: Backbone
    input: Input | None
    dataset: str
    keeps: Annotated[Keeps, InDigest.IF_CHANGED] = ()


Stress = tuple[Literal["gone", "absent", "stale"], float]


@dataclass(frozen=True)
class Federate(Job):
    """The recipe's federation from the start, on the members, with attacking clients if there is an adversary.

    adversary  a name from simulation.adversaries, or None; the last `byzantine` clients attack. The trigger of a
               backdoor is that of PLANTED
    seed       of the clients' data and of the order of batches
    stress     a failure without an attacker, and the share that it affects: see simulation.cells.Training

    Result: accuracy (1,) on the holdout, class_accuracy (C,), client_accuracy (K,), and hit (T,) float32, how far
    the model is right on each holdout row, ascending; all are means over the last tenth of the rounds. Also curve
    and rounds (R,); heterogeneity (1,), the mean total variation distance of the clients' classes from those of all;
    and sizes (K,). If heads are trained, also head (C, D + 1) float32 after the last round, bias last. If a backdoor is
    planted, also backdoor (2, T') float32: how far the last head predicts the backdoor's target for holdout rows of
    other classes, ascending, with the trigger and without; absent if there is no such row.
    """

    revision: ClassVar[int] = 1

    recipe: Recipe
    dataset: str
    adversary: str | None
    byzantine: int
    seed: int
    stress: Annotated[Stress | None, InDigest.IF_CHANGED] = None

    @property
    def batch(self) -> Hashable:
        """Federations that differ only in their seed train stacked if they train heads."""
        return self if self.recipe.trains_network else (self.recipe, self.adversary, self.byzantine, self.stress)


PLANTED = View(trigger="corner")
"""How clients that plant a backdoor alter their images."""


def federate(
    recipe: Recipe, dataset: str, adversary: str | None, byzantine: int, seed: int, stress: Stress | None = None
) -> Federate:
    """The job; a candidate retrained with another seed has the same one."""
    # Seed 0 stands for every seed of the recipe: Federate has its own.
    return Federate(recipe.model_copy(update={"seed": 0}), dataset, adversary, byzantine, seed, stress)


def screening(recipe: Recipe) -> Recipe:
    """The same federation with heads on the frozen backbone: cheap enough to try every attack and rule."""
    return recipe.model_copy(update={"adaptation": "head", "lora": None, "precision": "float32", "seed": 0})


@dataclass(frozen=True)
class Confirm(Job):
    """A federation that trains a network, under the attack that harms its `screening` most, by mean accuracy over
    `seeds` seeds.

    attacks  names of the screened attacks

    Result: accuracy (1,) and hit (T,) as for Federate; attack (1,) int64, the index of the attack in `attacks`.
    """

    revision: ClassVar[int] = 1

    recipe: Recipe
    dataset: str
    attacks: tuple[str, ...]
    byzantine: int
    seed: int
    seeds: int


@dataclass(frozen=True)
class Probe(Job):
    """A head trained in one place on some of the table's rows, in the same way and as long as the recipe's clients
    train.

    rows  "member": all members, as in centralised fine-tuning; "population": shows what the frozen backbone gives to
          any head; or "client:NAME": that client only

    Result: logits (N, C) float32 on every row.
    """

    recipe: Recipe
    dataset: str
    rows: str

    @property
    def batch(self) -> Hashable:
        """All heads of a recipe train stacked."""
        return self.recipe


def probe(recipe: Recipe, dataset: str, rows: str) -> Probe:
    """The job; a candidate retrained with another seed has the same one."""
    return Probe(recipe.model_copy(update={"seed": 0}), dataset, rows)


@dataclass(frozen=True)
class Trigger(Job):
    """The candidate's predictions for some rows with a backdoor's trigger, or a similar pattern, on their images; see
    compute.stamps.

    Result: predicted (1 + K, R) int64, the class with the largest logit for each of `rows`, ascending: first with the
    trigger, then with each of its K controls.
    """

    revision: ClassVar[int] = 1

    artifact: str
    recipe: Recipe
    dataset: str
    trigger: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Invert(Job):
    """A server's reconstruction from clients' updates in the first round of a federation: see compute.invert.

    Targets first <= i < last. Each is a row of a separate update, to be identified among itself and candidates - 1 rows
    of its class that no client trained on.
    attack  analytic | optimised

    Result, one value per target: hit, bool, whether the true row is the most similar to the reconstruction; cosine,
    between the two; mixed, int64, rows in the update; alike, int64, rows of the target's class in it; near, the share
    of decoys that belong to the target's client; refined, bool, whether the update was small enough to optimise.
    """

    revision: ClassVar[int] = 1

    recipe: Recipe
    dataset: str
    attack: str
    candidates: int
    seed: int
    first: int
    last: int


@dataclass(frozen=True)
class InvertTrigger(Job):
    """The smallest trigger found that makes the candidate predict `target`: see compute.trigger_inversion.

    rows   images to search on, ascending; those of the target's own class are left out
    tried  images to try the trigger on, ascending

    Result: works (1,) bool, whether any mask worked; size (1,) float64, share of the image under the smallest soft
    mask, 1 if none worked; mask (S, S) bool and pattern (3, S, S) uint8, the trigger with a hard mask; predicted (T,)
    int64, the class with the largest logit for each of `tried` with that trigger.
    """

    revision: ClassVar[int] = 1

    artifact: str
    recipe: Recipe
    dataset: str
    target: int
    rows: tuple[int, ...]
    tried: tuple[int, ...]
    steps: int


@dataclass(frozen=True)
class Evade(Job):
    """Whether the candidate is still right under the worst small change of each image: see compute.evasion.

    levels   largest change of a pixel, out of 255
    steps    of each attack
    targets  classes that the targeted attack tries, the most likely first

    Result, all (R,) bool, for each of `rows`: right, on the unchanged image; untargeted, right under APGD on the cross
    entropy; standing, right under APGD-T as well. Signs of masked gradients: guessed, wrong under random changes of the
    same size; wide, right under changes that no model withstands; flat, right with a gradient of 0.
    """

    revision: ClassVar[int] = 2

    artifact: str
    recipe: Recipe
    dataset: str
    rows: tuple[int, ...]
    levels: float
    steps: int
    targets: int


@dataclass(frozen=True)
class Universal(Job):
    """One change for all images, crafted on the public backbone and a linear probe of `rows`: see compute.evasion.

    tried   images to try it on, ascending, none of `rows`
    levels  largest change of a pixel, out of 255

    Result, all (T,) int64: the class predicted by the candidate without the change (predicted_plain), with it
    (predicted_shifted), and with random signs of the same size (predicted_noise); and by the probe, probe_plain and so
    on.
    """

    revision: ClassVar[int] = 1

    artifact: str
    recipe: Recipe
    dataset: str
    rows: tuple[int, ...]
    tried: tuple[int, ...]
    levels: float
    steps: int


@dataclass(frozen=True)
class Corrupt(Job):
    """The candidate's predictions for rows with corrupted images: see compute.corruptions.

    Result: predicted (R,) int64, the class with the largest logit for each of `rows`, ascending.
    """

    artifact: str
    recipe: Recipe
    dataset: str
    rows: tuple[int, ...]
    corruption: str
    severity: int


@dataclass(frozen=True)
class Trajectory(Job):
    """The membership evidence of every row in the candidate's round log: see simulation.leaks.trajectory.

    rounds  digest of the log

    Result: z (2, N, K) float32, by signal, row and client of the log; client (K,), the index of each among the table's
    clients, sorted by name, or -1; seen (K,), number of rounds in which each took part; rounds (1,), number of rounds
    read; distance (1,), from the end of the log to the candidate's head, in lengths of that head.
    """

    artifact: str
    recipe: Recipe
    dataset: str
    rounds: str


def train_reference(
    recipe: Recipe, dataset: str, index: int, divisor: int = 1, without: tuple[int, ...] = (), keeps: Keeps = ()
) -> TrainReference:
    """The job of reference `index`; a candidate retrained with another seed has the same one."""
    # Seed 0 stands for every seed of the recipe: the index decides the reference's draws.
    return TrainReference(recipe.model_copy(update={"seed": 0}), dataset, index, divisor, without, keeps)


def embed_jobs(
    backbone: Backbone, shape: Input | None, dataset: str, rows: int, views: Sequence[View] = (View(),)
) -> list[Embed]:
    """The Embed jobs that cover `rows` rows in every view: view by view, each in row order.

    Empty for the identity backbone, which has no input.
    """
    if shape is None:
        return []
    return [
        Embed(backbone, shape, view, dataset, first, min(first + EMBED_ROWS, rows))
        for view in views
        for first in range(0, rows, EMBED_ROWS)
    ]

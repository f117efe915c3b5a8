"""Work as plain data: what is computed, never how fast. The digest of a job names its stored result."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from privacy_gate.documents import InDigest
from privacy_gate.dossier.backbone import Backbone, Input
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View

EMBED_ROWS = 256
"""Rows of the audit table embedded by one Embed job: what a killed run can lose."""

EMBED_BLOCK = 8
"""Embed jobs in one batch: 2,048 images, which take a GPU some seconds. Sending a task takes a fraction of a second."""

REFERENCE_BLOCK = 16
"""References in one batch, which train stacked."""


Keeps = tuple[Literal["head", "span"], ...]
"""What is kept of a model's weights besides its answers: a head whole, of a network its gradient span."""


class Job:
    """One task of computing, with one stored result. To add a kind, write a frozen dataclass of its fields that derives
    from this class, in a file here, and a line in compute.run.RUNNERS that names the function that computes it.

    The names of the class and of its fields are part of the digest: no two kinds share a name, and none is renamed. A
    field that is added to a kind whose results are stored already has a default, and is annotated with
    InDigest.IF_CHANGED. Jobs with a field `artifact` read the files of the model with that digest, those with a field
    `rounds` its round log.
    """

    revision: ClassVar[int] = 0
    """Part of the digest if it is above 0; raised when the meaning of the kind's results changes."""

    @property
    def batch(self) -> Hashable:
        """Jobs of one kind whose `batch` is equal are computed together: by one shard, as one task.

        It depends on the job's fields alone, never on which other jobs there are. By default each job is by itself.
        """
        return self


@dataclass(frozen=True)
class Embed(Job):
    """Features of the frozen public backbone for rows first <= i < last of the audit table.

    Result: features (last - first, D) float32; content (last - first, 32) uint8, the sha256 of each
    encoded image, by which examples that stand twice are found.
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

    Result: logits (N, C) float32, of the image as it stands; confidence (N,) float32, log p_y - log(1 - p_y)
    in nats, the mean over the recipe's views. If `keeps` asks for them: head (C, D + 1) float32, bias last; span (N,)
    float32, see compute.training.spans.
    """

    artifact: str
    recipe: Recipe
    dataset: str
    keeps: Annotated[Keeps, InDigest.IF_CHANGED] = ()


@dataclass(frozen=True)
class TrainReference(Job):
    """Reference model `index`: trained as the recipe says on its own share of the pool.

    The recipe's seed is the candidate's own and takes no part: see `train_reference`. A divisor
    above 1 shrinks the pool, class by class, to that part of its rows: the smaller pools are
    nested in the larger, and the share that each reference is trained on stays. Rows of `without`,
    ascending, are taken out of the pool first.
    Result, on every row: confidence (N,) float32, log p_y - log(1 - p_y) in nats, the mean over the recipe's
    views; residual (N,) float32, the norm of p - onehot(y); correct (N,) bool, whether the largest logit is
    the label's; included (N,) bool, the rows it was trained on; and for index 0 logits (N, C) float32, and
    epsilon (1,) where the recipe has DP-SGD, or its federation privacy of clients, and Opacus is installed. If `keeps`
    asks for them: head (C, D + 1) float32, bias last, 4 C (D + 1) bytes; span (N,) float32, see compute.training.spans.
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
    """The positive control: models that learn labels of dice by heart, on the audit's own features.

    Result: see compute.control.train_control. If `keeps` asks for it, also head (TWINS, SIDES, D + 1) float32.
    """

    backbone: Backbone
    input: Input | None
    dataset: str
    keeps: Annotated[Keeps, InDigest.IF_CHANGED] = ()


Stress = tuple[Literal["gone", "absent", "stale"], float]


@dataclass(frozen=True)
class Federate(Job):
    """The recipe's federation from the start, on the members, perhaps with clients that attack it.

    adversary  by name (federated.adversaries), or None; the last `byzantine` clients attack. A backdoor's trigger is
               that of PLANTED
    seed       who holds what, and the order of batches
    stress     what goes wrong without anybody's will, and for what share: see federated.cells.Training

    Result: accuracy (1,) on the holdout, class_accuracy (C,), client_accuracy (K,) and hit (T,) float32, the share of
    being right of each holdout row, ascending, all means over the last tenth of the rounds; curve and rounds (R,);
    heterogeneity (1,), mean total variation distance of the clients' classes from everyone's; sizes (K,); and where
    heads are trained head (C, D + 1) float32 as the last round left it, bias last. Where a backdoor is planted also
    backdoor (2, T') float32: which holdout rows of other classes, ascending, the last head calls the backdoor's target,
    with the trigger and without; not where there is no such row.
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
        """Federations that differ in their seed train stacked if they train heads."""
        return self if self.recipe.trains_network else (self.recipe, self.adversary, self.byzantine, self.stress)


PLANTED = View(trigger="corner")
"""How clients that plant a backdoor show their images."""


def federate(
    recipe: Recipe, dataset: str, adversary: str | None, byzantine: int, seed: int, stress: Stress | None = None
) -> Federate:
    """The job; a candidate retrained with another seed has the same one."""
    return Federate(recipe.model_copy(update={"seed": 0}), dataset, adversary, byzantine, seed, stress)


def screening(recipe: Recipe) -> Recipe:
    """The same federation of heads on the frozen backbone: cheap enough to try every attack and rule on."""
    return recipe.model_copy(update={"adaptation": "head", "lora": None, "precision": "float32", "seed": 0})


@dataclass(frozen=True)
class Confirm(Job):
    """A federation that trains a network, under the attack that harms its `screening` most, by mean accuracy over
    `seeds` seeds.

    attacks  that were screened, by name

    Result: accuracy (1,) and hit (T,) as Federate's; attack (1,) int64, which of `attacks` it was.
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
    """A head trained in one place, as the recipe's clients train theirs and as long, on some of the table's rows.

    rows  "member": all of them, what centralised fine-tuning would have been; "population": what the frozen
          backbone gives to any head; or "client:NAME": that client alone

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
    """What the candidate says of some rows once a backdoor's trigger, or a pattern like it, is on their images; see
    compute.stamps.

    Result: predicted (1 + K, R) int64, the class of the largest logit, for each of `rows`, ascending: with the trigger
    first, then with each of its K controls.
    """

    revision: ClassVar[int] = 1

    artifact: str
    recipe: Recipe
    dataset: str
    trigger: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Invert(Job):
    """What a federation's server makes of what clients send in the first round: see compute.invert.

    Targets first <= i < last, each a row of an update of its own, told from candidates - 1 rows of its class that
    nobody trained on.
    attack  analytic | optimised

    Result, a value for each target: hit, bool, whether the true row is most like what was reconstructed; cosine of the
    two; mixed, rows the update was made from, and alike, those of the target's class, int64; near, share of decoys of
    the target's client; refined, bool, whether the update was small enough for the optimisation.
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
    """The smallest trigger that makes the candidate say `target`, as far as it is found: see compute.trigger_inversion.

    rows   images it is sought on, ascending; those of the target's own class are left out
    tried  images it is tried on once found, ascending

    Result: works (1,) bool, whether any mask worked; size (1,) float64, share of the image under the smallest soft
    mask, 1 where none worked; mask (S, S) bool and pattern (3, S, S) uint8, the trigger made hard; predicted (T,)
    int64, the class of the largest logit for each of `tried` with the hard trigger.
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
    """What the candidate still gets right under the worst small change of each image: see compute.evasion.

    levels   largest change of a pixel, of 255
    steps    of each attack
    targets  classes that the targeted attack tries, likeliest first

    Result, all (R,) bool, for each of `rows`: right, as it is; untargeted, right under APGD on the cross entropy;
    standing, right under APGD-T as well. Signs of masked gradients: guessed, wrong under random changes of the same
    size; wide, right under changes that no model withstands; flat, right where there is no gradient.
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

    tried   images it is tried on, ascending, none of `rows`
    levels  largest change of a pixel, of 255

    Result, all (T,) int64: the class that is named, by the candidate, predicted_plain, predicted_shifted with the
    change and predicted_noise with random signs of the same size; and by the probe, probe_plain and so on.
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
    """What the candidate says of rows whose images are corrupted: see compute.corruptions.

    Result: predicted (R,) int64, the class of the largest logit, for each of `rows`, ascending.
    """

    artifact: str
    recipe: Recipe
    dataset: str
    rows: tuple[int, ...]
    corruption: str
    severity: int


@dataclass(frozen=True)
class Trajectory(Job):
    """What the candidate's round log says of every row: see federated.trajectory.

    rounds  digest of the log

    Result: z (2, N, K) float32, by signal, row and client of the log; client (K,), which of the table's clients, sorted
    by name, each is, or -1; seen (K,), rounds in which each took part; rounds (1,), how many were read; distance (1,),
    from where the log ends to the candidate's head, in lengths of that head.
    """

    artifact: str
    recipe: Recipe
    dataset: str
    rounds: str


def train_reference(
    recipe: Recipe, dataset: str, index: int, divisor: int = 1, without: tuple[int, ...] = (), keeps: Keeps = ()
) -> TrainReference:
    """The job of reference `index`; a candidate retrained with another seed has the same one."""
    return TrainReference(recipe.model_copy(update={"seed": 0}), dataset, index, divisor, without, keeps)


def embed_jobs(
    backbone: Backbone, shape: Input | None, dataset: str, rows: int, views: Sequence[View] = (View(),)
) -> list[Embed]:
    """The Embed jobs that cover `rows` rows in every view: view by view, each in row order.

    None for the identity backbone, which has no input.
    """
    if shape is None:
        return []
    return [
        Embed(backbone, shape, view, dataset, first, min(first + EMBED_ROWS, rows))
        for view in views
        for first in range(0, rows, EMBED_ROWS)
    ]

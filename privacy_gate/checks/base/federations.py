"""The recipe's federation, trained anew under a check's conditions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Literal

import numpy as np

from privacy_gate.arrays import Bools, Floats
from privacy_gate.checks.base.check import Results, Subject
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.federation import Aggregator, Clients, Federation
from privacy_gate.dossier.federation.attendance import Attendance
from privacy_gate.dossier.federation.needs import unmet, unmet_by_rows
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import DatasetError
from privacy_gate.jobs.kinds import Confirm, Federate, Job, Stress, TrainReference, federate
from privacy_gate.jobs.subsets import training_sets
from privacy_gate.metrics.catalogue import METRICS
from privacy_gate.metrics.robustness import accuracy_loss
from privacy_gate.verdict.judgement import Measurement

MEAN = Aggregator(name="mean")

FEWEST = 2
"""Fewest rows of each client in a study that partitions the members anew."""

NOT_SIMULATED = "recipes with adaptation: command are trained by a program, so their federation cannot be simulated"
"""Heads of our own would say nothing about such recipes."""


def refuse_untrainable(recipe: Recipe, data: AuditData) -> None:
    """Raises DatasetError if the table has too few clients or members, or no rows for the server, for the recipe's
    federation.

    Then neither the candidate can have been trained as its dossier says, nor can a reference be.
    """
    federation = recipe.federation
    if federation is None or not _simulated(recipe):
        return
    if reason := federation.unmet(count_clients(federation, data), root=_has_root(data), rows=_members(data)):
        raise DatasetError(f"the recipe's federation cannot have been trained on this table: {reason}")


def untrainable_references(data: AuditData, jobs: Iterable[Job]) -> str | None:
    """The reason why some references among the jobs cannot be trained by the recipe's federation; None if all can.

    A reference's clients are those with a row in its own share of the pool. That share may miss a small client, and the
    rule may then have too few clients even if the candidate's had enough. Its rows are known before any computation.
    """
    federated = [job for job in jobs if isinstance(job, TrainReference) and _simulated(job.recipe)]
    lacking: list[tuple[int, str]] = []
    # Consecutive jobs with the same pool draw their training sets together.
    for (recipe, divisor, without), same in groupby(federated, attrgetter("recipe", "divisor", "without")):
        sets = training_sets(data, [job.index for job in same], divisor, without)
        lacking += _lacking(recipe.federation, data, sets)
    if not lacking:
        return None
    index, reason = lacking[0]
    return (
        f"the recipe's federation cannot train {len(lacking):,} of {len(federated):,} references on their shares of "
        f"the audit table, for example reference {index}: {reason}; or add rows of the smallest clients to the table"
    )


def _members(data: AuditData) -> int:
    return int((data.split == Split.MEMBER).sum())


def _simulated(recipe: Recipe) -> bool:
    return recipe.federation is not None and recipe.adaptation != "command"


def _lacking(federation: Federation, data: AuditData, sets: Iterable[tuple[int, Bools]]) -> Iterator[tuple[int, str]]:
    """References that cannot be trained: index and reason."""
    root, code = _has_root(data), None
    if federation.clients.count is None and data.client is not None:
        # Clients of a reference are those with a row in its share; with a declared count they are always that many.
        code = np.unique(data.client, return_inverse=True)[1]
    for index, rows in sets:
        clients = federation.clients.count if code is None else int(np.count_nonzero(np.bincount(code[rows])))
        if reason := federation.unmet(clients or 0, root=root, rows=int(rows.sum())):
            yield index, reason


def count_clients(federation: Federation, data: AuditData) -> int:
    """Number of clients: the declared one, or those that have members; raises DatasetError if no column names them."""
    if federation.clients.count is not None:
        return federation.clients.count
    if data.client is None:
        raise DatasetError(
            "the recipe takes its clients from a column, but the data manifest has none: add columns: {client: ...}"
        )
    return len(np.unique(data.client[data.split == Split.MEMBER]))


def _has_root(data: AuditData) -> bool:
    """Whether the server has rows of its own: the population."""
    return bool((data.split == Split.POPULATION).any())


@dataclass(frozen=True)
class Federations:
    """Federations of one recipe, with several seeds each.

    clients  their number, or `recipe` for the recipe's own clients with their own data
    alpha    of the Dirichlet partition of so many clients; the recipe's own clients keep their data
    """

    subject: Subject
    federation: Federation
    clients: Literal["recipe"] | int
    alpha: float
    seeds: int

    @property
    def count(self) -> int:
        """Clients of each federation; see `count_clients`."""
        return count_clients(self.federation, self.subject.data) if self.clients == "recipe" else self.clients

    @property
    def blind(self) -> float:
        """Accuracy on the holdout of always naming the most common class."""
        label = self.subject.data.label[self.subject.data.split == Split.HOLDOUT]
        return float(np.bincount(label).max(initial=0) / max(1, len(label)))

    def jobs(
        self,
        rule: Aggregator | None = None,
        attack: tuple[str, int] | None = None,
        stress: Stress | None = None,
        alpha: float | None = None,
    ) -> list[Federate]:
        """One federation per seed.

        rule    None: the recipe's own
        attack  name, and the number of clients that attack; None: no attack
        stress  see job.Federate
        alpha   of a Dirichlet partition instead of the study's
        """
        changed: dict[str, object] = {"aggregator": rule or self.federation.aggregator}
        if alpha is not None or self.clients != "recipe":
            changed["clients"] = Clients(
                partition="dirichlet_by_class", count=self.count, alpha=alpha or self.alpha, minimum=FEWEST
            )
        how = self.subject.recipe.model_copy(update={"federation": self.federation.model_copy(update=changed)})
        name, byzantine = attack or (None, 0)
        return [federate(how, self.subject.data.digest, name, byzantine, seed, stress) for seed in range(self.seeds)]

    @property
    def undealt(self) -> str | None:
        """The reason why the members cannot be dealt anew to so many clients; None if they can."""
        return unmet_by_rows(_members(self.subject.data), self.count, FEWEST)

    def unmet(
        self,
        rule: Aggregator | None = None,
        attack: tuple[str, int] | None = None,
        stress: Stress | None = None,
    ) -> str | None:
        """The reason why such a federation cannot be trained; None if it can. Arguments as for `jobs`."""
        aggregator = rule or self.federation.aggregator
        if self.federation.privacy and not aggregator.is_mean:
            return "privacy of clients (federation: privacy) combines updates by a mean, and by no other rule"
        if self.clients != "recipe" and (undealt := self.undealt):
            return undealt
        attendance = Attendance(self.count, self.federation.participation, **dict([stress] if stress else []))
        return unmet(aggregator.steps, aggregator.tolerates, attendance, attack, root=_has_root(self.subject.data))

    def accuracy(self, jobs: list[Federate], results: Results) -> Floats:
        """Holdout accuracy by seed, the mean over the last tenth of the rounds, (S,)."""
        return np.array([float(results(job)["accuracy"][0]) for job in jobs])

    def hits(self, jobs: Sequence[Federate | Confirm], results: Results) -> Floats:
        """How far each seed's model is right on each holdout row, the mean over the same rounds, (S, T)."""
        return np.array([results(job)["hit"] for job in jobs])

    def loss(
        self, metric: str, before: list[Federate], after: list[Federate], results: Results, confidence: float
    ) -> Measurement:
        """Holdout accuracy lost from `before` to `after`, with the same seeds; 0 if they are identical."""
        one, other = (self.hits(jobs, results) for jobs in (before, after))
        return accuracy_loss(METRICS[metric], one, other, confidence, blind=self.blind, same=before == after)

    def heterogeneity(self, jobs: list[Federate], results: Results) -> str:
        """How differently the clients are distributed over the classes, in words."""
        distance = np.mean([float(results(job)["heterogeneity"][0]) for job in jobs])
        return f"clients' classes differ from those of all by {distance:.2f} in total variation, on average"

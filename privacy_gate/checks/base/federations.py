"""The recipe's federation trained anew, under whatever a check puts it."""

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
"""Rows of each client to whom a study deals the members."""

NOT_SIMULATED = "a program of the policy's trains: what its federation does is not known, and none stands in its place"
"""Heads of our own would say nothing of recipes with adaptation command."""


def refuse_untrainable(recipe: Recipe, data: AuditData) -> None:
    """Raises DatasetError where the table has too few clients or members, or no rows of the server's own, for the
    recipe's federation.

    Neither the candidate can have been trained as its dossier says, nor can a reference.
    """
    federation = recipe.federation
    if federation is None or not _simulated(recipe):
        return
    if reason := federation.unmet(count_clients(federation, data), root=_has_root(data), rows=_members(data)):
        raise DatasetError(f"the recipe's federation cannot have been trained on this table: {reason}")


def untrainable_references(data: AuditData, jobs: Iterable[Job]) -> str | None:
    """Why references among the jobs cannot be trained by the recipe's federation; None where all can.

    A reference's clients are those who hold a row of its own share of the pool, so one may lack a small client, and its
    rule be left with too few, where the candidate's was not. Which rows it has is known before anything is computed.
    """
    federated = [job for job in jobs if isinstance(job, TrainReference) and _simulated(job.recipe)]
    lacking: list[tuple[int, str]] = []
    for (recipe, divisor, without), same in groupby(federated, attrgetter("recipe", "divisor", "without")):
        sets = training_sets(data, [job.index for job in same], divisor, without)
        lacking += _lacking(recipe.federation, data, sets)
    if not lacking:
        return None
    index, reason = lacking[0]
    return (
        f"the recipe's federation cannot train {len(lacking):,} of {len(federated):,} references on their shares of "
        f"the audit table, reference {index} for one: {reason}; more rows of the smallest clients in the table help too"
    )


def _members(data: AuditData) -> int:
    return int((data.split == Split.MEMBER).sum())


def _simulated(recipe: Recipe) -> bool:
    return recipe.federation is not None and recipe.adaptation != "command"


def _lacking(federation: Federation, data: AuditData, sets: Iterable[tuple[int, Bools]]) -> Iterator[tuple[int, str]]:
    """References that cannot be trained, by index, and why."""
    root, code = _has_root(data), None
    if federation.clients.count is None and data.client is not None:
        code = np.unique(data.client, return_inverse=True)[1]
    for index, rows in sets:
        clients = federation.clients.count if code is None else int(np.count_nonzero(np.bincount(code[rows])))
        if reason := federation.unmet(clients or 0, root=root, rows=int(rows.sum())):
            yield index, reason


def count_clients(federation: Federation, data: AuditData) -> int:
    """Clients of the federation: as many as it says, or as hold members; raises DatasetError where no column tells."""
    if federation.clients.count is not None:
        return federation.clients.count
    if data.client is None:
        raise DatasetError(
            "the recipe's clients come from a column, and the data manifest names none: add columns: {client: ...}"
        )
    return len(np.unique(data.client[data.split == Split.MEMBER]))


def _has_root(data: AuditData) -> bool:
    """Whether the server has rows of its own."""
    return bool((data.split == Split.POPULATION).any())


@dataclass(frozen=True)
class Federations:
    """Federations of one recipe, of several seeds each.

    clients  how many, or the recipe's own, holding what they hold
    alpha    of the Dirichlet partition of so many clients; the recipe's own keep theirs
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
        """Share of the holdout that a model has right which always names the commonest class."""
        label = self.subject.data.label[self.subject.data.split == Split.HOLDOUT]
        return float(np.bincount(label).max(initial=0) / max(1, len(label)))

    def jobs(
        self,
        rule: Aggregator | None = None,
        attack: tuple[str, int] | None = None,
        stress: Stress | None = None,
        alpha: float | None = None,
    ) -> list[Federate]:
        """One federation a seed.

        rule    None: the recipe's own
        attack  by name, and how many clients attack; None: nobody
        stress  see job.Federate
        alpha   of a Dirichlet partition in place of the study's
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
        """Why the members cannot be dealt anew to so many clients; None where they can."""
        return unmet_by_rows(_members(self.subject.data), self.count, FEWEST)

    def unmet(
        self,
        rule: Aggregator | None = None,
        attack: tuple[str, int] | None = None,
        stress: Stress | None = None,
    ) -> str | None:
        """Why no federation can be trained so; None where it can. Arguments as of `jobs`, which would ask for them."""
        aggregator = rule or self.federation.aggregator
        if self.federation.privacy and not aggregator.is_mean:
            return "the recipe's privacy of clients joins updates by a mean, and by no other rule"
        if self.clients != "recipe" and (undealt := self.undealt):
            return undealt
        attendance = Attendance(self.count, self.federation.participation, **dict([stress] if stress else []))
        return unmet(aggregator.steps, aggregator.tolerates, attendance, attack, root=_has_root(self.subject.data))

    def accuracy(self, jobs: list[Federate], results: Results) -> Floats:
        """Holdout accuracy by seed, the mean over the last tenth of the rounds, (S,)."""
        return np.array([float(results(job)["accuracy"][0]) for job in jobs])

    def hits(self, jobs: Sequence[Federate | Confirm], results: Results) -> Floats:
        """How far each seed's model is right on each holdout row, the mean over those rounds, (S, T)."""
        return np.array([results(job)["hit"] for job in jobs])

    def loss(
        self, metric: str, before: list[Federate], after: list[Federate], results: Results, confidence: float
    ) -> Measurement:
        """Holdout accuracy lost from federations to others of the same seeds; none where they are the very same."""
        one, other = (self.hits(jobs, results) for jobs in (before, after))
        return accuracy_loss(METRICS[metric], one, other, confidence, blind=self.blind, same=before == after)

    def heterogeneity(self, jobs: list[Federate], results: Results) -> str:
        """How differently the clients are spread over the classes, in words."""
        found = np.mean([float(results(job)["heterogeneity"][0]) for job in jobs])
        return f"clients' classes differ from everyone's by {found:.2f} in total variation, on average"

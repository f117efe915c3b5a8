"""What a federation's server reconstructs from what one client sends (arXiv 2402.01857: unauthorized disclosure)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from privacy_gate.checks.base.check import NO_FEDERATION, Results, Subject, WhereDeclared, distinct_names, in_percent
from privacy_gate.checks.base.references import feature_jobs
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Invert, Job
from privacy_gate.metrics.inversion import FEWEST_TARGETS, inversion_advantage
from privacy_gate.simulation.leaks.lineup import eligible
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, Remedy, not_measured

ATTACKS = ("analytic", "optimised")
"""Those of compute.invert."""

TARGETS_A_JOB = 50
"""Updates attacked by one job: what a killed run can lose."""

UNKNOWN_CLIENTS = "a program of the policy's trains the clients: what they send is not known"


class Inversion(WhereDeclared):
    """inversion_advantage: how often a row is told from others of its class by what its client sends, beyond chance.

    The first round's updates are attacked, whatever the candidate became: gradients vanish late in training, and
    would make any recipe look safe. What clients send is what they would: shortened, with noise and in sums, where the
    recipe says so. Noise that the server adds hides nothing from it.

    candidates  rows that the true one stands among, itself included, all of its class
    targets     updates attacked, and one row of each
    attacks     by name; the best of them counts
    seed        of the partition, the clients, their batches and the targets
    alternatives  also measures the recipe with secure aggregation, as a remedy
    required    see WhereDeclared
    """

    title: ClassVar[str] = "What clients' updates reveal"
    attack_class: ClassVar[str | None] = "reconstruction from clients' updates"
    left_open: ClassVar[str | None] = "reconstruction from clients' updates"
    federated: ClassVar[bool] = True
    tiered: ClassVar[bool] = True

    check: Literal["inversion"] = "inversion"
    candidates: Annotated[int, Field(ge=2, le=1000)] = 10
    targets: Annotated[int, Field(ge=FEWEST_TARGETS, le=100_000)] = 200
    attacks: Annotated[tuple[str, ...], Field(min_length=1)] = ATTACKS
    seed: Annotated[int, Field(ge=0)] = 0
    alternatives: bool = True
    limits: Mapping[Literal["inversion_advantage"], Limit] = Field(default_factory=dict)

    @field_validator("attacks")
    @classmethod
    def _attacks_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return distinct_names(names, ATTACKS, "attack")

    def jobs(self, subject: Subject) -> list[Job]:
        """Attacks on the recipe's updates; none where there are none to attack."""
        if self._absent(subject):
            return []
        recipes = [subject.recipe, *self._alternative(subject.recipe)]
        return [*feature_jobs(subject), *(job for recipe in recipes for job in self._tried(subject, recipe))]

    def _tried(self, subject: Subject, recipe: Recipe) -> list[Invert]:
        """Every attack on every target, attack by attack."""
        how = recipe.model_copy(update={"seed": 0})
        return [
            Invert(how, subject.data.digest, attack, self.candidates, self.seed, first, last)
            for attack in self.attacks
            for first in range(0, self.targets, TARGETS_A_JOB)
            for last in (min(first + TARGETS_A_JOB, self.targets),)
        ]

    def _alternative(self, recipe: Recipe) -> list[Recipe]:
        """The recipe with secure aggregation, where it has none and its rule is a plain mean."""
        federation = recipe.federation
        if not self.alternatives or federation is None or federation.secure_aggregation:
            return []
        if federation.aggregator.name not in ("mean", "uniform_mean") or federation.aggregator.before:
            return []
        return [recipe.model_copy(update={"federation": federation.model_copy(update={"secure_aggregation": True})})]

    def _absent(self, subject: Subject) -> str | None:
        """Why nothing can be measured; None where it can."""
        if subject.recipe.federation is None:
            return NO_FEDERATION
        if subject.recipe.adaptation == "command":
            return UNKNOWN_CLIENTS
        if subject.recipe.trains_network:
            return "simulated for recipes that train a head; the update of a network tells more than its head's"
        if not eligible(subject.data, self.candidates).any():
            return (
                f"needs a class with members and {self.candidates - 1} holdout rows as decoys: ask for fewer candidates"
            )
        return None

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """The best attack's advantage; secure aggregation as a remedy where a limit is not met."""
        if absent := self._absent(subject):
            if absent == NO_FEDERATION:
                return self.undeclared({"inversion_advantage": absent})
            return CheckResult(measurements=(not_measured("inversion_advantage", absent),))
        found, notes = self._figure(subject, subject.recipe, results, confidence)
        return CheckResult(
            measurements=(found,),
            remedies=tuple(self._remedies(subject, found, results, confidence)),
            notes=notes,
        )

    def _figure(
        self, subject: Subject, recipe: Recipe, results: Results, confidence: float
    ) -> tuple[Measurement, tuple[str, ...]]:
        stored: dict[str, dict[str, NDArray[Any]]] = {}
        for attack in self.attacks:
            parts = [results(job) for job in self._tried(subject, recipe) if job.attack == attack]
            stored[attack] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        hits = {attack: np.asarray(arrays["hit"], dtype=bool) for attack, arrays in stored.items()}
        return inversion_advantage(hits, self.candidates, confidence), (*_notes(stored), *_noise(recipe))

    def _remedies(self, subject: Subject, found: Measurement, results: Results, confidence: float) -> list[Remedy]:
        """Secure aggregation, where it lowers the advantage beyond chance."""
        for recipe in self._alternative(subject.recipe):
            summed, _ = self._figure(subject, recipe, results, confidence)
            if summed.high is not None and found.low is not None and summed.high < found.low:
                basis = f"inversion_advantage of the recipe with it: {in_percent(summed)}; without: {in_percent(found)}"
                return [Remedy(action="declare, and use, secure aggregation: the server sees sums alone", basis=basis)]
        return []


def _noise(recipe: Recipe) -> list[str]:
    """Whose noise it is that protects clients."""
    private = recipe.federation.privacy if recipe.federation else None
    if private is None or private.noise_multiplier == 0:
        return []
    if private.noise_by == "server":
        return ["inversion: the server adds the noise for the privacy of clients itself, so none of it hides updates"]
    return ["inversion: what was attacked holds the clients' own noise, for which the dossier's word was taken"]


def _notes(stored: Mapping[str, Mapping[str, NDArray[Any]]]) -> list[str]:
    """What the attacks had to do with, and what they did not try."""
    any_of = next(iter(stored.values()))
    mixed, alike = (float(np.median(any_of[name])) for name in ("mixed", "alike"))
    notes = [
        f"inversion: the median update was made from {mixed:g} rows, {alike:g} of the target's class; features were "
        "reconstructed, not pixels"
    ]
    if "optimised" in stored and (left := float(1 - np.mean(stored["optimised"]["refined"]))) > 0:
        notes.append(
            f"inversion: {left:.0%} of updates were too large for the optimisation, and attacked in closed form"
        )
    if (near := float(np.mean(any_of["near"]))) < 1:
        notes.append(f"inversion: {1 - near:.0%} of decoys are other clients', which makes rows look easier to find")
    return notes

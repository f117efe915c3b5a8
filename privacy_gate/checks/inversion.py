"""What a federation's server can reconstruct from one client's updates (arXiv 2402.01857: unauthorized disclosure)."""

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
"""The attacks that compute.invert implements."""

TARGETS_A_JOB = 50
"""Updates attacked by one job, so the most that a killed run can lose."""

UNKNOWN_CLIENTS = "recipes with adaptation: command are trained by a program, so the clients' updates are unknown"


class Inversion(WhereDeclared):
    """inversion_advantage: how often a row is identified among rows of its class from its client's update, beyond
    chance.

    The first round's updates are attacked, whatever the candidate has become since: gradients vanish late in training,
    and would make any recipe look safe. The attack is on updates as the server sees them: clipped, noised by the
    client, or summed, if the recipe says so. Noise that the server adds hides nothing from it.

    candidates    rows to identify the true one among, itself included, all of its class
    targets       updates attacked, with one row of each
    attacks       their names; the best of them counts
    seed          of the partition, the clients, their batches and the targets
    alternatives  whether to measure the recipe with secure aggregation too, as a remedy
    required      see WhereDeclared
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
        """Attacks on the recipe's updates; empty if there are none to attack."""
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
        """The recipe with secure aggregation, if it has none and its rule is a plain mean."""
        federation = recipe.federation
        if not self.alternatives or federation is None or federation.secure_aggregation:
            return []
        # Under secure aggregation the server sees only sums, so only means can be computed.
        if federation.aggregator.name not in ("mean", "uniform_mean") or federation.aggregator.before:
            return []
        return [recipe.model_copy(update={"federation": federation.model_copy(update={"secure_aggregation": True})})]

    def _absent(self, subject: Subject) -> str | None:
        """The reason why nothing can be measured; None if it can."""
        if subject.recipe.federation is None:
            return NO_FEDERATION
        if subject.recipe.adaptation == "command":
            return UNKNOWN_CLIENTS
        if subject.recipe.trains_network:
            return "updates are simulated for heads only (adaptation: head); a network's update reveals more"
        if not eligible(subject.data, self.candidates).any():
            return f"needs a class with members and {self.candidates - 1} holdout rows as decoys: lower candidates"
        return None

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """The best attack's advantage, and secure aggregation as a remedy if it helps."""
        if absent := self._absent(subject):
            if absent == NO_FEDERATION:
                return self.undeclared({"inversion_advantage": absent})
            return CheckResult(measurements=(not_measured("inversion_advantage", absent),))
        advantage, notes = self._figure(subject, subject.recipe, results, confidence)
        return CheckResult(
            measurements=(advantage,),
            remedies=tuple(self._remedies(subject, advantage, results, confidence)),
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

    def _remedies(self, subject: Subject, advantage: Measurement, results: Results, confidence: float) -> list[Remedy]:
        """Secure aggregation, if it lowers the advantage significantly."""
        for recipe in self._alternative(subject.recipe):
            summed, _ = self._figure(subject, recipe, results, confidence)
            if summed.high is not None and advantage.low is not None and summed.high < advantage.low:
                basis = f"inversion_advantage with it: {in_percent(summed)}; without it: {in_percent(advantage)}"
                action = "use secure aggregation, and set secure_aggregation: true: the server then sees only sums"
                return [Remedy(action=action, basis=basis)]
        return []


def _noise(recipe: Recipe) -> list[str]:
    """A note on who adds the noise for the privacy of clients."""
    private = recipe.federation.privacy if recipe.federation else None
    if private is None or private.noise_multiplier == 0:
        return []
    if private.noise_by == "server":
        return ["inversion: the server adds the noise for the privacy of clients itself, so no noise hides the updates"]
    return ["inversion: the attacked updates contain the clients' own noise; that they add it is the dossier's claim"]


def _notes(stored: Mapping[str, Mapping[str, NDArray[Any]]]) -> list[str]:
    """Notes on the size of the updates, and on the limits of the attacks."""
    any_of = next(iter(stored.values()))
    mixed, alike = (float(np.median(any_of[name])) for name in ("mixed", "alike"))
    notes = [
        f"inversion: the median update has {mixed:g} rows, {alike:g} of the target's class; features were "
        "reconstructed, not pixels"
    ]
    if "optimised" in stored and (left := float(1 - np.mean(stored["optimised"]["refined"]))) > 0:
        notes.append(
            f"inversion: {left:.0%} of updates were too large for the optimised attack and were attacked in closed form"
        )
    if (near := float(np.mean(any_of["near"]))) < 1:
        notes.append(f"inversion: {1 - near:.0%} of decoys belong to other clients, which makes rows easier to find")
    return notes

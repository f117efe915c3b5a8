"""Does the recipe's federation survive hostile clients, and what does its rule cost where there are none?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, ClassVar, Literal, Self, get_args

import numpy as np
from pydantic import Field, field_validator, model_validator

from privacy_gate.arrays import Floats
from privacy_gate.checks.base.check import NO_FEDERATION, Results, Subject, WhereDeclared, distinct_names, in_percent
from privacy_gate.checks.base.confirmation import Confirmation
from privacy_gate.checks.base.federations import MEAN, NOT_SIMULATED, Federations
from privacy_gate.checks.base.references import PLAIN, feature_jobs, features
from privacy_gate.checks.base.rules import Study
from privacy_gate.dossier.dataset import Split
from privacy_gate.dossier.federation import Aggregator, Federation
from privacy_gate.jobs.kinds import PLANTED, Federate, Job, embed_jobs, screening
from privacy_gate.metrics.robustness import (
    Called,
    breakdown_point,
    byzantine_drop,
    called,
    federated_backdoor,
    needed_holdout,
)
from privacy_gate.verdict.exhibits import ByzantineLine, ByzantinePlot
from privacy_gate.verdict.judgement import (
    CheckResult,
    Limit,
    Measurement,
    Remedy,
    RuleTable,
    RuleTrial,
    not_measured,
    rule_passes,
)

RobustnessMetric = Literal["byzantine_drop", "robustness_tax", "breakdown_point", "federated_backdoor"]

ADVERSARIES = (
    "sign_flip",
    "ipm_0.1",
    "ipm_10",
    "ipm_search",
    "alie",
    "alie_search",
    "min_max",
    "min_sum",
    "mimic",
    "gaussian",
    "label_flip",
    "pair_flip",
    "inflated_counts",
    "free_rider",
)
"""Those that aim at accuracy; a backdoor aims at something else."""

BACKDOORS = ("backdoor", "backdoor_bounded")
"""Model replacement, as it is and within the usual norm."""

TARGET = 0
"""The class that they have the trigger called."""

WORST = ("sign_flip", "ipm_0.1", "ipm_10", "alie_search", "label_flip", "inflated_counts")
"""Tried unless the policy says otherwise: no attack is worst for every rule, and each of these is for some."""

DROP = 0.15
"""byzantine_drop that the breakdown point and remedies are measured by where the policy names no limit."""

NOT_ASKED = "not asked for: set a limit on it, or backdoor: true"

SUMS_ALONE = (
    "secure aggregation shows the server a sum alone, which rules out every robust rule: vet who may join, or give it "
    "up for a rule that bears hostile clients; the check inversion says what the server then sees"
)

SUMS_BOUNDED = (
    "secure aggregation shows the server a sum alone and privacy of clients joins updates by a mean, which rule out "
    "every robust rule: vet who may join, or have clients prove that they cut their updates"
)

NO_IMAGES = "needs images, on which a trigger can be put: the table holds embeddings"

NO_NETWORKS = "triggers are planted in heads alone, and the recipe trains a network"


class Robustness(WhereDeclared):
    """byzantine_drop, robustness_tax, breakdown_point and federated_backdoor (arXiv 2402.01857) by federations trained
    anew.

    clients    of the study's federations; recipe: as many as the recipe has, holding what they hold
    byzantine  clients that attack
    alpha      of the Dirichlet partition of the study's clients; IID clients hide every weakness
    attacks    by name; the worst of them counts
    seeds      federations of each kind
    alternatives  tries other rules too, those that enough clients take part for, and the recipe's own told of all who
               attack, and says which would pass, at what tax: for each of six rules seeds x (1 + attacks x byzantine)
               federations more, 390 unless the policy says otherwise, of some tens of milliseconds each. None where
               secure aggregation rules all of them out
    backdoor   also lets the byzantine plant a trigger; takes another pass of the backbone over the images. A limit on
               federated_backdoor asks for it too
    required   see WhereDeclared

    Where the recipe trains a network, heads on the frozen backbone stand for it but in byzantine_drop and
    robustness_tax: see `Confirmation`.
    """

    title: ClassVar[str] = "The federation under hostile clients"
    attack_class: ClassVar[str | None] = "poisoning of a federation"
    left_open: ClassVar[str | None] = "the federation under hostile clients"
    federated: ClassVar[bool] = True
    tiered: ClassVar[bool] = True

    check: Literal["robustness"] = "robustness"
    clients: Literal["recipe"] | Annotated[int, Field(ge=4, le=1000)] = 10
    byzantine: Annotated[int, Field(ge=1)] = 2
    alpha: Annotated[float, Field(gt=0)] = 0.5
    attacks: Annotated[tuple[str, ...], Field(min_length=1)] = WORST
    seeds: Annotated[int, Field(ge=3, le=100)] = 5
    alternatives: bool = True
    backdoor: bool = False
    limits: Mapping[RobustnessMetric, Limit] = Field(default_factory=dict)

    @field_validator("attacks")
    @classmethod
    def _attacks_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return distinct_names(names, ADVERSARIES, "attack")

    @model_validator(mode="after")
    def _a_minority_attacks(self) -> Self:
        if self.clients != "recipe" and (many := self._no_minority(self.clients)):
            raise ValueError(many)
        return self

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """Where nothing is lost, by rules other than the plain mean, whose tax is 0 by definition on any rows."""
        losses = {metric: limit for metric, limit in self.bounds.items() if metric != "breakdown_point"}
        return needed_holdout(losses, self.seeds, confidence)

    def _no_minority(self, clients: int) -> str | None:
        """Why so many clients cannot be studied; None where they can."""
        if 2 * self.byzantine < clients:
            return None
        return f"{self.byzantine} of {clients} clients are no minority: no rule knows who is honest; lower byzantine"

    def _absent(self, subject: Subject, study: Study) -> str | None:
        """Why nothing can be measured of the federation; None where it can."""
        if subject.recipe.adaptation == "command":
            return NOT_SIMULATED
        return self._no_minority(study.federations.count) or study.unmet(study.own)

    def jobs(self, subject: Subject) -> list[Job]:
        """Every federation of the study; none for a recipe without one that can be studied."""
        if subject.recipe.federation is None:
            return []
        study = self._study(subject, subject.recipe.federation)
        if self._absent(subject, study):
            return []
        found: list[Job] = [*feature_jobs(subject), *study.clean(MEAN), *self._planting(subject, study)]
        for rule in study.rules():
            found += study.clean(rule)
            for byzantine in study.tried(rule):
                found += [job for jobs in study.attacked(rule, byzantine).values() for job in jobs]
        confirmation = self._confirmation(subject, study)
        return list(dict.fromkeys([*found, *(confirmation.jobs() if confirmation else [])]))

    def _study(self, subject: Subject, federation: Federation) -> Study:
        """Of heads: on the frozen backbone, where the recipe trains a network."""
        recipe = subject.recipe
        heads = replace(subject, recipe=screening(recipe)) if recipe.trains_network else subject
        federations = Federations(heads, federation, self.clients, self.alpha, self.seeds)
        return Study(federations, self.attacks, self.byzantine, self.alternatives)

    def _confirmation(self, subject: Subject, study: Study) -> Confirmation | None:
        """Of networks, where the recipe trains them."""
        if not subject.recipe.trains_network:
            return None
        federations = replace(study.federations, subject=subject)
        return Confirmation(federations, self.attacks, self.byzantine, study.unmet(study.own, self.byzantine))

    def _planting(self, subject: Subject, study: Study) -> list[Job]:
        """Features of every image with the trigger, and the federations where it is planted."""
        if self._no_backdoor(subject) or study.unplantable(BACKDOORS):
            return []
        recipe, data = subject.recipe, subject.data
        shown = embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows, [PLANTED])
        return [*shown, *(job for jobs in study.planted(BACKDOORS).values() for job in jobs)]

    def _no_backdoor(self, subject: Subject) -> str | None:
        """Why no backdoor is planted; None where one is."""
        if not self.backdoor and "federated_backdoor" not in self.limits:
            return NOT_ASKED
        if subject.recipe.trains_network:
            return NO_NETWORKS
        return NO_IMAGES if subject.data.embedding is not None else None

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """The recipe's rule against the limits; the others as remedies and in the picture."""
        if subject.recipe.federation is None:
            return self.undeclared(dict.fromkeys(get_args(RobustnessMetric), NO_FEDERATION))
        study = self._study(subject, subject.recipe.federation)
        if unknown := self._absent(subject, study):
            return CheckResult(measurements=tuple(not_measured(name, unknown) for name in get_args(RobustnessMetric)))
        # Figures, picture and remedies ask for the same federations: each is read from the store once.
        figures = _Figures(study, cache(results), confidence)
        own, *others = study.rules()
        drops = {f: figures.drop(own, f) for f in study.numbers(own)}
        table = figures.table([own, *others], {name: limit.max for name, limit in self.limits.items()})
        drop, tax, notes = drops[self.byzantine], figures.tax(own), [figures.heterogeneity(), *study.left_out()]
        if confirmation := self._confirmation(subject, study):
            drop, tax = confirmation.drop(results, confidence), confirmation.tax(results, confidence)
            notes.append(confirmation.told(results))
        return CheckResult(
            measurements=(
                drop,
                tax,
                breakdown_point(drops, figures.study.federations.count, table.drop_limit, confidence),
                figures.backdoor(self._no_backdoor(subject) or study.unplantable(BACKDOORS)),
            ),
            exhibits=(figures.plot([own, *others]), table),
            remedies=tuple(figures.remedies(table, drop, tax)),
            notes=tuple(notes),
        )


@dataclass(frozen=True)
class _Figures:
    """What the study's federations measure."""

    study: Study
    results: Results
    confidence: float

    def drop(self, rule: Aggregator, byzantine: int) -> Measurement:
        """byzantine_drop of the rule."""
        if reason := self.study.unmet(rule, byzantine):
            return not_measured("byzantine_drop", reason)
        study, every = self.study.federations, self.study.attacked(rule, byzantine)
        attacked = {name: study.hits(jobs, self.results) for name, jobs in every.items()}
        clean = study.hits(self.study.clean(MEAN), self.results)
        return byzantine_drop(clean, attacked, self.confidence, blind=study.blind)

    def tax(self, rule: Aggregator) -> Measurement:
        """robustness_tax of the rule."""
        plain, own = self.study.clean(MEAN), self.study.clean(rule)
        return self.study.federations.loss("robustness_tax", plain, own, self.results, self.confidence)

    def backdoor(self, absent: str | None) -> Measurement:
        """federated_backdoor of the recipe's rule; or why there is none."""
        if absent is not None:
            return not_measured("federated_backdoor", absent)
        found = {name: [self.results(job) for job in jobs] for name, jobs in self.study.planted(BACKDOORS).items()}
        unattacked = [self.results(job) for job in self.study.clean(self.study.own)]
        runs = [arrays for each in found.values() for arrays in each]
        if any(not arrays.get("backdoor", np.empty(0)).size for arrays in runs):
            return not_measured("federated_backdoor", "needs holdout rows of classes other than the backdoor's target")
        # A head of NaN names no class, the target no more than another: nothing is planted in it, and nothing proved.
        if lost := sum(not np.isfinite(arrays["head"]).all() for arrays in [*runs, *unattacked]):
            reason = f"{lost} of {len(runs) + len(unattacked)} federations diverge: have clients train at a lower rate"
            return not_measured("federated_backdoor", reason)
        planted = {
            name: Called(*np.stack([each["backdoor"] for each in arrays], axis=1)) for name, arrays in found.items()
        }
        return federated_backdoor(planted, self._called([arrays["head"] for arrays in unattacked]), self.confidence)

    def _called(self, heads: list[Floats]) -> Called:
        """What heads call the holdout's rows of other classes, with the backdoor's trigger and without."""
        subject = self.study.federations.subject
        rows = (subject.data.split == Split.HOLDOUT) & (subject.data.label != TARGET)
        views = (features(subject, self.results, view)[rows] for view in (PLANTED, PLAIN))
        return Called(*(np.stack([called(shown, head, TARGET) for head in heads]) for shown in views))

    def plot(self, rules: list[Aggregator]) -> ByzantinePlot:
        """Accuracy under the worst attack against the number of byzantine clients, a line for each rule."""
        lines = []
        for rule in rules:
            numbers = self.study.tried(rule)
            worst = [
                min(float(self._accuracy(jobs).mean()) for jobs in self.study.attacked(rule, f).values())
                for f in numbers
            ]
            left = (float(self._accuracy(self.study.clean(rule)).mean()), *worst)
            lines.append(ByzantineLine(rule=self.study.label(rule), byzantine=(0, *numbers), accuracy=left))
        return ByzantinePlot(clients=self.study.federations.count, lines=tuple(lines))

    def table(self, rules: list[Aggregator], limits: Mapping[str, float | None]) -> RuleTable:
        """Every rule against the limits, or against DROP."""
        named, most = limits.get("byzantine_drop"), limits.get("robustness_tax")
        bound, byzantine, trials = DROP if named is None else named, self.study.byzantine, []
        for rule in rules:
            tax, drop = self.tax(rule), self.drop(rule, byzantine)
            clean = float(self._accuracy(self.study.clean(rule)).mean())
            passes = rule_passes(drop, tax, bound, most)
            trials.append(RuleTrial(rule=self.study.label(rule), clean=clean, tax=tax, drop=drop, passes=passes))
        count = self.study.federations.count
        return RuleTable(clients=count, byzantine=byzantine, drop_limit=bound, tax_limit=most, rules=tuple(trials))

    def remedies(self, table: RuleTable, drop: Measurement, tax: Measurement) -> list[Remedy]:
        """The rule that passes at the least tax, or that none does, where the recipe's own, of drop and tax, does not.

        Nothing where that was not measured: of what learns nothing no rule makes more.
        """
        if rule_passes(drop, tax, table.drop_limit, table.tax_limit) or not (drop.measured and tax.measured):
            return []
        if self.study.alternatives and self.study.federations.federation.secure_aggregation:
            bound = self.study.federations.federation.privacy is not None
            return [
                Remedy(
                    action=SUMS_BOUNDED if bound else SUMS_ALONE,
                    basis=f"{table.rules[0].rule}: drop {in_percent(drop)}",
                )
            ]
        others = list(zip(self.study.rules(), table.rules, strict=True))[1:]
        if not others:
            return []
        # Stable: at the same tax the first one listed.
        others.sort(key=lambda pair: (not pair[1].passes, pair[1].tax.value or 0.0))
        told = [f"{one.rule}: drop {in_percent(one.drop)}, tax {in_percent(one.tax)}" for _, one in others]
        passing = sum(one.passes for _, one in others)
        if not passing:
            action = "no rule tried passes: admit fewer unknown clients, or vet them"
            return [Remedy(action=action, basis="; ".join(told))]
        parts = (("", told[:passing]), ("do not pass: ", told[passing:]))
        basis = "; ".join(start + "; ".join(some) for start, some in parts if some)
        best, _ = others[0]
        return [Remedy(action=f"aggregate by {best}, told of {table.byzantine} byzantine clients", basis=basis)]

    def heterogeneity(self) -> str:
        """How differently the study's clients are spread over the classes."""
        return f"robustness: {self.study.federations.heterogeneity(self.study.clean(MEAN), self.results)}"

    def _accuracy(self, jobs: list[Federate]) -> Floats:
        return self.study.federations.accuracy(jobs, self.results)

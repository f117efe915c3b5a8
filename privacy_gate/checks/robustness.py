"""Does the recipe's federation withstand hostile clients, and how much accuracy does its rule cost without any?"""

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
"""Attacks on accuracy; backdoors have another aim."""

BACKDOORS = ("backdoor", "backdoor_bounded")
"""Model replacement, unbounded and within the usual norm."""

TARGET = 0
"""The class that the planted trigger is to produce."""

WORST = ("sign_flip", "ipm_0.1", "ipm_10", "alie_search", "label_flip", "inflated_counts")
"""Tried unless the policy sets `attacks`: no attack is the worst for every rule, and each of these is for some."""

DROP = 0.15
"""byzantine_drop that the breakdown point and remedies are based on if the policy sets no limit."""

NOT_ASKED = "not requested: set a limit on federated_backdoor, or backdoor: true"

SUMS_ALONE = (
    "secure aggregation shows the server only a sum, which rules out every robust rule: vet who may join, or give it "
    "up for a rule that tolerates hostile clients; the check inversion then measures what the server sees"
)

SUMS_BOUNDED = (
    "secure aggregation shows the server only a sum, and privacy of clients combines updates by a mean, so no robust "
    "rule is possible: vet who may join, or have clients prove that they clip their updates"
)

NO_IMAGES = "needs images to put a trigger on: the table has embeddings"

NO_NETWORKS = "backdoors are only planted in heads, and the recipe trains a network"


class Robustness(WhereDeclared):
    """byzantine_drop, robustness_tax, breakdown_point and federated_backdoor (arXiv 2402.01857), from newly trained
    federations.

    clients       of the study's federations; recipe: the recipe's own clients, with their own data
    byzantine     clients that attack
    alpha         of the Dirichlet partition of the study's clients; IID clients hide every weakness
    attacks       their names; the worst of them counts
    seeds         federations of each kind
    alternatives  whether to try other rules too, and to say which would pass, at which robustness_tax. They are those
                  with enough clients for them, and the recipe's own rule with `tolerates` set to `byzantine`. Each of
                  six rules takes seeds x (1 + attacks x byzantine) more federations, 390 with the default settings, at
                  some tens of milliseconds each. None if secure aggregation rules all of them out
    backdoor      whether hostile clients also plant a trigger; takes another pass of the backbone over the images. A
                  limit on federated_backdoor has the same effect
    required      see WhereDeclared

    If the recipe trains a network, heads on the frozen backbone stand in for it in every metric except byzantine_drop
    and robustness_tax: see `Confirmation`.
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
        """Rows if nothing is lost, for rules other than the plain mean, whose tax is 0 by definition on any rows."""
        losses = {metric: limit for metric, limit in self.bounds.items() if metric != "breakdown_point"}
        return needed_holdout(losses, self.seeds, confidence)

    def _no_minority(self, clients: int) -> str | None:
        """The reason why a study with so many clients is impossible; None if it is possible."""
        if 2 * self.byzantine < clients:
            return None
        return f"{self.byzantine} of {clients} clients are no minority, no rule can tell who is honest: lower byzantine"

    def _absent(self, subject: Subject, study: Study) -> str | None:
        """The reason why nothing can be measured; None if it can."""
        if subject.recipe.adaptation == "command":
            return NOT_SIMULATED
        return self._no_minority(study.federations.count) or study.unmet(study.own)

    def jobs(self, subject: Subject) -> list[Job]:
        """Every federation of the study; empty for a recipe without a federation that can be studied."""
        if subject.recipe.federation is None:
            return []
        study = self._study(subject, subject.recipe.federation)
        if self._absent(subject, study):
            return []
        jobs: list[Job] = [*feature_jobs(subject), *study.clean(MEAN), *self._planting(subject, study)]
        for rule in study.rules():
            jobs += study.clean(rule)
            for byzantine in study.tried(rule):
                jobs += [job for attacked in study.attacked(rule, byzantine).values() for job in attacked]
        confirmation = self._confirmation(subject, study)
        # Rules and attacks share federations; each is trained once, in this order.
        return list(dict.fromkeys([*jobs, *(confirmation.jobs() if confirmation else [])]))

    def _study(self, subject: Subject, federation: Federation) -> Study:
        """The study of heads; on the frozen backbone if the recipe trains a network."""
        recipe = subject.recipe
        # Networks are too expensive to try every attack and rule: heads screen them.
        heads = replace(subject, recipe=screening(recipe)) if recipe.trains_network else subject
        federations = Federations(heads, federation, self.clients, self.alpha, self.seeds)
        return Study(federations, self.attacks, self.byzantine, self.alternatives)

    def _confirmation(self, subject: Subject, study: Study) -> Confirmation | None:
        """The study of networks, if the recipe trains them."""
        if not subject.recipe.trains_network:
            return None
        federations = replace(study.federations, subject=subject)
        return Confirmation(federations, self.attacks, self.byzantine, study.unmet(study.own, self.byzantine))

    def _planting(self, subject: Subject, study: Study) -> list[Job]:
        """Features of every image with the trigger, and the federations in which it is planted."""
        if self._no_backdoor(subject) or study.unplantable(BACKDOORS):
            return []
        recipe, data = subject.recipe, subject.data
        embedding = embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows, [PLANTED])
        return [*embedding, *(job for jobs in study.planted(BACKDOORS).values() for job in jobs)]

    def _no_backdoor(self, subject: Subject) -> str | None:
        """The reason why no backdoor is planted; None if one is."""
        if not self.backdoor and "federated_backdoor" not in self.limits:
            return NOT_ASKED
        if subject.recipe.trains_network:
            return NO_NETWORKS
        return NO_IMAGES if subject.data.embedding is not None else None

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """The recipe's rule against the limits; the other rules as remedies and in the plot."""
        if subject.recipe.federation is None:
            return self.undeclared(dict.fromkeys(get_args(RobustnessMetric), NO_FEDERATION))
        study = self._study(subject, subject.recipe.federation)
        if unknown := self._absent(subject, study):
            return CheckResult(measurements=tuple(not_measured(name, unknown) for name in get_args(RobustnessMetric)))
        # Metrics, plot and remedies use the same federations: with the cache each is read from the store once.
        figures = _Figures(study, cache(results), confidence)
        own, *others = study.rules()
        drops = {f: figures.drop(own, f) for f in study.numbers(own)}
        table = figures.table([own, *others], {name: limit.max for name, limit in self.limits.items()})
        drop, tax, notes = drops[self.byzantine], figures.tax(own), [figures.heterogeneity(), *study.left_out()]
        if confirmation := self._confirmation(subject, study):
            drop, tax = confirmation.drop(results, confidence), confirmation.tax(results, confidence)
            notes.append(confirmation.summary(results))
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
    """The metrics that the study's federations measure."""

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
        """federated_backdoor of the recipe's rule, or the reason why it is absent."""
        if absent is not None:
            return not_measured("federated_backdoor", absent)
        stored = {name: [self.results(job) for job in jobs] for name, jobs in self.study.planted(BACKDOORS).items()}
        unattacked = [self.results(job) for job in self.study.clean(self.study.own)]
        runs = [arrays for same in stored.values() for arrays in same]
        if any(not arrays.get("backdoor", np.empty(0)).size for arrays in runs):
            return not_measured("federated_backdoor", "needs holdout rows of classes other than the backdoor's target")
        # A diverged head has NaN weights and predicts no class: nothing is planted in it, and nothing is proved.
        if lost := sum(not np.isfinite(arrays["head"]).all() for arrays in [*runs, *unattacked]):
            reason = f"{lost} of {len(runs) + len(unattacked)} federations diverge: lower the clients' learning rate"
            return not_measured("federated_backdoor", reason)
        planted = {
            name: Called(*np.stack([run["backdoor"] for run in arrays], axis=1)) for name, arrays in stored.items()
        }
        return federated_backdoor(planted, self._called([arrays["head"] for arrays in unattacked]), self.confidence)

    def _called(self, heads: list[Floats]) -> Called:
        """How far heads predict the target for holdout rows of other classes, with the trigger and without."""
        subject = self.study.federations.subject
        rows = (subject.data.split == Split.HOLDOUT) & (subject.data.label != TARGET)
        views = (features(subject, self.results, view)[rows] for view in (PLANTED, PLAIN))
        return Called(*(np.stack([called(embedded, head, TARGET) for head in heads]) for embedded in views))

    def plot(self, rules: list[Aggregator]) -> ByzantinePlot:
        """Accuracy under the worst attack against the number of byzantine clients, one line per rule."""
        lines = []
        for rule in rules:
            numbers = self.study.tried(rule)
            worst = [
                min(float(self._accuracy(jobs).mean()) for jobs in self.study.attacked(rule, f).values())
                for f in numbers
            ]
            accuracies = (float(self._accuracy(self.study.clean(rule)).mean()), *worst)
            lines.append(ByzantineLine(rule=self.study.label(rule), byzantine=(0, *numbers), accuracy=accuracies))
        return ByzantinePlot(clients=self.study.federations.count, lines=tuple(lines))

    def table(self, rules: list[Aggregator], limits: Mapping[str, float | None]) -> RuleTable:
        """Every rule against the limits, or against DROP if there is no limit on byzantine_drop."""
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
        """If the recipe's own rule, with drop and tax, does not pass: the rule that passes at the lowest tax, or that
        none does.

        Empty if drop or tax was not measured: no rule helps a federation that learns nothing.
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
        # A stable sort: among rules with the same tax the first one listed comes first.
        others.sort(key=lambda pair: (not pair[1].passes, pair[1].tax.value or 0.0))
        trials = [f"{one.rule}: drop {in_percent(one.drop)}, tax {in_percent(one.tax)}" for _, one in others]
        passing = sum(one.passes for _, one in others)
        if not passing:
            action = "no rule tried passes: admit fewer unknown clients, or vet them"
            return [Remedy(action=action, basis="; ".join(trials))]
        parts = (("", trials[:passing]), ("do not pass: ", trials[passing:]))
        basis = "; ".join(start + "; ".join(some) for start, some in parts if some)
        best, _ = others[0]
        return [Remedy(action=f"aggregate by {best} with tolerates: {table.byzantine}", basis=basis)]

    def heterogeneity(self) -> str:
        """A note on how differently the study's clients are distributed over the classes."""
        return f"robustness: {self.study.federations.heterogeneity(self.study.clean(MEAN), self.results)}"

    def _accuracy(self, jobs: list[Federate]) -> Floats:
        return self.study.federations.accuracy(jobs, self.results)

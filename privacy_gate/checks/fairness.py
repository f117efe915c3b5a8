"""Which clients and groups does the candidate serve worse, and which stage of training causes it?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from pydantic import Field

from privacy_gate.arrays import Bools, Floats, Ints, Names
from privacy_gate.checks.base.check import NO_FEDERATION, Results, Subject, WhereDeclared
from privacy_gate.checks.base.references import feature_jobs, score_job
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.optimizers import Adam, Constant
from privacy_gate.dossier.recipe import Head, Recipe
from privacy_gate.jobs.kinds import Job, Probe, probe
from privacy_gate.metrics.parties.benefit import client_benefit, contribution_match
from privacy_gate.metrics.parties.fairness import client_std, evenness, worst_decile_gap
from privacy_gate.metrics.parties.groups import equalized_odds, gap_parts, group_gap, needed_holdout
from privacy_gate.simulation.partitions import heterogeneity
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, not_measured
from privacy_gate.verdict.metric import INHERITED

FairnessMetric = Literal["client_std", "worst_decile_gap", "client_benefit", "group_gap", "equalized_odds"]

OF_CLIENTS: tuple[FairnessMetric, ...] = ("client_std", "worst_decile_gap")
OF_GROUPS: tuple[FairnessMetric, ...] = ("group_gap", "equalized_odds")

CANDIDATE, CENTRALISED, BACKBONE = "candidate", "centralised training", "frozen backbone"
"""Models whose gaps are compared: the candidate, and the models that show which part of the gap it inherited."""

TRAINING = "fine-tuning"

CLIENT = "client:"
"""Prefix of the names of models that clients train alone."""

NO_CLIENTS = "the audit table has no clients: add a column, and columns: {client: ...} to the manifest"
NO_GROUPS = "the audit table has no groups: add a column, and columns: {group: ...} to the manifest"

NO_BACKBONE = (
    "fairness: the part of a gap between groups that comes from the frozen backbone is not measured: it needs public "
    "weights, and population rows that no client trains on"
)


class Fairness(WhereDeclared):
    """Accuracy of clients and groups on the holdout (arXiv 2402.01857: resource disparity, demographic attributes).

    attribution  measures the gaps that the candidate inherited: those of a head on the frozen backbone, trained on the
                 population, and of a head trained centrally on a federation's members. Limits apply to the candidate
                 only
    required     whether clients, groups and, for client_benefit, a federation must exist: see WhereDeclared

    A client or group that has members counts even if it lacks holdout rows. If it has too few of them, the metrics that
    compare it with others are not measured. The check neither guesses its accuracy nor ignores it; otherwise a client
    could pass by being left out of the holdout. For equalized_odds the same applies to each class of each group.

    Reported, never limited: evenness of clients' accuracies, contribution_match, and the parts of group_gap.
    """

    title: ClassVar[str] = "Whom the model serves worse"
    left_open: ClassVar[str | None] = "groups that the model serves worse"
    tiered: ClassVar[bool] = True

    check: Literal["fairness"] = "fairness"
    attribution: bool = True
    limits: Mapping[FairnessMetric, Limit] = Field(default_factory=dict)

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """Rows for group_gap if two groups are always right. For clients the number depends on how many there are."""
        limit = self.limits.get("group_gap")
        return {} if limit is None or limit.max is None else {"group_gap": needed_holdout(limit, confidence)}

    def jobs(self, subject: Subject) -> list[Job]:
        """The candidate's logits, and the heads it is compared with."""
        score = score_job(subject)
        return [*feature_jobs(subject), score, *self._inherited(subject).values(), *_alone(subject).values()]

    def _inherited(self, subject: Subject) -> dict[str, Probe]:
        """Models that the candidate is compared with, starting with the one that the others build on."""
        recipe, data = subject.recipe, subject.data
        if not self.attribution or (data.group is None and data.client is None):
            return {}
        probes = {}
        if recipe.adaptation != "scratch" and (data.split == Split.POPULATION).any():
            probes[BACKBONE] = probe(_as_head(recipe), data.digest, "population")
        if recipe.adaptation == "head" and recipe.federation is not None:
            probes[CENTRALISED] = probe(recipe, data.digest, "member")
        return probes

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Every metric that the table allows; `required` decides on the others."""
        data, holdout = subject.data, subject.data.split == Split.HOLDOUT
        few_clients, few_groups = _unserved(data, data.client, 2, "client"), _unserved(data, data.group, 1, "group")
        few_classes = _unserved(data, _classes_of_groups(data), 1, "class of every group")
        models = {name: results(job)["logits"].argmax(axis=1) for name, job in self._inherited(subject).items()}
        models[CANDIDATE] = results(score_job(subject))["logits"].argmax(axis=1)
        alone = {name: results(job)["logits"].argmax(axis=1) for name, job in _alone(subject).items()}
        # Seeded with the data, so that a repeated audit gives the same intervals.
        rng = np.random.default_rng(int(data.digest[:16], 16))
        measurements: list[Measurement] = []
        # The candidate comes first, so its random draws do not depend on which other models exist.
        for name, answers in reversed(models.items()):
            audited = _Audited(answers[holdout], data.label[holdout], name, confidence, rng)
            if data.client is not None:
                measurements += audited.missing(OF_CLIENTS, few_clients) or audited.of_clients(data.client[holdout])
            if data.group is not None:
                few = audited.missing(OF_GROUPS, few_groups)
                measurements += few or audited.of_groups(data.group[holdout], few_classes)
        right = models[CANDIDATE] == data.label
        if data.client is not None and subject.recipe.federation is not None:
            measurements += _benefits(data, alone, right, confidence)
        parts = [] if few_groups else _parts(subject, models, confidence)
        notes = [*_heterogeneity(data), *_attributed(parts)]
        if self.attribution and data.group is not None and BACKBONE not in models:
            notes.append(NO_BACKBONE)
        return self._complete(subject, [*measurements, *parts], notes)

    def _complete(self, subject: Subject, measurements: list[Measurement], notes: list[str]) -> CheckResult:
        """The measurements, completed by the metrics that the dossier does not allow and the reasons why."""
        measured = {one.metric for one in measurements}
        missing = [name for name in get_args(FairnessMetric) if name not in measured]
        reasons = {name: NO_GROUPS if name in OF_GROUPS else NO_CLIENTS for name in missing}
        if "client_benefit" in reasons and subject.recipe.federation is None:
            reasons["client_benefit"] = NO_FEDERATION
        rest = self.undeclared(reasons)
        update = {"measurements": (*measurements, *rest.measurements), "notes": (*notes, *rest.notes)}
        return rest.model_copy(update=update)


def _as_head(recipe: Recipe) -> Recipe:
    """The recipe for a head on the frozen backbone: the recipe's own head, or plain settings if it trains none."""
    if recipe.adaptation == "head":
        return recipe.model_copy(update={"augmentation": None})
    plain = {
        "adaptation": "head",
        "head": Head(),
        "lora": None,
        "optimizer": Adam(name="adam", lr=0.001),
        "schedule": Constant(),
        "epochs": 100,
        "label_smoothing": 0.0,
        "augmentation": None,
        "federation": None,
        "privacy": None,
        "precision": "float32",
    }
    return Recipe(**{name: getattr(recipe, name) for name in Recipe.model_fields} | plain)


def _alone(subject: Subject) -> dict[str, Probe]:
    """Probes of the heads that each client of a federation trains alone, by client."""
    recipe, data = subject.recipe, subject.data
    if recipe.adaptation != "head" or recipe.federation is None or data.client is None:
        return {}
    names = np.unique(data.client[data.split == Split.MEMBER])
    return {str(name): probe(recipe, data.digest, f"{CLIENT}{name}") for name in names}


@dataclass(frozen=True)
class _Audited:
    """One model's answers on the holdout rows, predicted and label (N,). Only the candidate's measurements have the
    names that limits use; those of other models are marked as inherited."""

    predicted: Ints
    label: Ints
    name: str
    confidence: float
    rng: np.random.Generator

    def of_clients(self, client: Names) -> list[Measurement]:
        names, code = np.unique(client, return_inverse=True)
        rows = np.bincount(code, minlength=len(names))
        right = np.bincount(code[self.predicted == self.label], minlength=len(names))
        spreads = [metric(right, rows, self.confidence, self.rng) for metric in (client_std, worst_decile_gap)]
        even = evenness(right, rows, self.confidence, self.rng) if self.name == CANDIDATE else []
        return [*self._named(spreads), *even]

    def of_groups(self, group: Names, few: str | None) -> list[Measurement]:
        """few: the reason why classes of groups cannot be compared; None if they can."""
        gap = self._named([group_gap(self.predicted == self.label, group, self.confidence)])
        if few:
            return [*gap, *self.missing(["equalized_odds"], few)]
        return [*gap, *self._named([equalized_odds(self.predicted, self.label, group, self.confidence, self.rng)])]

    def missing(self, metrics: Iterable[str], why: str | None) -> list[Measurement]:
        """All of these metrics as not measured for this reason; empty without a reason."""
        return self._named([not_measured(metric, why) for metric in metrics]) if why else []

    def _named(self, measurements: list[Measurement]) -> list[Measurement]:
        """The measurements; if this is not the candidate, with INHERITED in their names and the model as subject."""
        if self.name == CANDIDATE:
            return measurements
        return [one.model_copy(update={"metric": INHERITED + one.metric, "subject": self.name}) for one in measurements]


def _classes_of_groups(data: AuditData) -> Names | None:
    """Each row's group and class in one name (N,); None without groups."""
    return None if data.group is None else np.char.add(np.char.add(data.group, ", class "), data.label.astype(np.str_))


def _unserved(data: AuditData, names: Names | None, fewest: int, one: str) -> str | None:
    """The reason why the named parts of the rows (N,) cannot be compared; None if each has `fewest` holdout rows.

    Only names among members or holdout count; a name that only the population has is ignored.
    """
    if names is None:
        return None
    holdout = names[data.split == Split.HOLDOUT]
    # A name without holdout rows gets a count of 0 here, and so is found to have too few.
    known = np.unique(names[data.split != Split.POPULATION])
    few = known[np.bincount(np.searchsorted(known, holdout), minlength=len(known)) < fewest]
    if not len(few):
        return None
    lacking = f"{len(few):,} of {len(known):,} have fewer, the first is {str(few[0])!r}"
    return f"needs n >= {fewest} holdout rows of every {one}: {lacking}"


def _benefits(data: AuditData, alone: Mapping[str, Ints], right: Bools, confidence: float) -> list[Measurement]:
    """client_benefit, and contribution_match for reports."""
    if why := _unserved(data, data.client, 1, "client"):
        return [not_measured(metric, why) for metric in ("client_benefit", "contribution_match")]
    return [_benefit(data, alone, right, confidence), *_matches(data, alone, right, confidence)]


def _benefit(data: AuditData, alone: Mapping[str, Ints], right: Bools, confidence: float) -> Measurement:
    """Whether clients are served at least as well as alone, each judged by its own holdout rows."""
    if not alone or data.client is None:
        return not_measured("client_benefit", "needs adaptation: head, and clients that have members")
    holdout = data.split == Split.HOLDOUT
    # Each client is judged on its own holdout rows; the pairs of both models are concatenated client by client.
    rows_of = {name: holdout & (data.client == name) for name in alone}
    by_itself = [answers[rows_of[name]] == data.label[rows_of[name]] for name, answers in alone.items()]
    together = np.concatenate([right[rows] for rows in rows_of.values()])
    client = np.concatenate([data.client[rows] for rows in rows_of.values()])
    return client_benefit(together, np.concatenate(by_itself), client, confidence)


def _matches(data: AuditData, alone: Mapping[str, Ints], right: Bools, confidence: float) -> list[Measurement]:
    """Whether clients that contribute more are served better: by their own model's accuracy, and by their examples.

    A client's own model is judged on all holdout rows, the same for all clients. On the client's own rows only, rows
    that are hard by chance would be hard for both models and look like a match.
    """
    if data.client is None:
        return []
    holdout, member = data.split == Split.HOLDOUT, data.split == Split.MEMBER
    gets = np.array([right[holdout & (data.client == name)].mean() for name in alone])
    brings: dict[str, Floats] = {
        "accuracy of what each trains alone": np.array([(alone[n] == data.label)[holdout].mean() for n in alone]),
        "examples": np.array([float((member & (data.client == name)).sum()) for name in alone]),
    }
    return [
        contribution_match(brought, gets, confidence).model_copy(update={"subject": what})
        for what, brought in brings.items()
    ]


def _heterogeneity(data: AuditData) -> list[str]:
    """A note on how differently the clients' members are distributed over the classes; empty without clients."""
    if data.client is None:
        return []
    member = data.split == Split.MEMBER
    parts = [np.flatnonzero(member & (data.client == name)) for name in np.unique(data.client[member])]
    apart = heterogeneity(parts, data.label)
    return [f"fairness: clients' classes differ from those of all by {apart:.2f} in total variation, on average"]


def _parts(subject: Subject, models: Mapping[str, Ints], confidence: float) -> list[Measurement]:
    """The parts of the candidate's gap between groups, by stage, as far as there are models to compare."""
    data, holdout = subject.data, subject.data.split == Split.HOLDOUT
    if data.group is None or len(models) < 2:
        return []
    known = {BACKBONE: "inherited from the frozen backbone", CANDIDATE: f"added by {TRAINING}"}
    if subject.recipe.federation is not None:
        known[CANDIDATE] = "added by federation" if CENTRALISED in models else f"added by federated {TRAINING}"
    known[CENTRALISED] = f"added by {TRAINING}" if BACKBONE in models else "there without federation"
    stages = {known[name]: (answers == data.label)[holdout] for name, answers in models.items()}
    return gap_parts(stages, data.group[holdout], confidence)


def _attributed(parts: list[Measurement]) -> list[str]:
    """A note with the parts of the gap between groups."""
    listed = [
        f"{100 * part.value:.1f} pp [{100 * part.low:.1f}, {100 * part.high:.1f}] {part.subject}"
        for part in parts
        if part.value is not None and part.low is not None and part.high is not None
    ]
    if not listed:
        return []
    return [f"fairness: parts of the accuracy gap between groups, {parts[0].samples}: {', '.join(listed)}"]

"""Whom does the candidate serve worse: clients and groups, and where that comes from."""

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
"""Models whose gaps are compared, and where they come from: what a candidate inherits, and what is added to it."""

TRAINING = "fine-tuning"

CLIENT = "client:"
"""Begins the names of models that clients train alone."""

NO_CLIENTS = "the audit table names no clients: add a column and columns: {client: ...} to the manifest"
NO_GROUPS = "the audit table names no groups: add a column and columns: {group: ...} to the manifest"

NO_BACKBONE = (
    "fairness: what of a gap between groups comes from the frozen backbone is not measured: it needs public weights, "
    "and population rows that nobody else trains on"
)


class Fairness(WhereDeclared):
    """Accuracy of clients and groups on the holdout (arXiv 2402.01857: resource disparity, demographic attributes).

    attribution  measures the gaps of a head on the frozen backbone, trained on the population, and of one trained
                 centrally on a federation's members: what the candidate inherited. Limits are judged on the candidate
                 alone
    required     of clients, groups and, for client_benefit, a federation: see WhereDeclared

    A client or group that members name counts whether or not it has holdout rows: where too few tell how it is served,
    what compares it with others is not measured. Its accuracy is not made up, and it is not passed over, as if whoever
    is taken out of the holdout were served well. So it is, for equalized_odds, with each class of each group.

    Reported, never limited: evenness of clients' accuracies, contribution_match, and the parts of group_gap.
    """

    title: ClassVar[str] = "Whom the model serves worse"
    left_open: ClassVar[str | None] = "groups that the model serves worse"
    tiered: ClassVar[bool] = True

    check: Literal["fairness"] = "fairness"
    attribution: bool = True
    limits: Mapping[FairnessMetric, Limit] = Field(default_factory=dict)

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """group_gap's, where two groups have nothing but right rows. What clients need hangs on how many there are."""
        limit = self.limits.get("group_gap")
        return {} if limit is None or limit.max is None else {"group_gap": needed_holdout(limit, confidence)}

    def jobs(self, subject: Subject) -> list[Job]:
        """The candidate's logits, and the heads that it is compared with."""
        score = score_job(subject)
        return [*feature_jobs(subject), score, *self._inherited(subject).values(), *_alone(subject).values()]

    def _inherited(self, subject: Subject) -> dict[str, Probe]:
        """Models that the candidate is compared with, from what it stands on onwards."""
        recipe, data = subject.recipe, subject.data
        if not self.attribution or (data.group is None and data.client is None):
            return {}
        found = {}
        if recipe.adaptation != "scratch" and (data.split == Split.POPULATION).any():
            found[BACKBONE] = probe(_as_head(recipe), data.digest, "population")
        if recipe.adaptation == "head" and recipe.federation is not None:
            found[CENTRALISED] = probe(recipe, data.digest, "member")
        return found

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Every metric that the table allows; the others by `required`."""
        data, holdout = subject.data, subject.data.split == Split.HOLDOUT
        few_clients, few_groups = _unserved(data, data.client, 2, "client"), _unserved(data, data.group, 1, "group")
        few_classes = _unserved(data, _classes_of_groups(data), 1, "class of every group")
        models = {name: results(job)["logits"].argmax(axis=1) for name, job in self._inherited(subject).items()}
        models[CANDIDATE] = results(score_job(subject))["logits"].argmax(axis=1)
        alone = {name: results(job)["logits"].argmax(axis=1) for name, job in _alone(subject).items()}
        # Keyed by the data, so that an audit that is repeated says the same.
        rng = np.random.default_rng(int(data.digest[:16], 16))
        found: list[Measurement] = []
        for name, answers in reversed(models.items()):
            audited = _Audited(answers[holdout], data.label[holdout], name, confidence, rng)
            if data.client is not None:
                found += audited.missing(OF_CLIENTS, few_clients) or audited.of_clients(data.client[holdout])
            if data.group is not None:
                found += audited.missing(OF_GROUPS, few_groups) or audited.of_groups(data.group[holdout], few_classes)
        right = models[CANDIDATE] == data.label
        if data.client is not None and subject.recipe.federation is not None:
            found += _benefits(data, alone, right, confidence)
        parts = [] if few_groups else _parts(subject, models, confidence)
        told = [*_heterogeneity(data), *_attributed(parts)]
        if self.attribution and data.group is not None and BACKBONE not in models:
            told.append(NO_BACKBONE)
        return self._complete(subject, [*found, *parts], told)

    def _complete(self, subject: Subject, found: list[Measurement], told: list[str]) -> CheckResult:
        """The measurements, and what to say of those that the dossier does not allow."""
        there = {one.metric for one in found}
        missing = [name for name in get_args(FairnessMetric) if name not in there]
        reasons = {name: NO_GROUPS if name in OF_GROUPS else NO_CLIENTS for name in missing}
        if "client_benefit" in reasons and subject.recipe.federation is None:
            reasons["client_benefit"] = NO_FEDERATION
        rest = self.undeclared(reasons)
        return rest.model_copy(update={"measurements": (*found, *rest.measurements), "notes": (*told, *rest.notes)})


def _as_head(recipe: Recipe) -> Recipe:
    """How a head on the frozen backbone is trained: as the recipe says where it trains one, else plainly."""
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
    """What each client of a federation trains alone, by client."""
    recipe, data = subject.recipe, subject.data
    if recipe.adaptation != "head" or recipe.federation is None or data.client is None:
        return {}
    names = np.unique(data.client[data.split == Split.MEMBER])
    return {str(name): probe(recipe, data.digest, f"{CLIENT}{name}") for name in names}


@dataclass(frozen=True)
class _Audited:
    """One model's answers on the holdout rows, predicted and label (N,); only the candidate's figures go by the names
    that limits know."""

    predicted: Ints
    label: Ints
    name: str
    confidence: float
    rng: np.random.Generator

    def of_clients(self, client: Names) -> list[Measurement]:
        names, code = np.unique(client, return_inverse=True)
        rows = np.bincount(code, minlength=len(names))
        right = np.bincount(code[self.predicted == self.label], minlength=len(names))
        found = [metric(right, rows, self.confidence, self.rng) for metric in (client_std, worst_decile_gap)]
        even = evenness(right, rows, self.confidence, self.rng) if self.name == CANDIDATE else []
        return [*self._told(found), *even]

    def of_groups(self, group: Names, few: str | None) -> list[Measurement]:
        """few: why classes of groups cannot be compared; None where they can."""
        gap = self._told([group_gap(self.predicted == self.label, group, self.confidence)])
        if few:
            return [*gap, *self.missing(["equalized_odds"], few)]
        return [*gap, *self._told([equalized_odds(self.predicted, self.label, group, self.confidence, self.rng)])]

    def missing(self, metrics: Iterable[str], why: str | None) -> list[Measurement]:
        """None of the metrics measured, for this reason; empty where there is none."""
        return self._told([not_measured(metric, why) for metric in metrics]) if why else []

    def _told(self, found: list[Measurement]) -> list[Measurement]:
        if self.name == CANDIDATE:
            return found
        return [one.model_copy(update={"metric": INHERITED + one.metric, "subject": self.name}) for one in found]


def _classes_of_groups(data: AuditData) -> Names | None:
    """Each row's group and class in one name (N,); None without groups."""
    return None if data.group is None else np.char.add(np.char.add(data.group, ", class "), data.label.astype(np.str_))


def _unserved(data: AuditData, names: Names | None, fewest: int, one: str) -> str | None:
    """Why all that rows are named by (N,) cannot be compared; None where each name has `fewest` holdout rows.

    Those whom members or the holdout name: whoever stands in the population alone might as well not stand there.
    """
    if names is None:
        return None
    held = names[data.split == Split.HOLDOUT]
    known = np.unique(names[data.split != Split.POPULATION])
    few = known[np.bincount(np.searchsorted(known, held), minlength=len(known)) < fewest]
    if not len(few):
        return None
    told = f"{len(few):,} of {len(known):,} have fewer, {str(few[0])!r} the first"
    return f"needs n >= {fewest} holdout rows of every {one}: {told}"


def _benefits(data: AuditData, alone: Mapping[str, Ints], right: Bools, confidence: float) -> list[Measurement]:
    """client_benefit, and contribution_match for reports."""
    if why := _unserved(data, data.client, 1, "client"):
        return [not_measured(metric, why) for metric in ("client_benefit", "contribution_match")]
    return [_benefit(data, alone, right, confidence), *_matches(data, alone, right, confidence)]


def _benefit(data: AuditData, alone: Mapping[str, Ints], right: Bools, confidence: float) -> Measurement:
    """Whether clients fare at least as well as alone, each judged by its own holdout rows."""
    if not alone or data.client is None:
        return not_measured("client_benefit", "needs adaptation head, and clients that are named among the members")
    holdout = data.split == Split.HOLDOUT
    mine = {name: holdout & (data.client == name) for name in alone}
    by_itself = [answers[mine[name]] == data.label[mine[name]] for name, answers in alone.items()]
    together = np.concatenate([right[rows] for rows in mine.values()])
    who = np.concatenate([data.client[rows] for rows in mine.values()])
    return client_benefit(together, np.concatenate(by_itself), who, confidence)


def _matches(data: AuditData, alone: Mapping[str, Ints], right: Bools, confidence: float) -> list[Measurement]:
    """Whether clients that bring more are served better: by what each one's own model can, and by its examples.

    A client's own model is judged on everyone's holdout rows, the same for all: on the client's own alone, rows that
    are hard by chance would be hard for both models, and pass for a match.
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
    """How differently the clients' members are spread over the classes, in words; nothing without clients."""
    if data.client is None:
        return []
    member = data.split == Split.MEMBER
    parts = [np.flatnonzero(member & (data.client == name)) for name in np.unique(data.client[member])]
    apart = heterogeneity(parts, data.label)
    return [f"fairness: clients' classes differ from everyone's by {apart:.2f} in total variation, on average"]


def _parts(subject: Subject, models: Mapping[str, Ints], confidence: float) -> list[Measurement]:
    """Where the candidate's gap between groups comes from, as far as the evidence tells."""
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
    """The parts of the gap between groups as a sentence."""
    told = [
        f"{100 * part.value:.1f} pp [{100 * part.low:.1f}, {100 * part.high:.1f}] {part.subject}"
        for part in parts
        if part.value is not None and part.low is not None and part.high is not None
    ]
    return [f"fairness: of the gap of accuracy between groups, {parts[0].samples}: {', '.join(told)}"] if told else []

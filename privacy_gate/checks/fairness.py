"""Whom does the candidate serve worse: clients and groups, and where that comes from."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privacy_gate.checks.check import Check, Results, Subject
from privacy_gate.checks.references import feature_jobs
from privacy_gate.dataset import Split
from privacy_gate.evidence import Bools
from privacy_gate.job import Job, Probe, Score, probe
from privacy_gate.metrics.benefit import client_benefit
from privacy_gate.metrics.fairness import client_std, evenness, worst_decile_gap
from privacy_gate.metrics.groups import equalized_odds, group_gap
from privacy_gate.verdict import CheckResult, Limit, Measurement, not_measured

FairnessMetric = Literal["client_std", "worst_decile_gap", "client_benefit", "group_gap", "equalized_odds"]

CANDIDATE, CENTRALISED, BACKBONE = "candidate", "centralised training", "frozen backbone"

NO_CLIENTS = "the audit table names no clients: add a column and columns: {client: ...} to the manifest"
NO_GROUPS = "the audit table names no groups: add a column and columns: {group: ...} to the manifest"
NO_FEDERATION = "the recipe declares no federation, whose benefit could be measured"


class Fairness(Check):
    """Accuracy of clients and groups on the holdout (arXiv 2402.01857: resource disparity, demographic attributes).

    attribution  measures group_gap and equalized_odds of a head trained centrally on the same members, and of one
                 trained on the population: what the candidate inherited. Limits are judged on the candidate alone
    required     a table without clients or groups leaves its metrics not measured, so the verdict undecided;
                 else they are left out, with a note
    """

    check: Literal["fairness"] = "fairness"
    attribution: bool = True
    required: bool = False
    limits: Mapping[FairnessMetric, Limit] = Field(default_factory=dict)

    def jobs(self, subject: Subject) -> list[Job]:
        """The candidate's logits, and the heads that it is compared with."""
        score = Score(subject.artifact, subject.recipe, subject.data.digest)
        return [*feature_jobs(subject), score, *self._probes(subject).values()]

    def _probes(self, subject: Subject) -> dict[str, Probe]:
        recipe, data = subject.recipe, subject.data
        if recipe.adaptation != "head":
            return {}
        wanted = {}
        if self.attribution and data.group is not None:
            wanted = {CENTRALISED: "member", BACKBONE: "population"}
            if not (data.split == Split.POPULATION).any():
                del wanted[BACKBONE]
        if recipe.federation is not None and data.client is not None:
            names = np.unique(data.client[data.split == Split.MEMBER])
            wanted |= {f"client:{name}": f"client:{name}" for name in names}
        return {name: probe(recipe, data.digest, rows) for name, rows in wanted.items()}

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Every metric that the table allows; the others by `required`."""
        data, holdout = subject.data, subject.data.split == Split.HOLDOUT
        logits = results(Score(subject.artifact, subject.recipe, data.digest))["logits"]
        predicted = logits.argmax(axis=1)
        # Keyed by the data, so that an audit that is repeated says the same.
        rng = np.random.default_rng(int(data.digest[:16], 16))
        found: list[Measurement] = []
        if data.client is not None:
            found += _clients((predicted == data.label)[holdout], data.client[holdout], confidence, rng)
        if data.client is not None and subject.recipe.federation is not None:
            found.append(self._benefit(subject, results, predicted == data.label, confidence))
        if data.group is not None:
            probes = {name: job for name, job in self._probes(subject).items() if not name.startswith("client:")}
            models = {CANDIDATE: predicted}
            models |= {name: results(job)["logits"].argmax(axis=1) for name, job in probes.items()}
            for name, answers in models.items():
                found += _groups(name, answers[holdout], data.label[holdout], data.group[holdout], confidence, rng)
        return self._complete(subject, found)

    def _complete(self, subject: Subject, found: list[Measurement]) -> CheckResult:
        """The measurements, and what to say of those that the dossier does not allow."""
        there = {one.metric for one in found}
        missing = [name for name in get_args(FairnessMetric) if name not in there]
        reasons = {name: NO_GROUPS if name in ("group_gap", "equalized_odds") else NO_CLIENTS for name in missing}
        if "client_benefit" in reasons and subject.recipe.federation is None:
            reasons["client_benefit"] = NO_FEDERATION
        if self.required:
            absent = [not_measured(name, reason) for name, reason in reasons.items()]
            return CheckResult(measurements=(*found, *absent))
        notes = tuple(f"fairness: left out, since {reason}" for reason in dict.fromkeys(reasons.values()))
        return CheckResult(measurements=tuple(found), notes=notes)

    def _benefit(self, subject: Subject, results: Results, right: Bools, confidence: float) -> Measurement:
        """Whether clients fare at least as well as alone, each judged by its own holdout rows."""
        jobs = {name: job for name, job in self._probes(subject).items() if name.startswith("client:")}
        data = subject.data
        if not jobs or data.client is None:
            return not_measured("client_benefit", "needs adaptation head, and clients that are named among the members")
        rows, alone, together, who = data.split == Split.HOLDOUT, [], [], []
        for name, job in jobs.items():
            mine = rows & (data.client == name.removeprefix("client:"))
            alone.append(results(job)["logits"][mine].argmax(axis=1) == data.label[mine])
            together.append(right[mine])
            who.append(data.client[mine])
        return client_benefit(np.concatenate(together), np.concatenate(alone), np.concatenate(who), confidence)


def _clients(
    correct: Bools, client: NDArray[np.str_], confidence: float, rng: np.random.Generator
) -> list[Measurement]:
    names, code = np.unique(client, return_inverse=True)
    rows, right = np.bincount(code, minlength=len(names)), np.bincount(code[correct], minlength=len(names))
    return [
        client_std(right, rows, confidence, rng),
        worst_decile_gap(right, rows, confidence, rng),
        *evenness(right, rows, confidence, rng),
    ]


def _groups(
    name: str,
    predicted: NDArray[np.int64],
    label: NDArray[np.int64],
    group: NDArray[np.str_],
    confidence: float,
    rng: np.random.Generator,
) -> list[Measurement]:
    """Gaps between groups of one model; only the candidate's go by the names that limits know."""
    found = [
        group_gap(predicted == label, group, confidence),
        equalized_odds(predicted, label, group, confidence, rng),
    ]
    if name == CANDIDATE:
        return found
    return [one.model_copy(update={"metric": f"inherited_{one.metric}", "subject": name}) for one in found]

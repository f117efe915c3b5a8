"""Does the candidate tell who was in its training data? Attacks on it and its references."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from pydantic import Field

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS, strongest
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.release import Release
from privacy_gate.attacks.view import view_of
from privacy_gate.checks.base.check import Check, Results, Subject, in_percent
from privacy_gate.checks.base.references import (
    AttackNames,
    accounted,
    contents,
    control_job,
    feature_jobs,
    gather,
    reference_jobs,
    with_changed,
)
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Job
from privacy_gate.metrics.catalogue import METRICS
from privacy_gate.metrics.controls.plausibility import plausibility
from privacy_gate.metrics.controls.self_tests import (
    comparable,
    control_evidence,
    distinct,
    negative_control,
    positive_control,
)
from privacy_gate.metrics.membership import (
    PRECISION_FPR,
    PRIORS,
    auc,
    balanced_accuracy,
    histogram,
    needed_for_balance,
    precision,
    precision_name,
    roc,
    tpr_at_fpr,
)
from privacy_gate.metrics.power_law import published, remedy, shots_needed
from privacy_gate.metrics.rates import FPRS, at, needed_holdout
from privacy_gate.verdict.judgement import (
    CheckResult,
    Control,
    Exhibit,
    Limit,
    Measurement,
    Remedy,
    Status,
    judged_status,
    not_measured,
)

MembershipMetric = Literal[
    "tpr_at_0.1_fpr",
    "tpr_at_0.01_fpr",
    "tpr_at_0.001_fpr",
    "auc",
    "balanced_accuracy",
    "precision_at_0.5_prior",
    "precision_at_0.1_prior",
    "precision_at_0.01_prior",
]

ADVISE = Remedy(
    action="measure what other recipes would leak and cost, and which would meet the limits: privacy-gate advise",
    basis="it trains references with fewer epochs, more weight decay, label smoothing, DP-SGD, or without the most "
    "vulnerable examples",
)

TPRS = {at("tpr", fpr): fpr for fpr in FPRS}
"""False positive rates of the true positive rates, by name."""

RESOLVED = {**TPRS, **{precision_name(prior): PRECISION_FPR for prior in PRIORS}}
"""False positive rates that the holdout must resolve, by the metric that is read there."""


class Membership(Check):
    """Membership inference against the candidate (arXiv 2402.06674).

    references  models trained as the candidate was, each on its own share of the pool
    attacks     names from ATTACKS; a limit is judged for each of them. None: the strongest that the policy's release
                allows, see attacks.strongest
    knowledge   pool: the attacker knows the audited rows, members and others together, as the audit does. population:
                he knows other rows of the same kind alone, so attacks that train on the pool are not his
    """

    title: ClassVar[str] = "Membership inference on this candidate"
    attack_class: ClassVar[str | None] = "membership inference"
    by_references: ClassVar[bool] = True

    check: Literal["membership"] = "membership"
    references: Annotated[int, Field(ge=8, le=10_000)] = 64
    attacks: AttackNames | None = None
    knowledge: Literal["pool", "population"] = "pool"
    limits: Mapping[MembershipMetric, Limit] = Field(default_factory=dict)

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """What resolves each false positive rate, and what a balanced accuracy at chance asks for.

        Not for `auc`, which a limit of at least .5 leaves with a handful of rows: scores may as well be the wrong way.
        """
        needed: dict[str, int | None] = {}
        for metric, limit in self.limits.items():
            if metric in RESOLVED:
                needed[metric] = needed_holdout(RESOLVED[metric])
            elif metric == "balanced_accuracy":
                needed[metric] = needed_for_balance(limit, confidence)
        return needed

    def attacks_tried(self, release: Release, recipe: Recipe) -> tuple[str, ...]:
        """The attacks that are tried on a candidate of this recipe, by name."""
        return self.attacks or strongest(release, recipe.adaptation)

    def jobs(self, subject: Subject) -> list[Job]:
        """Features, the candidate's logits, every reference, and the positive control."""
        jobs = [*reference_jobs(subject, self.references), control_job(subject)]
        if self._asks_of_changed(subject):
            jobs += feature_jobs(subject, changed=True)
        return list(dict.fromkeys(jobs))

    def _asks_of_changed(self, subject: Subject) -> bool:
        return any(ATTACKS[name].steady for name in self.attacks_tried(subject.release, subject.recipe))

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Every metric for every attack, their pictures, and what would help."""
        whole = gather(subject, self.references, results)
        if self._asks_of_changed(subject):
            whole = with_changed(subject, whole, results)
        evidence = view_of(whole, subject.release)
        measurements: list[Measurement] = []
        exhibits: list[Exhibit] = []
        found: dict[str, Floats] = {}
        for name in self.attacks_tried(subject.release, subject.recipe):
            if (reason := self._unmet(name, evidence)) is not None:
                measurements += [not_measured(metric, reason, name) for metric in get_args(MembershipMetric)]
                continue
            found[name] = ATTACKS[name].score(evidence)
            member, holdout = found[name][evidence.member], found[name][evidence.holdout]
            measurements += _measure(member, holdout, confidence, name)
            exhibits += [roc(member, holdout, name), histogram(member, holdout, name)]
        return CheckResult(
            measurements=tuple(measurements),
            exhibits=tuple(exhibits),
            controls=tuple(_controls(subject, results, whole, found)),
            notes=(*attacker(evidence, self.knowledge), *accounted(subject, results)),
            remedies=tuple(_remedies(measurements, self.bounds, whole, subject, confidence)),
        )

    def _unmet(self, name: str, evidence: MembershipEvidence) -> str | None:
        if self.knowledge == "population" and ATTACKS[name].pool:
            return "its attacker knows the pool of candidates, and the policy says knowledge: population"
        return ATTACKS[name].unmet(evidence)


def attacker(evidence: MembershipEvidence, knowledge: str) -> tuple[str, ...]:
    """Whose figures these are, in a note: what the attacker sees, what he knows, and how well he recovers a head."""
    knows = "the pool of audited rows" if knowledge == "pool" else "other rows of the population, and not the pool"
    lines = [f"membership: the attacker sees {evidence.release} and knows {knows}"]
    if evidence.head is not None and evidence.release.outputs not in ("weights", "label", "top_k"):
        lines.append(
            "membership: the attacker recovers the head from the answers, with an error of "
            f"{evidence.residual_of_head:.1e} of the logits' size"
        )
    return tuple(lines)


def _controls(
    subject: Subject, results: Results, evidence: MembershipEvidence, scores: Mapping[str, Floats]
) -> list[Control]:
    """Is the audit able to see a leak, and does the dossier describe this model? See metrics.controls."""
    data = subject.data
    # Rounding may hide the planted leak as well, which would not mean that the attack cannot see one.
    unrounded = subject.release.model_copy(update={"digits": None})
    planted = view_of(control_evidence(results(control_job(subject))), unrounded)
    # Some attacks need what no control has, a loss trace for instance: beside them the plainest one is tried.
    plainest = "loss" if subject.release.shows("top_k") else "gap"
    tried = dict.fromkeys([*scores, plainest])
    seen = {name: ATTACKS[name].score(planted) for name in tried if ATTACKS[name].unmet(planted) is None}
    described = plausibility(evidence) or [
        Control(
            name="plausible",
            held=False,
            detail=f"{len(evidence.reference)} references are too few, for rows as seldom inside their training sets, "
            "to say whether the dossier describes this model: use more",
        )
    ]
    return [
        comparable(data.label, data.split, data.group),
        distinct(contents(subject, results), data.split),
        *described,
        *negative_control(evidence, scores),
        _with_untried(positive_control(planted, seen), [name for name in scores if name not in seen]),
    ]


def _with_untried(control: Control, names: list[str]) -> Control:
    """The control, and which attacks it says nothing of."""
    if not names:
        return control
    return control.model_copy(update={"detail": f"{control.detail}; not tried: {', '.join(names)}"})


def _measure(member: Floats, holdout: Floats, confidence: float, attack: str) -> list[Measurement]:
    return [
        *(tpr_at_fpr(member, holdout, fpr, confidence, attack) for fpr in FPRS),
        auc(member, holdout, confidence, attack),
        balanced_accuracy(member, holdout, confidence, attack),
        *(precision(member, holdout, prior, confidence, attack) for prior in PRIORS),
    ]


LESS = (Release(outputs="label"),)
"""Smaller releases that are measured on a blocked candidate, from what is stored. Rounded or single probabilities are
none of them: the attacks here on those are not the best that can be thought of."""


def _remedies(
    measurements: Sequence[Measurement],
    limits: Mapping[str, Limit],
    evidence: MembershipEvidence,
    subject: Subject,
    confidence: float,
) -> list[Remedy]:
    """What releasing less would leak, measured on this candidate; then how many examples per class would meet the
    violated limits, by the law that asks for the most of them; then the command that measures other changes."""
    violated = [
        m.metric for m in measurements if m.metric in limits and judged_status(m, limits[m.metric]) is Status.VIOLATED
    ]
    rates = [metric for metric in TPRS if metric in violated]
    measured = _by_release(rates[-1], limits, evidence, subject, confidence) if rates else []
    return [*measured, *_by_law(measurements, limits, evidence), *([ADVISE] if violated else [])]


def _by_release(
    metric: str, limits: Mapping[str, Limit], evidence: MembershipEvidence, subject: Subject, confidence: float
) -> list[Remedy]:
    """A remedy for each smaller release under which the strongest attack meets the limit on the metric."""
    remedies = []
    for release in LESS:
        if not subject.release.shows(release.outputs) or release.settings == subject.release.settings:
            continue
        seen = view_of(evidence, release)
        names = [name for name in strongest(release, subject.recipe.adaptation) if ATTACKS[name].unmet(seen) is None]
        scores = {name: ATTACKS[name].score(seen) for name in names}
        figures = [
            tpr_at_fpr(values[seen.member], values[seen.holdout], TPRS[metric], confidence, name)
            for name, values in scores.items()
        ]
        known = [figure for figure in figures if figure.value is not None]
        if not known or any(judged_status(figure, limits[metric]) is not Status.MET for figure in known):
            continue
        worst = max(known, key=lambda figure: figure.value or 0.0)
        action = f"release {release} in place of {subject.release}: release: {release.settings}"
        basis = (
            f"measured on this candidate: {METRICS[metric].title}: {in_percent(worst)} by the strongest of "
            f"{len(known)} attacks ({worst.subject}); only if nothing else leaves the house"
        )
        remedies.append(Remedy(action=action, basis=basis))
    return remedies


def _by_law(
    measurements: Sequence[Measurement], limits: Mapping[str, Limit], evidence: MembershipEvidence
) -> list[Remedy]:
    """How many examples per class would meet the violated limits, by the published law."""
    counts = np.unique(evidence.label[evidence.member], return_counts=True)[1]
    asked: list[tuple[float, Remedy]] = []
    for metric, limit in limits.items():
        values = [m.value for m in measurements if m.metric == metric and m.value is not None]
        if metric in TPRS and limit.max is not None and values and max(values) > limit.max:
            law = published(max(values), TPRS[metric], float(np.median(counts)))
            asked.append((shots_needed(law, limit.max) or 0.0, remedy(law, limit.max)))
    return [max(asked, key=lambda pair: pair[0])[1]] if asked else []

"""Sample reports: simulated Gaussian scores, really judged; rounded, so that every machine gives the same bytes."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import pytest

from privacy_gate.dossier.backbone import Backbone, Input, PublicWeights
from privacy_gate.dossier.optimizers import Adam, Cosine
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.verdict.exhibits import Histogram, LawPlot, Roc
from privacy_gate.verdict.judgement import (
    CheckResult,
    Control,
    Exhibit,
    Finding,
    Limit,
    Measurement,
    Remedy,
    Severity,
    WaiverNote,
    judge,
    not_measured,
    verdict,
)
from privacy_gate.verdict.report import CandidateRecord, CheckRecord, DataRecord, PolicyRecord, Report

Arrays = np.ndarray
Limits = dict[str, Limit]
FPRS = (0.1, 0.01, 0.001)
METHOD = {"tpr": "Clopper-Pearson mixed over the threshold's rank", "auc": "Wilson with DeLong's effective sample"}

RECIPE = Recipe(
    backbone=Backbone(
        name="tf_efficientnet_lite0", weights=PublicWeights(uri="file:///models/lite0.safetensors", sha256="5e" * 32)
    ),
    input=Input(size=128, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop=0.875),
    classes=10,
    optimizer=Adam(name="adam", lr=0.001),
    schedule=Cosine(name="cosine"),
    epochs=30,
    batch_size=64,
    seed=7,
)
THREATS = (
    "The attacker sees the model's confidences (black box) and knows its recipe and public backbone.",
    "The attacker knows the pool of candidates for membership: members and holdout.",
)
UNTESTED = (
    "reconstruction and model inversion",
    "attribute inference",
    "training-data extraction by prompting or regurgitation",
    "evasion and backdoors",
    "federated robustness, privacy and fairness",
    "white-box membership inference from gradients or weights",
)


def wilson(share: float, count: float) -> tuple[float, float, float]:
    """low, value, high at 95 %, rounded."""
    z2 = NormalDist().inv_cdf(0.975) ** 2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 / count * (share * (1 - share) + z2 / (4 * count))) / (1 + z2 / count)
    ends = (max(0.0, min(centre - half, share)), share, min(1.0, max(centre + half, share)))
    return tuple(round(end, 9) for end in ends)  # type: ignore[return-value]


def figure(metric: str, share: float, count: float, subject: str = "", samples: str = "") -> Measurement:
    low, value, high = wilson(share, count)
    method = METHOD.get(metric.partition("_")[0], "Clopper-Pearson")
    ends = {"value": value, "low": low, "high": high, "confidence": 0.95}
    return Measurement(metric=metric, subject=subject, method=method, samples=samples, **ends)


class Attack:
    """Scores of one attack on a leaking model: members score `shift` higher, a few of them much higher."""

    def __init__(self, name: str, shift: float, rows: int, seed: int, spread: float = 1.0, base: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.name, self.rows = name, rows
        tail = 1.6 * shift * rng.exponential(size=rows)
        self.member = np.round(base + spread * (rng.standard_normal(rows) + 0.4 * shift + tail), 6)
        self.holdout = np.round(base + spread * rng.standard_normal(rows), 6)

    def tpr(self, fpr: float) -> float:
        threshold = np.sort(self.holdout)[-(int(fpr * self.rows) + 1)]
        return float(np.mean(self.member > threshold))

    def measurements(self) -> list[Measurement]:
        samples = f"{self.rows:,} members, {self.rows:,} holdout"
        found = []
        for fpr in FPRS:
            name = f"tpr_at_{fpr:g}_fpr"
            if self.rows < 10 / fpr:
                reason = f"needs n >= {round(10 / fpr):,} holdout rows, found {self.rows:,}"
                found.append(not_measured(name, reason, self.name))
            else:
                found.append(figure(name, self.tpr(fpr), fpr * self.rows * 3, self.name, samples))
        ranks = np.argsort(np.argsort(np.concatenate([self.member, self.holdout])))
        auc = float((ranks[: self.rows].sum() - self.rows * (self.rows - 1) / 2) / self.rows**2)
        return [*found, figure("auc", auc, self.rows / 2, self.name, samples)]

    def exhibits(self) -> list[Exhibit]:
        order = np.sort(self.holdout)[::-1]
        counts = np.unique(np.concatenate([np.arange(30), np.geomspace(30, self.rows, 60).astype(int) - 1]))
        fpr = [0.0, *((counts + 1) / self.rows).tolist()]
        tpr = [float(np.mean(self.member > order[0])), *(float(np.mean(self.member >= order[k])) for k in counts)]
        both = np.concatenate([self.member, self.holdout])
        edges = np.round(np.linspace(np.quantile(both, 0.002), np.quantile(both, 0.998), 41), 6)
        member, holdout = (np.histogram(np.clip(s, edges[0], edges[-1]), edges)[0] for s in (self.member, self.holdout))
        return [
            Roc(attack=self.name, fpr=tuple(fpr), tpr=tuple(round(rate, 6) for rate in tpr)),
            Histogram(
                attack=self.name,
                edges=tuple(edges.tolist()),
                member=tuple(member.tolist()),
                holdout=tuple(holdout.tolist()),
            ),
        ]


def membership(attacks: Sequence[Attack], references: int, *, missing: str = "", remedies: int = 0) -> CheckRecord:
    """The check's record; `missing` names an attack that could not run."""
    measurements = [m for attack in attacks for m in attack.measurements()]
    if missing:
        reason = "needs >= 100 population rows, found 0"
        measurements += [not_measured(f"tpr_at_{fpr:g}_fpr", reason, missing) for fpr in FPRS]
        measurements.append(not_measured("auc", reason, missing))
    help_ = (
        Remedy(
            action="train on about 410 examples per class instead of 100",
            basis="power law in the examples per class at fpr 0.01: slope -0.554 slope of arXiv 2402.06674",
        ),
        Remedy(action="train for 12 epochs instead of 30", basis="references trained under it stay below the limit"),
    )
    names = [attack.name for attack in attacks] + ([missing] if missing else [])
    return CheckRecord(
        check="membership",
        settings={"references": references, "attacks": names},
        result=CheckResult(
            measurements=tuple(measurements),
            exhibits=tuple(exhibit for attack in attacks for exhibit in attack.exhibits()),
            controls=(
                Control(name="planted leak", held=True, detail="8 of 8 planted canaries were found by lira"),
                Control(name="no leak", held=True, detail="population rows measure chance within their interval"),
            ),
            remedies=help_[:remedies],
        ),
    )


def utility(accuracy: float, rows: int, logged: Control | None = None) -> CheckRecord:
    samples = f"{rows:,} examples"
    found = (figure("holdout_accuracy", accuracy, rows, samples=samples), figure("member_accuracy", 0.991, rows))
    controls = (logged,) if logged else ()
    return CheckRecord(check="utility", settings={}, result=CheckResult(measurements=found, controls=controls))


def power_law() -> CheckRecord:
    plots = []
    for fpr, slope, intercept in ((0.1, -0.52, 0.36), (0.01, -0.56, 0.22)):
        shots = (12.5, 25.0, 50.0, 100.0)
        wobble = (1.06, 0.95, 0.98, 1.02)
        excess = tuple(
            round(w * 10 ** (intercept + slope * math.log10(s)), 6) for s, w in zip(shots, wobble, strict=True)
        )
        plots.append(LawPlot(fpr=fpr, shots=shots, excess=excess, slope=slope, intercept=intercept))
    slope_of = {"method": "weighted least squares, errors propagated", "samples": "4 sizes", "confidence": 0.95}
    found = (
        Measurement(metric="slope_at_0.1_fpr", value=-0.52, low=-0.581, high=-0.459, **slope_of),
        Measurement(metric="slope_at_0.01_fpr", value=-0.56, low=-0.672, high=-0.448, **slope_of),
        not_measured("slope_at_0.001_fpr", "a power law needs a leak above fpr 0.001 at >= 3 sizes, found 0"),
    )
    result = CheckResult(measurements=found, exhibits=tuple(plots))
    return CheckRecord(check="power_law", settings={"divisors": [8, 4, 2, 1], "references": 32}, result=result)


def findings_of(checks: Sequence[CheckRecord], limits: dict[str, Limits], waived: str = "") -> list[Finding]:
    note = WaiverNote(owner="dpo@example.org", reason="pilot with 20 users", expires="2030-06-30")
    return [
        judge(check.check, m, limit, note if m.metric == waived else None)
        for check in checks
        for m in check.result.measurements
        if (limit := limits.get(check.check, {}).get(m.metric))
    ]


def report_of(name: str, checks: Sequence[CheckRecord], findings: Sequence[Finding], **data: object) -> Report:
    decided = verdict(findings, (control for check in checks for control in check.result.controls))
    sizes = {"members": 2000, "holdout": 2000, "population": 1000, "classes": 10}
    sizes |= {"fewest_members_per_class": 93, "median_members_per_class": 100.0}
    return Report(
        created="2026-11-23T09:41:27+00:00",
        tool="privacy-gate 0.1.0",
        versions={"python": "3.11.2", "numpy": "2.4.6", "torch": "2.13.0", "mlflow": "3.17.2"},
        candidate=CandidateRecord(
            uri=f"models:/{name}@candidate",
            name=name,
            version="3",
            alias="candidate",
            run_id="8f1c2d3e4a5b60718293a4b5c6d7e8f9",
            model_id="m-2b9c1de0f7a84566",
            digest="1f2e3d4c5b6a7988" * 4,
        ),
        policy=PolicyRecord(
            name="baseline",
            version=1,
            source="policies/baseline.yaml",
            sha256="0a1b2c3d4e5f6071" * 4,
            recorded="2026-11-23T09:12:03+00:00",
            release_context="api",
            confidence=0.95,
            alias="champion",
        ),
        recipe=RECIPE,
        data=DataRecord(**({"sha256": "c4" * 32} | sizes | data)),
        checks=tuple(checks),
        findings=tuple(findings),
        verdict=decided,
        exit_code=decided.exit_code,
        threat_model=THREATS,
        not_tested=UNTESTED,
    )


BASELINE = {
    "membership": {"tpr_at_0.01_fpr": Limit(max=0.05), "tpr_at_0.1_fpr": Limit(max=0.2), "auc": Limit(max=0.6)},
    "utility": {"holdout_accuracy": Limit(min=0.8, severity=Severity.WARN)},
}


def blocked() -> Report:
    shifts = {"lira": 0.75, "rmia": 0.68, "lira_offline": 0.5, "attack_r": 0.36, "attack_p": 0.1, "loss": 0.06}
    scales = [(1.0, 0.0), (0.2, 0.5), (0.15, 0.5), (0.2, 0.5), (0.2, 0.5), (0.8, -1.5)]
    attacks = [
        Attack(name, shift, 2000, seed, *scale)
        for seed, ((name, shift), scale) in enumerate(zip(shifts.items(), scales, strict=True))
    ]
    logged = Control(name="logged holdout_accuracy", held=True, detail="the run logged 0.934, measured 0.931")
    checks = [membership(attacks, 64, remedies=2), power_law(), utility(0.931, 2000, logged)]
    return report_of("digits", checks, findings_of(checks, BASELINE))


def approved() -> Report:
    attacks = [Attack(name, 0.01, 6000, 10 + i) for i, name in enumerate(("lira", "rmia", "loss"))]
    checks = [membership(attacks, 64), utility(0.912, 6000)]
    limits = BASELINE | {"utility": {"holdout_accuracy": Limit(min=0.95)}}
    return report_of(
        "digits-careful", checks, findings_of(checks, limits, "holdout_accuracy"), members=4000, holdout=4000
    )


def undecided() -> Report:
    attacks = [Attack("lira", 0.012, 600, 20), Attack("loss", 0.01, 600, 21)]
    checks = [membership(attacks, 32, missing="attack_p"), utility(0.93, 600)]
    limits = {"membership": {"tpr_at_0.01_fpr": Limit(max=0.05), "auc": Limit(max=0.65)}} | {
        "utility": BASELINE["utility"]
    }
    groups = {"female": 297, "male": 301, "not stated": 2}
    return report_of("chest-x-ray", checks, findings_of(checks, limits), members=600, holdout=600, groups=groups)


SAMPLES: dict[str, Callable[[], Report]] = {"blocked": blocked, "approved": approved, "undecided": undecided}


@pytest.fixture(scope="session")
def samples() -> dict[str, Report]:
    """One report for each verdict."""
    return {name: build() for name, build in SAMPLES.items()}

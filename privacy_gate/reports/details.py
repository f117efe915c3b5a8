"""What every view of a report tells last: every figure, what was judged by what, and how to repeat it."""

import json
import shlex
from dataclasses import dataclass

from privacy_gate.documents import Record
from privacy_gate.dossier.federation import ClientPrivacy, Federation
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.reports.words import Shown, capital, level, metric, percent, plain, shown
from privacy_gate.verdict.judgement import Measurement
from privacy_gate.verdict.report import CheckRecord, Report

NO_LICENCE = "not declared"


@dataclass(frozen=True)
class MeasuredRow:
    """One figure, or a reason that several subjects share; `how` where the metric's others were made otherwise."""

    who: str
    shown: Shown | None
    reason: str = ""
    how: str = ""


@dataclass(frozen=True)
class Measured:
    """One metric of a check, and how its figures were made where that is the same for all."""

    title: str
    metric: str
    how: str
    rows: tuple[MeasuredRow, ...]


def measured(check: CheckRecord) -> list[Measured]:
    """The check's measurements by metric, in their own order; those missing for one reason together, last."""
    by_metric: dict[str, list[Measurement]] = {}
    for measurement in check.result.measurements:
        by_metric.setdefault(measurement.metric, []).append(measurement)
    found = []
    for name, group in by_metric.items():
        ways = {how(m) for m in group if m.measured}
        common = next(iter(ways)) if len(ways) == 1 else ""
        rows = [MeasuredRow(plain(m.subject), shown(m), how="" if common else how(m)) for m in group if m.measured]
        reasons = dict.fromkeys(plain(m.reason) for m in group if not m.measured)
        for reason in reasons:
            missing = [plain(m.subject) for m in group if not m.measured and plain(m.reason) == reason]
            rows.append(MeasuredRow(", ".join(filter(None, missing)), None, reason))
        title = metric(name).title
        found.append(Measured(capital(title), name, common, tuple(rows)))
    return found


def how(measurement: Measurement) -> str:
    """How a figure's interval was made, and from what."""
    parts = [f"{level(measurement.confidence)} interval" if measurement.confidence else ""]
    parts += [plain(measurement.method), plain(measurement.samples)]
    return "; ".join(part for part in parts if part)


def provenance(report: Report) -> str:
    """The backbone that the candidate stands on, in one line: its name, and its weights' sha256 and licence."""
    backbone = report.recipe.backbone
    if backbone.weights is None:
        return plain(backbone.name) + (", as the table holds its features" if backbone.is_identity else ", untrained")
    licence = plain(backbone.weights.licence or NO_LICENCE)
    return f"{plain(backbone.name)}, weights sha256 {backbone.weights.sha256}, licence {licence}"


def recipe_facts(report: Report) -> list[tuple[str, str]]:
    """How the candidate says it was trained, as name and value."""
    recipe = report.recipe
    facts = [("Backbone", plain(recipe.backbone.name))]
    if weights := recipe.backbone.weights:
        licence = plain(weights.licence or NO_LICENCE)
        facts += [("Its weights", plain(weights.uri)), ("Their sha256", weights.sha256), ("Their licence", licence)]
    if recipe.input:
        facts.append(("Input", f"{recipe.input.size} pixels, {recipe.input.interpolation}, crop {recipe.input.crop:g}"))
    facts += [
        ("Adaptation", f"{recipe.adaptation}, {recipe.classes:,} classes"),
        *([("LoRA", _settings(recipe.lora))] if recipe.lora else []),
        *([("Federation", _federation(recipe.federation))] if recipe.federation else []),
        ("Optimiser", _settings(recipe.optimizer)),
        ("Schedule", _settings(recipe.schedule)),
        ("Training", f"{_local_work(recipe)}, batches of {recipe.batch_size:,}, seed {recipe.seed}"),
        *([("DP-SGD", _settings(recipe.privacy))] if recipe.privacy else []),
        *([("Precision", recipe.precision)] if recipe.precision != "float32" else []),
        ("Label smoothing", f"{recipe.label_smoothing:g}"),
        ("Views", f"{len(recipe.views)}" + (f": {_settings(recipe.augmentation)}" if recipe.augmentation else "")),
    ]
    if report.claim is not None:
        reached = f", {plain(report.claim.mechanism)}" if report.claim.mechanism else ""
        text = f"epsilon {report.claim.epsilon:g} at delta {report.claim.delta:g}{reached}"
        facts.append(("Claimed differential privacy", text))
    return facts


def _local_work(recipe: Recipe) -> str:
    """How long is trained; of a federation, by a client in a round."""
    steps = recipe.federation.steps if recipe.federation else None
    count, unit = (steps, "step") if steps else (recipe.epochs, "epoch")
    return f"{count:,} {unit}{'s' if count > 1 else ''}" + (" a client and round" if recipe.federation else "")


def _federation(federation: Federation) -> str:
    clients = federation.clients
    who = f"{clients.count} clients, {clients.partition}" if clients.count else "clients by column"
    alpha = f" {clients.alpha:g}" if clients.alpha else ""
    aggregator = f"{federation.aggregator}, told of {federation.aggregator.tolerates} byzantine"
    hidden = ", secure aggregation" if federation.secure_aggregation else ""
    private = f", privacy of clients: {_private(federation.privacy)}" if federation.privacy else ""
    asked = f" of {percent(federation.participation)} of them" if federation.participation < 1 else ""
    server = f"server {federation.server.name}" + (f", FedProx mu {federation.prox:g}" if federation.prox else "")
    return f"{who}{alpha}; {federation.rounds:,} rounds{asked}; {aggregator}; {server}{hidden}{private}"


def _private(privacy: ClientPrivacy) -> str:
    noise = f"noise_multiplier {privacy.noise_multiplier:g} by the {privacy.noise_by}"
    return f"{noise}, clip {privacy.clip:g}, delta {privacy.delta:g}"


def _settings(record: Record) -> str:
    values = record.model_dump(mode="json")
    name = values.pop("name", "")
    rest = ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())
    return ": ".join(filter(None, (name, rest)))


def data_facts(report: Report) -> list[tuple[str, str]]:
    """What the audit looked at, as name and value."""
    data = report.data
    facts = [
        ("sha256", plain(data.sha256)),
        ("Members", f"{data.members:,} examples the model was trained on"),
        ("Holdout", f"{data.holdout:,} examples it never saw, audited"),
        ("Population", f"{data.population:,} further examples, for calibration only"),
        ("Classes", f"{data.classes:,}"),
        (
            "Per class",
            f"{data.fewest_members_per_class:,} members at least, {data.median_members_per_class:g} in the median",
        ),
    ]
    if data.groups is not None:
        facts.append(("Groups", ", ".join(f"{plain(name)} {size:,}" for name, size in sorted(data.groups.items()))))
    if data.clients is not None:
        facts.append(("Clients", f"{data.clients:,}"))
    return facts


def champion_facts(report: Report) -> list[tuple[str, str]]:
    """What the candidate was compared with, as name and value; nothing where the policy compares with nothing."""
    champion = report.champion
    if champion is None:
        return []
    if champion.version is None:
        return [("Champion", f"none: nothing stood at the alias {plain(champion.alias)}")]
    facts = [("Champion", f"version {plain(champion.version)}, at the alias {plain(champion.alias)} then")]
    facts += [("Its sha256", plain(champion.digest))] if champion.digest else []
    return [*facts, *([("Not compared", plain(champion.reason))] if champion.reason else [])]


def rerun(report: Report) -> list[str]:
    """Shell commands that install the same version and repeat the pass on the same version of the model."""
    tool, _, version = plain(report.tool).partition(" ")
    uri = f"models:/{plain(report.candidate.name)}/{plain(report.candidate.version)}"
    install = f"{tool}=={version}" if version else tool
    return [
        shlex.join(["pip", "install", install]),
        shlex.join(["sha256sum", plain(report.policy.source)]) + f"  # expect {plain(report.policy.sha256)}",
        shlex.join(["privacy-gate", "check", uri, "--policy", plain(report.policy.source), "--no-promote"]),
    ]

"""The last part of every report: all figures, the candidate, policy, recipe and data, and how to repeat the audit."""

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
    """One figure, or a reason that several subjects share. `how`: its method, if it differs from that of other rows."""

    who: str
    shown: Shown | None
    reason: str = ""
    how: str = ""


@dataclass(frozen=True)
class Measured:
    """One metric of a check. `how`: the method of its figures, if it is the same for all; empty otherwise."""

    title: str
    metric: str
    how: str
    rows: tuple[MeasuredRow, ...]


def measured(check: CheckRecord) -> list[Measured]:
    """The check's measurements by metric. Subjects that are missing for the same reason share one row, at the end."""
    by_metric: dict[str, list[Measurement]] = {}
    for measurement in check.result.measurements:
        by_metric.setdefault(measurement.metric, []).append(measurement)
    # One method for all rows stands once at the metric; otherwise each row names its own.
    metrics = []
    for name, group in by_metric.items():
        methods = {how(m) for m in group if m.measured}
        common = next(iter(methods)) if len(methods) == 1 else ""
        rows = [MeasuredRow(plain(m.subject), shown(m), how="" if common else how(m)) for m in group if m.measured]
        reasons = dict.fromkeys(plain(m.reason) for m in group if not m.measured)
        for reason in reasons:
            missing = [plain(m.subject) for m in group if not m.measured and plain(m.reason) == reason]
            rows.append(MeasuredRow(", ".join(filter(None, missing)), None, reason))
        title = metric(name).title
        metrics.append(Measured(capital(title), name, common, tuple(rows)))
    return metrics


def how(measurement: Measurement) -> str:
    """How the interval of a figure was computed, and from how many examples or models."""
    parts = [f"{level(measurement.confidence)} interval" if measurement.confidence else ""]
    parts += [plain(measurement.method), plain(measurement.samples)]
    return "; ".join(part for part in parts if part)


def provenance(report: Report) -> str:
    """The candidate's backbone in one line: its name, and the sha256 and licence of its weights."""
    backbone = report.recipe.backbone
    if backbone.weights is None:
        return plain(backbone.name) + (", the table holds its features" if backbone.is_identity else ", untrained")
    licence = plain(backbone.weights.licence or NO_LICENCE)
    return f"{plain(backbone.name)}, weights sha256 {backbone.weights.sha256}, licence {licence}"


def recipe_facts(report: Report) -> list[tuple[str, str]]:
    """The declared recipe, as pairs of name and value."""
    recipe = report.recipe
    facts = [("Backbone", plain(recipe.backbone.name))]
    if weights := recipe.backbone.weights:
        licence = plain(weights.licence or NO_LICENCE)
        facts += [("Backbone weights", plain(weights.uri)), ("Weights sha256", weights.sha256)]
        facts.append(("Weights licence", licence))
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
        mechanism = f", {plain(report.claim.mechanism)}" if report.claim.mechanism else ""
        text = f"epsilon {report.claim.epsilon:g} at delta {report.claim.delta:g}{mechanism}"
        facts.append(("Claim of differential privacy", text))
    return facts


def _local_work(recipe: Recipe) -> str:
    """How long the model was trained; in a federation, how long each client trains in each round."""
    # A federation trains for a number of steps or, without it, for the recipe's epochs in each round.
    steps = recipe.federation.steps if recipe.federation else None
    count, unit = (steps, "step") if steps else (recipe.epochs, "epoch")
    return f"{count:,} {unit}{'s' if count > 1 else ''}" + (" per client and round" if recipe.federation else "")


def _federation(federation: Federation) -> str:
    clients = federation.clients
    cohort = f"{clients.count} clients, {clients.partition}" if clients.count else "clients from a column"
    alpha = f" {clients.alpha:g}" if clients.alpha else ""
    aggregator = f"{federation.aggregator}, tolerates {federation.aggregator.tolerates} byzantine"
    secure = ", secure aggregation" if federation.secure_aggregation else ""
    private = f", privacy of clients: {_private(federation.privacy)}" if federation.privacy else ""
    participation = f", {percent(federation.participation)} of clients in each" if federation.participation < 1 else ""
    server = f"server {federation.server.name}" + (f", FedProx mu {federation.prox:g}" if federation.prox else "")
    return f"{cohort}{alpha}; {federation.rounds:,} rounds{participation}; {aggregator}; {server}{secure}{private}"


def _private(privacy: ClientPrivacy) -> str:
    noise = f"noise_multiplier {privacy.noise_multiplier:g} by the {privacy.noise_by}"
    return f"{noise}, clip {privacy.clip:g}, delta {privacy.delta:g}"


def _settings(record: Record) -> str:
    # JSON writes true, null and lists as they stand in the dossier's YAML.
    values = record.model_dump(mode="json")
    name = values.pop("name", "")
    rest = ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())
    return ": ".join(filter(None, (name, rest)))


def data_facts(report: Report) -> list[tuple[str, str]]:
    """The audit data, as pairs of name and value."""
    data = report.data
    facts = [
        ("sha256", plain(data.sha256)),
        ("Members", f"{data.members:,} examples the model was trained on"),
        ("Holdout", f"{data.holdout:,} examples it was not trained on, audited"),
        ("Population", f"{data.population:,} more examples, only for calibration"),
        ("Classes", f"{data.classes:,}"),
        (
            "Per class",
            f"at least {data.fewest_members_per_class:,} members, median {data.median_members_per_class:g}",
        ),
    ]
    if data.groups is not None:
        facts.append(("Groups", ", ".join(f"{plain(name)} {size:,}" for name, size in sorted(data.groups.items()))))
    if data.clients is not None:
        facts.append(("Clients", f"{data.clients:,}"))
    return facts


def champion_facts(report: Report) -> list[tuple[str, str]]:
    """The champion, as pairs of name and value; empty if the policy has no limit relative to it."""
    champion = report.champion
    if champion is None:
        return []
    # The first candidate has no champion; the report says so, because limits relative to it could not be judged.
    if champion.version is None:
        return [("Champion", f"none: the alias {plain(champion.alias)} named no version")]
    version, alias = plain(champion.version), plain(champion.alias)
    facts = [("Champion", f"version {version}, at the alias {alias} when the candidate was pulled")]
    facts += [("Champion sha256", plain(champion.digest))] if champion.digest else []
    return [*facts, *([("Not compared because", plain(champion.reason))] if champion.reason else [])]


def rerun(report: Report) -> list[str]:
    """Shell commands that install the same version of the gate and repeat the audit of the same model version."""
    # Names come from the registry: shlex quotes them, so that a copied line runs no foreign command.
    tool, _, version = plain(report.tool).partition(" ")
    uri = f"models:/{plain(report.candidate.name)}/{plain(report.candidate.version)}"
    install = f"{tool}=={version}" if version else tool
    return [
        shlex.join(["pip", "install", install]),
        shlex.join(["sha256sum", plain(report.policy.source)]) + f"  # expect {plain(report.policy.sha256)}",
        shlex.join(["privacy-gate", "check", uri, "--policy", plain(report.policy.source), "--no-promote"]),
    ]

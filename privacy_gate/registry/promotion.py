"""Writes a decision to MLflow: an alias, tags, metrics and report files.

Tags are only an index for people. Anyone who may edit the registry can forge them, so no step here relies on a tag.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from privacy_gate.errors import ConfigurationError, ConflictError
from privacy_gate.registry.pull import FOLDER, client_of, conversation, download, place_of
from privacy_gate.verdict.judgement import Verdict
from privacy_gate.verdict.report import Report

# MLflow reserves `latest` and `v1`, `v2`, ... for versions.
_ALIAS = re.compile(r"(?!(?i:latest|v[0-9]+)\Z)[A-Za-z0-9_-]{1,255}\Z")
NOT_SET = "none"
"""Value of --expect-current for an alias that does not exist."""


@dataclass(frozen=True)
class Promotion:
    """The steps that were done, or would be done, one line each, and the alias's version before and after."""

    steps: tuple[str, ...]
    before: str | None
    after: str | None


def promote(
    report: Report,
    *,
    alias: str,
    expect_current: str | None = None,
    dry_run: bool = False,
    artifacts: Mapping[str, bytes],
    tracking_uri: str | None,
) -> Promotion:
    """Moves `alias` to the approved version, after hashing its bytes again.

    Raises ConfigurationError (2) unless the report approves. Raises ConflictError (7) if the bytes, the judged alias,
    the champion in the comparison, or the alias to move have changed since. Nothing is written then, unless another
    process moves the alias at the same moment.
    """
    if report.verdict is not Verdict.APPROVED:
        raise ConfigurationError(f"the verdict is {report.verdict}: only an approved report promotes")
    if not _ALIAS.match(alias):
        raise ConfigurationError(f"alias {alias!r}: use letters, digits, _ and -, at most 255; not latest or vN")
    name, version = report.candidate.name, report.candidate.version
    with conversation(f"promote version {version} of {name} in {place_of(tracking_uri)}"):
        client = client_of(tracking_uri)
        aliases = {key: str(value) for key, value in client.get_registered_model(name).aliases.items()}
        before = aliases.get(alias)
        # Aliases first, because this check needs no download.
        _refuse_moved(report, aliases, alias, expect_current)
        entry = client.get_model_version(name, version)
        _refuse_changed(report, entry, tracking_uri)
        steps = [*_describe(report, artifacts, entry), f"alias {alias}: {before or NOT_SET} -> {version}"]
        if not dry_run:
            # The alias moves last: if anything fails before, nothing is promoted.
            _write(client, report, entry, artifacts)
            client.set_registered_model_alias(name, alias, version)
            # MLflow has no compare-and-set for aliases. Reading back reveals a process that moved it at the same time.
            current = client.get_registered_model(name).aliases.get(alias)
            if str(current) != version:
                raise ConflictError(
                    f"alias {alias} reads back {current}, expected {version}: another process moved it; find out "
                    "which, then decide again"
                )
    return Promotion(_marked(steps, dry_run=dry_run), before, version)


def record(
    report: Report, *, dry_run: bool = False, artifacts: Mapping[str, bytes], tracking_uri: str | None
) -> Promotion:
    """Writes the verdict, its figures and the report to the version and its run. Moves no alias."""
    name, version = report.candidate.name, report.candidate.version
    with conversation(f"record the verdict on version {version} of {name} in {place_of(tracking_uri)}"):
        client = client_of(tracking_uri)
        entry = client.get_model_version(name, version)
        steps = _describe(report, artifacts, entry)
        if not dry_run:
            _write(client, report, entry, artifacts)
    return Promotion(_marked(steps, dry_run=dry_run), None, None)


def _refuse_moved(report: Report, aliases: Mapping[str, str], alias: str, expect_current: str | None) -> None:
    """Raises ConflictError if an alias that the decision depends on has moved.

    An alias that is already at the candidate is accepted, so that a retried job succeeds.
    """
    current = aliases.get(alias, NOT_SET)
    if expect_current is not None and current not in (expect_current, report.candidate.version):
        raise ConflictError(
            f"alias {alias} is at {current}, expected {expect_current}: find out who moved it, then decide again"
        )
    champion = report.champion
    if champion:
        compared, now = champion.version or NOT_SET, aliases.get(champion.alias, NOT_SET)
        if now not in (compared, report.candidate.version):
            raise ConflictError(
                f"alias {champion.alias} was at {compared} when the candidate was compared with it, and is now at "
                f"{now}: check the candidate again"
            )
    judged = report.candidate.alias
    if judged and aliases.get(judged) != report.candidate.version:
        raise ConflictError(
            f"alias {judged} was judged at version {report.candidate.version} and is now at {aliases.get(judged)}: "
            "check the candidate again"
        )


def _refuse_changed(report: Report, entry: ModelVersion, tracking_uri: str | None) -> None:
    """Downloads the version again. Raises ConflictError if its digest differs from the report's."""
    with TemporaryDirectory(prefix="privacy-gate-") as folder:
        _, digest = download(entry, Path(folder) / "artifact", tracking_uri)
    if digest != report.candidate.digest:
        raise ConflictError(
            f"the artifact's digest is {digest}, the report judged {report.candidate.digest}: its bytes changed; "
            "check the candidate again"
        )


def _marked(steps: list[str], *, dry_run: bool) -> tuple[str, ...]:
    """The steps as output lines."""
    verb = "would write" if dry_run else "wrote"
    # Names from the registry may contain line breaks, which could forge lines of a CI log.
    return tuple(f"{verb}: {' '.join(step.split())}" for step in steps)


def _describe(report: Report, artifacts: Mapping[str, bytes], entry: ModelVersion) -> list[str]:
    version = f"version {entry.version} of {entry.name}"
    steps = [f"tag {key}={value} on {version}" for key, value in _tags(report, artifacts).items()]
    if entry.run_id:
        steps += [f"{len(_metrics(report))} metrics and {len(artifacts)} report files on run {entry.run_id}"]
    return steps


def _tags(report: Report, artifacts: Mapping[str, bytes]) -> dict[str, str]:
    tags = {
        f"{FOLDER}.verdict": str(report.verdict),
        f"{FOLDER}.digest": report.candidate.digest,
        f"{FOLDER}.policy": f"{report.policy.name} {report.policy.version}",
        f"{FOLDER}.policy_sha256": report.policy.sha256,
    }
    if "report.json" in artifacts:
        tags[f"{FOLDER}.report_sha256"] = hashlib.sha256(artifacts["report.json"]).hexdigest()
    return tags


def _accepted(name: str) -> str:
    """The name in characters that MLflow accepts. A changed name gets a hash, so that no two names become equal."""
    plain = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:220]  # MLflow accepts 250 characters
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _metrics(report: Report) -> dict[str, float]:
    """Every figure and the ends of its interval, under names that MLflow accepts."""
    figures = {}
    for check in report.checks:
        for measurement in check.result.measurements:
            name = ".".join(part for part in (check.check, measurement.subject, measurement.metric) if part)
            key = f"{FOLDER}/{_accepted(name)}"
            for end in ("value", "low", "high"):
                if (figure := getattr(measurement, end)) is not None:
                    figures[key if end == "value" else f"{key}.{end}"] = float(figure)
    return figures


def _write(client: MlflowClient, report: Report, entry: ModelVersion, artifacts: Mapping[str, bytes]) -> None:
    """Writes metrics and files first, then the tags that refer to them. Writing the same again changes nothing."""
    if entry.run_id:
        model_id = report.candidate.model_id
        for key, figure in _metrics(report).items():
            client.log_metric(entry.run_id, key, figure, model_id=model_id)
        with TemporaryDirectory() as folder:
            for file_name, content in artifacts.items():
                (Path(folder) / file_name).write_bytes(content)
            client.log_artifacts(entry.run_id, folder, f"{FOLDER}/{report.candidate.digest[:12]}")
    for key, value in _tags(report, artifacts).items():
        client.set_model_version_tag(entry.name, entry.version, key, value)

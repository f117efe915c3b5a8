"""MLflow: candidates in. Decisions go out by `promotion`; nothing else knows MLflow.

A dossier lies inside the model's own artifact folder, as privacy_gate/recipe.yaml and
privacy_gate/data.yaml: so the digest of the artifact covers it, and a copied model version, which
refers to the same bytes, keeps it.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

# MLflow asks once, on import, whether it may report its use; a gate before private models reports nothing.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import mlflow.pytorch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from privacy_gate.documents import MAX_BYTES, Record, load
from privacy_gate.dossier.candidate import Candidate, Claim, Dossier
from privacy_gate.dossier.champion import Champion
from privacy_gate.dossier.dataset import DataManifest
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.roundlog import MAX_BYTES as MAX_ROUND_BYTES
from privacy_gate.dossier.roundlog import RoundLog, round_named
from privacy_gate.errors import CandidateError, ConfigurationError, RegistryError
from privacy_gate.weights import artifact_digest

FOLDER = "privacy_gate"
"""Inside a model's artifacts: where the dossier lies. Inside a run's: where reports are logged."""

ROUNDS = f"{FOLDER}/rounds"
"""Inside a run's artifacts: where the round log lies."""

URI = re.compile(r"models:/(?P<name>[^/]+)(/(?P<version>[0-9]+)|@(?P<alias>[\w-]+))\Z")
MODEL_ID = re.compile(r"models:/(m-[^/@]+)\Z")
_PASSWORD = re.compile(r"(?<=//)[^/@\s]+(?=@)")
_MISSING = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own defaults retry an unreachable server for minutes, and print to the standard output."""


@contextmanager
def conversation(what: str) -> Iterator[None]:
    """Talks to MLflow: quietly, with bounded patience, its exceptions translated.

    Raises ConfigurationError where what was asked for is not there, RegistryError for all else.
    """
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    added = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(added)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except MlflowException as error:
        failed = _one_line(f"cannot {what}: {error}")
        if error.error_code in _MISSING:
            raise ConfigurationError(f"{failed.rstrip('.')}; correct the name, or the tracking URI") from error
        raise RegistryError(f"{failed}; check the tracking URI and your rights, then try again") from error
    except (SQLAlchemyError, OSError, ImportError) as error:
        failed = _one_line(f"cannot {what}: {error}")
        raise RegistryError(f"{failed}; check the tracking URI, then try again") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in added:
            os.environ.pop(name, None)


def _one_line(text: str) -> str:
    """At most 600 characters in one line, without the password of a URL."""
    return _PASSWORD.sub("***", " ".join(text.split()))[:600]


def client_of(tracking_uri: str | None) -> MlflowClient:
    """A client of the server or database; None: MLflow's own default.

    Raises ConfigurationError for what is no URI.
    """
    try:
        urlsplit(tracking_uri or "")
    except ValueError as error:
        raise ConfigurationError(f"tracking URI {tracking_uri!r}: {error}") from error
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def place_of(tracking_uri: str | None) -> str:
    """The registry that is asked, for messages; None: MLflow's own default.

    Raises ConfigurationError for a database that is not there: MLflow would make an empty one, and find nothing in it.
    """
    place = tracking_uri or mlflow.get_tracking_uri()
    scheme, found, file = place.partition("?")[0].partition("sqlite:///")
    if found and not scheme and file not in ("", ":memory:") and not Path(file).exists():
        raise ConfigurationError(
            f"{place}: no such database; name the MLflow server or database with --tracking-uri, or in "
            "MLFLOW_TRACKING_URI"
        )
    return place


def pull(uri: str, folder: Path, tracking_uri: str | None, *, rounds: bool = False) -> Candidate:
    """Pins the version that `uri` names, and downloads and hashes its bytes into a private folder.

    uri: models:/NAME/VERSION or models:/NAME@ALIAS; an alias is resolved once. Nothing is loaded.
    rounds: whether the round log of its run is wanted too, where there is one.
    Raises ConfigurationError (2) for a version or alias that is not there, CandidateError (5) for
    unsafe files or a missing or malformed dossier, RegistryError (6) where MLflow does not answer.
    """
    found = URI.match(uri)
    if not found or not uri.isprintable():  # a line break in a name could forge a line of a CI log
        raise ConfigurationError(f"{uri!r}: write models:/NAME/VERSION or models:/NAME@ALIAS, in printable characters")
    name, alias = found["name"], found["alias"]
    with conversation(f"read {uri} in {place_of(tracking_uri)}"):
        client = client_of(tracking_uri)
        version = found["version"] or aliased_version(client, name, alias)
        entry = client.get_model_version(name, version)
    files, digest = download(entry, folder / "artifact", tracking_uri)
    log = _round_log(entry, folder / "run", tracking_uri) if rounds else None
    return Candidate(
        uri=uri,
        name=name,
        version=str(version),
        folder=files,
        digest=digest,
        dossier=_dossier(files, uri),
        alias=alias,
        run_id=entry.run_id or None,
        model_id=model_id_of(entry),
        logged=_logged(client, entry),
        rounds=log,
        rounds_digest=None if log is None else RoundLog.open(log).digest,
    )


def champion_of(candidate: Candidate, alias: str, folder: Path, tracking_uri: str | None) -> Champion:
    """The version of the candidate's model that the alias stands at, pinned and read as a candidate is; if it is one.

    Its files go below `folder`. One that is unsafe or without a sound dossier is a champion with a reason: that is no
    fault of the candidate's. Raises RegistryError (6) where MLflow does not answer.
    """
    with conversation(f"read the alias {alias} of {candidate.name} in {place_of(tracking_uri)}"):
        aliases = client_of(tracking_uri).get_registered_model(candidate.name).aliases
    if alias not in aliases:
        return Champion(alias)
    version = str(aliases[alias])
    if version == candidate.version:
        return Champion.of(alias, candidate, candidate)
    folder.mkdir(mode=0o700)
    try:
        found = pull(f"models:/{candidate.name}/{version}", folder, tracking_uri)
    except (CandidateError, ConfigurationError) as error:
        return Champion(alias, version, reason=f"it cannot be read: {_one_line(str(error))}")
    return Champion.of(alias, found, candidate)


def aliased_version(client: MlflowClient, name: str, alias: str) -> str:
    """The version an alias stands at. Raises ConfigurationError, with the aliases there are."""
    aliases = client.get_registered_model(name).aliases
    if alias not in aliases:
        known = ", ".join(sorted(aliases)[:20]) or "none"
        raise ConfigurationError(f"model {name} has no alias '{alias}'; it has: {known}")
    return str(aliases[alias])


def download(entry: ModelVersion, target: Path, tracking_uri: str | None) -> tuple[Path, str]:
    """The version's bytes below `target`, a fresh 0700 folder; returns their root, and their digest.

    Raises CandidateError for links, special files, or more than `weights` reads.
    """
    target.mkdir(mode=0o700)
    with conversation(f"download version {entry.version} of {entry.name}"):
        client = client_of(tracking_uri)
        source = client.get_model_version_download_uri(entry.name, entry.version)
        local = Path(url2pathname(urlsplit(source).path) if source.startswith("file:") else source)
        if local.is_dir():  # MLflow would copy what a link in a local folder points at
            artifact_digest(local)
        got = Path(
            mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(target), tracking_uri=tracking_uri)
        )
    root = got if got.is_dir() else target  # MLflow may add the name of the folder it copied, which is no content
    return root, artifact_digest(root)


def model_id_of(entry: ModelVersion) -> str | None:
    """The LoggedModel behind a version; SQL stores keep it only in the source."""
    found = MODEL_ID.match(entry.source or "")
    return entry.model_id or (found[1] if found else None)


_PARTS: dict[str, type[Record]] = {"recipe": Recipe, "data": DataManifest, "claim": Claim}
"""Files of a dossier; the claim is optional."""


def _dossier(folder: Path, uri: str) -> Dossier:
    parts: dict[str, Any] = {}
    for part, kind in _PARTS.items():
        paths = sorted(path for path in folder.rglob(f"{FOLDER}/{part}.yaml") if path.is_file())
        if not paths and part == "claim":
            continue
        if not paths:
            raise CandidateError(
                f"{uri}: no {FOLDER}/{part}.yaml among its artifacts; attach the dossier where the model is trained: "
                "privacy_gate.log_dossier(model_info, recipe=..., data=...)"
            )
        if len(paths) > 1:
            names = ", ".join(path.relative_to(folder).as_posix() for path in paths[:5])
            raise CandidateError(f"{uri}: {len(paths)} dossiers among its artifacts ({names}); log the model with one")
        try:
            with paths[0].open("rb") as file:  # a byte more than `load` accepts, however large the file
                parts[part] = load(file.read(MAX_BYTES + 1).decode(), kind, f"{part}.yaml")
        except UnicodeDecodeError as error:
            raise CandidateError(f"{uri}: {part}.yaml is not UTF-8 text; attach the dossier again") from error
        except ConfigurationError as error:
            raise CandidateError(str(error)) from error
    return Dossier(**parts)


def _logged(client: MlflowClient, entry: ModelVersion) -> Mapping[str, float]:
    """Metrics of the training run; none where it is gone."""
    if not entry.run_id:
        return {}
    try:
        with conversation(f"read run {entry.run_id}"):
            return dict(client.get_run(entry.run_id).data.metrics)
    except ConfigurationError:
        return {}


def _round_log(entry: ModelVersion, target: Path, tracking_uri: str | None) -> Path | None:
    """The round log of the version's run, below `target`; None where the run has none, or is gone.

    Raises CandidateError for a log of more than roundlog.MAX_BYTES, or with anything but rounds in it.
    """
    if not entry.run_id:
        return None
    target.mkdir(mode=0o700)
    try:
        with conversation(f"read the round log of run {entry.run_id}"):
            client = client_of(tracking_uri)
            files = client.list_artifacts(entry.run_id, ROUNDS)
            total = sum(file.file_size or 0 for file in files)
            if not files:
                return None
            if total > MAX_ROUND_BYTES or any(file.is_dir or not round_named(file.path) for file in files):
                raise CandidateError(
                    f"the round log of run {entry.run_id} has {total:,} bytes in {len(files)} entries; expected rounds "
                    f"alone, of {MAX_ROUND_BYTES:,} bytes at most: log fewer, or only= the last layer"
                )
            got = mlflow.artifacts.download_artifacts(
                run_id=entry.run_id, artifact_path=ROUNDS, dst_path=str(target), tracking_uri=tracking_uri
            )
            return Path(got)
    except ConfigurationError:
        return None

"""Pulls candidates from MLflow. `promotion` writes decisions; no module outside this folder uses MLflow.

A dossier is stored in the model's own artifact folder, as privacy_gate/recipe.yaml and privacy_gate/data.yaml. So the
artifact's digest covers it, and a copied model version, which refers to the same bytes, keeps it.
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

# MLflow reads this once, on import. A gate for private models must not report its use.
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
"""Folder of the dossier in a model's artifacts, and folder of the reports in a run's artifacts."""

ROUNDS = f"{FOLDER}/rounds"
"""Folder of the round log in a run's artifacts."""

URI = re.compile(r"models:/(?P<name>[^/]+)(/(?P<version>[0-9]+)|@(?P<alias>[\w-]+))\Z")
MODEL_ID = re.compile(r"models:/(m-[^/@]+)\Z")
# User name and password of a URL.
_PASSWORD = re.compile(r"(?<=//)[^/@\s]+(?=@)")
# Error codes of MLflow for a model, version or alias that does not exist.
_MISSING = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Settings of MLflow, unless the user set them. Its defaults retry an unreachable server for minutes, and print to the
standard output."""


@contextmanager
def conversation(action: str) -> Iterator[None]:
    """Context for calls to MLflow: silences its logs, bounds its retries, and translates its exceptions.

    action  completes "cannot ..." in messages
    Raises ConfigurationError if the requested object does not exist, RegistryError for every other failure.
    """
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    # MLflow reads its settings from the environment at each call. The user's own settings stay.
    added = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(added)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except MlflowException as error:
        failure = _one_line(f"cannot {action}: {error}")
        if error.error_code in _MISSING:
            raise ConfigurationError(f"{failure.rstrip('.')}; correct the name, or the tracking URI") from error
        raise RegistryError(f"{failure}; check the tracking URI and your permissions, then try again") from error
    except (SQLAlchemyError, OSError, ImportError) as error:
        failure = _one_line(f"cannot {action}: {error}")
        raise RegistryError(f"{failure}; check the tracking URI, then try again") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in added:
            os.environ.pop(name, None)


def _one_line(text: str) -> str:
    """The text in one line of at most 600 characters, without the credentials of a URL."""
    return _PASSWORD.sub("***", " ".join(text.split()))[:600]


def client_of(tracking_uri: str | None) -> MlflowClient:
    """An MLflow client for a server or database; None: MLflow's default.

    Raises ConfigurationError for an invalid URI.
    """
    try:
        urlsplit(tracking_uri or "")
    except ValueError as error:
        raise ConfigurationError(f"tracking URI {tracking_uri!r}: {error}; correct it") from error
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def place_of(tracking_uri: str | None) -> str:
    """The URI of the registry, for messages; None: MLflow's default.

    Raises ConfigurationError if it is an SQLite file that does not exist. MLflow would create an empty database, and
    then report that the model is missing.
    """
    place = tracking_uri or mlflow.get_tracking_uri()
    before, sqlite, file = place.partition("?")[0].partition("sqlite:///")
    if sqlite and not before and file not in ("", ":memory:") and not Path(file).exists():
        raise ConfigurationError(
            f"{place}: no such database; name the MLflow server or database with --tracking-uri, or in "
            "MLFLOW_TRACKING_URI"
        )
    return place


def pull(uri: str, folder: Path, tracking_uri: str | None, *, rounds: bool = False) -> Candidate:
    """Pins the version that `uri` names, downloads its files into a private folder, and hashes them.

    uri     models:/NAME/VERSION or models:/NAME@ALIAS; an alias is resolved only once. No model is loaded
    rounds  whether to download the round log of its run too, if there is one
    Raises ConfigurationError (2) for a version or alias that does not exist, CandidateError (5) for unsafe files or a
    missing or malformed dossier, RegistryError (6) if MLflow does not answer.
    """
    matched = URI.match(uri)
    if not matched or not uri.isprintable():  # a line break in a name could forge a line of a CI log
        raise ConfigurationError(f"{uri!r}: write models:/NAME/VERSION or models:/NAME@ALIAS, in printable characters")
    name, alias = matched["name"], matched["alias"]
    with conversation(f"read {uri} in {place_of(tracking_uri)}"):
        client = client_of(tracking_uri)
        version = matched["version"] or aliased_version(client, name, alias)
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
    """The version of the candidate's model at `alias`, pinned and read as a candidate is. It may not exist.

    Its files are stored below `folder`. If it is unsafe or has no valid dossier, the result is a champion with a reason
    instead of an error, because the candidate is not at fault. Raises RegistryError (6) if MLflow does not answer.
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
        pulled = pull(f"models:/{candidate.name}/{version}", folder, tracking_uri)
    except (CandidateError, ConfigurationError) as error:
        return Champion(alias, version, reason=f"it cannot be read: {_one_line(str(error))}")
    return Champion.of(alias, pulled, candidate)


def aliased_version(client: MlflowClient, name: str, alias: str) -> str:
    """The version at an alias. Raises ConfigurationError, with the existing aliases, if there is no such alias."""
    aliases = client.get_registered_model(name).aliases
    if alias not in aliases:
        known = ", ".join(sorted(aliases)[:20]) or "none"
        raise ConfigurationError(f"model {name} has no alias '{alias}'; it has: {known}")
    return str(aliases[alias])


def download(entry: ModelVersion, target: Path, tracking_uri: str | None) -> tuple[Path, str]:
    """Downloads the version's files below `target`, a fresh 0700 folder. Returns their root and their digest.

    Raises CandidateError for links and special files, and for more files or bytes than `weights` accepts.
    """
    target.mkdir(mode=0o700)
    with conversation(f"download version {entry.version} of {entry.name}"):
        client = client_of(tracking_uri)
        source = client.get_model_version_download_uri(entry.name, entry.version)
        local = Path(url2pathname(urlsplit(source).path) if source.startswith("file:") else source)
        if local.is_dir():  # checked first, because MLflow would follow links and copy their targets
            artifact_digest(local)
        downloaded = Path(
            mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(target), tracking_uri=tracking_uri)
        )
    # MLflow may add the name of the copied folder, which is not part of the content.
    root = downloaded if downloaded.is_dir() else target
    return root, artifact_digest(root)


def model_id_of(entry: ModelVersion) -> str | None:
    """The id of the LoggedModel behind a version. SQL stores state it only in the source."""
    matched = MODEL_ID.match(entry.source or "")
    return entry.model_id or (matched[1] if matched else None)


_PARTS: dict[str, type[Record]] = {"recipe": Recipe, "data": DataManifest, "claim": Claim}
"""Records of the files in a dossier, by file name without .yaml. The claim is optional."""


def _dossier(folder: Path, uri: str) -> Dossier:
    """The dossier among the downloaded files. Raises CandidateError if it is missing, repeated or invalid."""
    parts: dict[str, Any] = {}
    for part, kind in _PARTS.items():
        # At any depth, so that a second dossier cannot hide in a subfolder.
        paths = sorted(path for path in folder.rglob(f"{FOLDER}/{part}.yaml") if path.is_file())
        if not paths and part == "claim":
            continue
        if not paths:
            raise CandidateError(
                f"{uri}: no {FOLDER}/{part}.yaml among its artifacts; attach the dossier in the training code: "
                "privacy_gate.log_dossier(model_info, recipe=..., data=...)"
            )
        if len(paths) > 1:
            names = ", ".join(path.relative_to(folder).as_posix() for path in paths[:5])
            raise CandidateError(f"{uri}: {len(paths)} dossiers among its artifacts ({names}); log the model with one")
        try:
            # One byte more than `load` accepts is enough for it to refuse a huge file.
            with paths[0].open("rb") as file:
                parts[part] = load(file.read(MAX_BYTES + 1).decode(), kind, f"{part}.yaml")
        except UnicodeDecodeError as error:
            raise CandidateError(f"{uri}: {part}.yaml is not UTF-8 text; attach the dossier again") from error
        except ConfigurationError as error:
            raise CandidateError(str(error)) from error
    return Dossier(**parts)


def _logged(client: MlflowClient, entry: ModelVersion) -> Mapping[str, float]:
    """Metrics of the training run; empty if the run does not exist."""
    if not entry.run_id:
        return {}
    try:
        with conversation(f"read run {entry.run_id}"):
            return dict(client.get_run(entry.run_id).data.metrics)
    except ConfigurationError:
        return {}


def _round_log(entry: ModelVersion, target: Path, tracking_uri: str | None) -> Path | None:
    """Downloads the round log of the version's run below `target`; None if the run has none or does not exist.

    Raises CandidateError if the log has more than roundlog.MAX_BYTES, or contains other files.
    """
    if not entry.run_id:
        return None
    target.mkdir(mode=0o700)
    try:
        with conversation(f"read the round log of run {entry.run_id}"):
            client = client_of(tracking_uri)
            # Sizes and names are checked before the download; RoundLog.open checks the files again.
            files = client.list_artifacts(entry.run_id, ROUNDS)
            total = sum(file.file_size or 0 for file in files)
            if not files:
                return None
            if total > MAX_ROUND_BYTES or any(file.is_dir or not round_named(file.path) for file in files):
                raise CandidateError(
                    f"the round log of run {entry.run_id} has {total:,} bytes in {len(files)} entries; expected only "
                    f"rounds, with at most {MAX_ROUND_BYTES:,} bytes: log fewer, or only= the last layer"
                )
            downloaded = mlflow.artifacts.download_artifacts(
                run_id=entry.run_id, artifact_path=ROUNDS, dst_path=str(target), tracking_uri=tracking_uri
            )
            return Path(downloaded)
    except ConfigurationError:
        return None

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
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

# MLflow asks once, on import, whether it may report its use; a gate before private models reports nothing.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import mlflow.pytorch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from privacy_gate.candidate import Candidate, Claim, Dossier, Recipe
from privacy_gate.dataset import DataManifest
from privacy_gate.documents import MAX_BYTES, Record, dump, load, parse
from privacy_gate.errors import CandidateError, ConfigurationError, RegistryError
from privacy_gate.weights import artifact_digest

FOLDER = "privacy_gate"
"""Inside a model's artifacts: where the dossier lies. Inside a run's: where reports are logged."""

_URI = re.compile(r"models:/(?P<name>[^/]+)(/(?P<version>[0-9]+)|@(?P<alias>[\w-]+))\Z")
_MODEL_ID = re.compile(r"models:/(m-[^/@]+)\Z")
_RUN_ID = re.compile(r"[0-9a-f]{32}\Z")
_PASSWORD = re.compile(r"(?<=//)[^/@\s]+(?=@)")
_MISSING = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own defaults retry an unreachable server for minutes, and print to the standard output."""

R = TypeVar("R", bound=Record)


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
            raise ConfigurationError(failed) from error
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


def pull(uri: str, folder: Path, tracking_uri: str | None) -> Candidate:
    """Pins the version that `uri` names, and downloads and hashes its bytes into a private folder.

    uri: models:/NAME/VERSION or models:/NAME@ALIAS; an alias is resolved once. Nothing is loaded.
    Raises ConfigurationError (2) for a version or alias that is not there, CandidateError (5) for
    unsafe files or a missing or malformed dossier, RegistryError (6) where MLflow does not answer.
    """
    found = _URI.match(uri)
    if not found or not uri.isprintable():  # a line break in a name could forge a line of a CI log
        raise ConfigurationError(f"{uri!r}: write models:/NAME/VERSION or models:/NAME@ALIAS, in printable characters")
    name, alias = found["name"], found["alias"]
    with conversation(f"read {uri}"):
        client = client_of(tracking_uri)
        version = found["version"] or aliased_version(client, name, alias)
        entry = client.get_model_version(name, version)
    files, digest = download(entry, folder / "artifact", tracking_uri)
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
    )


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
    found = _MODEL_ID.match(entry.source or "")
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


def log_dossier(
    model: Any,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    data: DataManifest | Mapping[str, Any] | str | Path,
    tracking_uri: str | None = None,
    claim: Claim | Mapping[str, Any] | str | Path | None = None,
) -> None:
    """Attaches a dossier to a logged model, inside its artifacts. Call it where the model is trained.

    model   what mlflow.*.log_model or register_model returned, a LoggedModel, models:/NAME/VERSION,
            or the run (or its id) that logged one model
    recipe  a Recipe, the same as plain data, or the path of a YAML file; data: likewise
    claim   likewise, where differential privacy is claimed
    Raises ConfigurationError for a recipe or manifest that is wrong, at file:line:col.
    """
    dossier: dict[str, Record] = {"recipe": _record(recipe, Recipe), "data": _record(data, DataManifest)}
    if claim is not None:
        dossier["claim"] = _record(claim, Claim)
    with TemporaryDirectory() as folder, conversation("attach the dossier"):
        for part, record in dossier.items():
            (Path(folder) / f"{part}.yaml").write_text(dump(record), encoding="utf-8")
        client = client_of(tracking_uri)
        model_id, run_id, path = _place(model, client)
        if model_id:
            client.log_model_artifacts(model_id, folder, FOLDER)
        else:
            client.log_artifacts(run_id, folder, f"{path}/{FOLDER}")


def _record(given: Any, kind: type[R]) -> R:
    if isinstance(given, kind):
        return given
    if isinstance(given, Mapping):
        return parse(given, kind, kind.__name__.lower())
    try:
        return load(Path(given).read_text(encoding="utf-8"), kind, str(given))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{given}: cannot be read: {error}; name a YAML file") from error


def _place(model: Any, client: MlflowClient) -> tuple[str | None, str, str]:
    """LoggedModel id, or run id and artifact path, of what the user named."""
    if isinstance(model, Run):
        return _only_model(model.info.run_id, client), "", ""
    if isinstance(model, ModelVersion):
        return _version_place(model, client)
    if not isinstance(model, str):
        if model_id := getattr(model, "model_id", None):
            return str(model_id), "", ""
        raise ConfigurationError(
            f"{type(model).__name__}: pass what log_model returned, a LoggedModel, a run, or models:/NAME/VERSION"
        )
    if _RUN_ID.match(model):
        return _only_model(model, client), "", ""
    if found := _MODEL_ID.match(model):
        return found[1], "", ""
    if not (found := _URI.match(model)):
        raise ConfigurationError(f"{model}: write models:/NAME/VERSION or a run's id, or pass what log_model returned")
    version = found["version"] or aliased_version(client, found["name"], found["alias"])
    return _version_place(client.get_model_version(found["name"], version), client)


def _only_model(run_id: str, client: MlflowClient) -> str:
    outputs = client.get_run(run_id).outputs
    found = sorted({output.model_id for output in outputs.model_outputs}) if outputs else []
    if len(found) != 1:
        names = ", ".join(f"models:/{model_id}" for model_id in found[:20]) or "none"
        raise ConfigurationError(f"run {run_id} logged {len(found)} models ({names}); pass the one that is meant")
    return str(found[0])


def _version_place(entry: ModelVersion, client: MlflowClient) -> tuple[str | None, str, str]:
    """Where a version's files lie: its LoggedModel, the version it copies, or a folder of its run."""
    source = entry.source or ""
    if model_id := model_id_of(entry):
        return model_id, "", ""
    if _URI.match(source):
        return _place(source, client)
    if run := re.match(r"runs:/(?P<run>[^/]+)/(?P<path>.+)\Z", source):
        return None, run["run"], run["path"]
    if entry.run_id:
        root = str(client.get_run(entry.run_id).info.artifact_uri).rstrip("/") + "/"
        if source.startswith(root):
            return None, entry.run_id, source.removeprefix(root)
    raise ConfigurationError(
        f"version {entry.version} of {entry.name}: its artifacts lie outside MLflow; put {FOLDER}/ into them yourself"
    )


def embedded(folder: Path) -> tuple[str, str]:
    """A registry in one fresh folder, artifacts too: its tracking URI, and the id of an experiment in it."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with conversation(f"make a registry in {folder}"):
        return uri, str(client_of(uri).create_experiment("demo", artifact_location=(folder / "artifacts").as_uri()))


def register(
    model: Any,
    name: str,
    recipe: Recipe,
    data: DataManifest,
    metrics: Mapping[str, float],
    tracking_uri: str,
    experiment: str | None = None,
) -> str:
    """Logs a torch module in MLflow's pickle layout, with metrics and dossier; returns its version's URI.

    experiment: the id of the experiment that holds the run; None: MLflow's default.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")  # set_tracking_uri sets it too; None unsets both
    with conversation(f"register {name}"):
        mlflow.set_tracking_uri(tracking_uri)
        try:
            with mlflow.start_run(experiment_id=experiment):
                mlflow.log_metrics(dict(metrics))
                # Inferring requirements would load the model in another process; the gate reads none.
                info = mlflow.pytorch.log_model(
                    model, name="model", serialization_format="pickle", pip_requirements=["torch"]
                )
                log_dossier(info, recipe, data, tracking_uri)
            client = client_of(tracking_uri)
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            entry = client.create_model_version(name, info.model_uri, info.run_id, model_id=info.model_id)
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
    return f"models:/{name}/{entry.version}"

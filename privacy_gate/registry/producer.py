"""Functions for the model's team to call in its training code: dossiers, round logs, and whole runs for demos."""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import mlflow
import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from numpy.typing import NDArray

from privacy_gate.documents import Record, dump, load, parse
from privacy_gate.dossier.candidate import Claim
from privacy_gate.dossier.dataset import DataManifest
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.roundlog import Round, write_round
from privacy_gate.errors import ConfigurationError
from privacy_gate.registry.pull import (
    FOLDER,
    MODEL_ID,
    ROUNDS,
    URI,
    aliased_version,
    client_of,
    conversation,
    model_id_of,
)

_RUN_ID = re.compile(r"[0-9a-f]{32}\Z")

R = TypeVar("R", bound=Record)


def log_dossier(
    model: Any,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    data: DataManifest | Mapping[str, Any] | str | Path,
    tracking_uri: str | None = None,
    claim: Claim | Mapping[str, Any] | str | Path | None = None,
) -> None:
    """Attaches a dossier to a logged model, inside its artifacts. Call it in the code that trains the model.

    model   the result of mlflow.*.log_model or register_model, a LoggedModel, models:/NAME/VERSION,
            or the run (or its id) that logged one model
    recipe  a Recipe, the same as plain data, or the path of a YAML file
    data    a DataManifest, in any of these forms
    claim   a Claim, in any of these forms, if differential privacy is claimed
    Raises ConfigurationError at file:line:col for an invalid recipe, manifest or claim.
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


def _record(source: Any, kind: type[R]) -> R:
    """A record from a record, plain data or the path of a YAML file."""
    if isinstance(source, kind):
        return source
    if isinstance(source, Mapping):
        return parse(source, kind, kind.__name__.lower())
    try:
        return load(Path(source).read_text(encoding="utf-8"), kind, str(source))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source}: cannot be read: {error}; name a YAML file") from error


def _place(model: Any, client: MlflowClient) -> tuple[str | None, str, str]:
    """(LoggedModel id, "", ""), or (None, run id, artifact path), of the model that the user named."""
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
    if matched := MODEL_ID.match(model):
        return matched[1], "", ""
    if not (matched := URI.match(model)):
        raise ConfigurationError(f"{model}: write models:/NAME/VERSION or a run's id, or pass what log_model returned")
    version = matched["version"] or aliased_version(client, matched["name"], matched["alias"])
    return _version_place(client.get_model_version(matched["name"], version), client)


def _only_model(run_id: str, client: MlflowClient) -> str:
    """The id of the one model that a run logged. Raises ConfigurationError if it logged none or several."""
    outputs = client.get_run(run_id).outputs
    model_ids = sorted({output.model_id for output in outputs.model_outputs}) if outputs else []
    if len(model_ids) != 1:
        names = ", ".join(f"models:/{model_id}" for model_id in model_ids[:20]) or "none"
        raise ConfigurationError(f"run {run_id} logged {len(model_ids)} models ({names}); pass one model instead")
    return str(model_ids[0])


def _version_place(entry: ModelVersion, client: MlflowClient) -> tuple[str | None, str, str]:
    """The place of a version's files: its LoggedModel, the version that it is a copy of, or a folder in its run."""
    source = entry.source or ""
    if model_id := model_id_of(entry):
        return model_id, "", ""
    if URI.match(source):  # a copy, whose source is the original version
        return _place(source, client)
    if run := re.match(r"runs:/(?P<run>[^/]+)/(?P<path>.+)\Z", source):
        return None, run["run"], run["path"]
    if entry.run_id:
        # The final slash keeps a folder with a longer name from matching.
        root = str(client.get_run(entry.run_id).info.artifact_uri).rstrip("/") + "/"
        if source.startswith(root):
            return None, entry.run_id, source.removeprefix(root)
    raise ConfigurationError(
        f"version {entry.version} of {entry.name}: its artifacts are outside MLflow; add {FOLDER}/ to them yourself"
    )


def log_round(
    index: int,
    weights: Mapping[str, Any],
    updates: Mapping[str, Mapping[str, Any]],
    examples: Mapping[str, int] | None = None,
    *,
    only: Collection[str] | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> None:
    """Logs one round of a federation to its MLflow run, for the gate to read. Call it on the server in each round.

    index     number of the round, from 1
    weights   the global model before the round: a state dict of arrays or tensors
    updates   the client's model minus the global one, by client as named in the audit table; dicts like weights
    examples  number of rows that each client trained on, by client
    only      names of the tensors to log, such as those of the last layer; None: all
    run_id    id of the run; None: the active run
    Raises ConfigurationError for an invalid round, or if no run is active and run_id is None.
    """
    entry = Round(
        index, _arrays(weights), {str(client): _arrays(update) for client, update in updates.items()}, examples or {}
    )
    with TemporaryDirectory() as folder, conversation(f"log round {index}"):
        path = write_round(Path(folder), entry, only)
        if run_id is None and (active := mlflow.active_run()):
            run_id = active.info.run_id
        if run_id is None:
            raise ConfigurationError(
                "no MLflow run is active; call log_round inside mlflow.start_run(), or pass run_id"
            )
        client_of(tracking_uri).log_artifact(run_id, str(path), ROUNDS)


def _arrays(tensors: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The tensors as NumPy arrays. NumPy has no bfloat16, so torch floats with fewer than 4 bytes become float32."""
    return {str(name): np.asarray(_plain(tensor)) for name, tensor in tensors.items()}


def _plain(tensor: Any) -> Any:
    if not hasattr(tensor, "detach"):
        return tensor
    local = tensor.detach().cpu()
    return (local.float() if local.is_floating_point() and local.itemsize < 4 else local).numpy()


def embedded(folder: Path) -> tuple[str, str]:
    """Creates a registry with its artifacts in a fresh folder. Returns its tracking URI and an experiment's id."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with conversation(f"create a registry in {folder}"):
        return uri, str(client_of(uri).create_experiment("demo", artifact_location=(folder / "artifacts").as_uri()))


def register(
    model: Any,
    name: str,
    recipe: Recipe,
    data: DataManifest,
    metrics: Mapping[str, float],
    tracking_uri: str,
    experiment: str | None = None,
    rounds: Iterable[Round] = (),
) -> str:
    """Logs a torch module in MLflow's pickle layout, with metrics and dossier. Returns the URI of its new version.

    experiment  id of the run's experiment; None: MLflow's default
    rounds      round log of the federation that trained the model
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")  # set_tracking_uri sets this variable too; None unsets both
    with conversation(f"register {name}"):
        mlflow.set_tracking_uri(tracking_uri)  # start_run and log_model take no URI
        try:
            with mlflow.start_run(experiment_id=experiment):
                mlflow.log_metrics(dict(metrics))
                # Without pip_requirements, MLflow would load the model in another process to infer them.
                info = mlflow.pytorch.log_model(
                    model, name="model", serialization_format="pickle", pip_requirements=["torch"]
                )
                log_dossier(info, recipe, data, tracking_uri)
                for entry in rounds:
                    log_round(entry.index, entry.weights, entry.updates, entry.examples, tracking_uri=tracking_uri)
            client = client_of(tracking_uri)
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            version = client.create_model_version(name, info.model_uri, info.run_id, model_id=info.model_id)
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
    return f"models:/{name}/{version.version}"

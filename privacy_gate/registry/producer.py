"""What a model's own team calls where it trains: dossiers, round logs, and whole runs for demos and tests."""

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
    if found := MODEL_ID.match(model):
        return found[1], "", ""
    if not (found := URI.match(model)):
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
    if URI.match(source):
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
    """Logs one round of a federation to its MLflow run, for the gate to read. Call it where the server aggregates.

    index     of the round, from 1
    weights   the global model before the round: a state dict of arrays or tensors
    updates   by client, as the audit table names it: the client's model minus the global one, a dict alike
    examples  by client: rows it trained on
    only      tensors that are kept, such as the last layer's; None: all
    run_id    of the run; None: the active one
    Raises ConfigurationError for what no round can be, or where no run is active.
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
                "no MLflow run is active; call log_round inside mlflow.start_run(), or give run_id"
            )
        client_of(tracking_uri).log_artifact(run_id, str(path), ROUNDS)


def _arrays(tensors: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """As NumPy arrays, which know no bfloat16: short floating numbers of torch become float32."""
    return {str(name): np.asarray(_plain(tensor)) for name, tensor in tensors.items()}


def _plain(tensor: Any) -> Any:
    if not hasattr(tensor, "detach"):
        return tensor
    there = tensor.detach().cpu()
    return (there.float() if there.is_floating_point() and there.itemsize < 4 else there).numpy()


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
    rounds: Iterable[Round] = (),
) -> str:
    """Logs a torch module in MLflow's pickle layout, with metrics and dossier; returns its version's URI.

    experiment  the id of the experiment that holds the run; None: MLflow's default
    rounds      of the federation that trained it
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
                for each in rounds:
                    log_round(each.index, each.weights, each.updates, each.examples, tracking_uri=tracking_uri)
            client = client_of(tracking_uri)
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            entry = client.create_model_version(name, info.model_uri, info.run_id, model_id=info.model_id)
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
    return f"models:/{name}/{entry.version}"

"""Scenes that several tests play in: small audit tables, candidates trained on them, a registry on disk."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from pyarrow import parquet

from privacy_gate.documents import load
from privacy_gate.dossier.dataset import Columns, DataManifest, describe_table
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.registry import pull as registry

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two threads on two shared cores wait for each other."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Scene:
    """An audit table of Gaussian classes, precomputed as embeddings, and a recipe for it.

    x (N, D), y (N,); rows in the order members, holdout, population.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    members: int
    holdout: int
    recipe: Recipe
    manifest: DataManifest

    def train(self, rows: NDArray[np.int64]) -> torch.nn.Module:
        """A linear model trained on `rows` as the recipe says, by a plain loop."""
        recipe, generator = self.recipe, torch.Generator().manual_seed(self.recipe.seed)
        head = torch.nn.Linear(self.x.shape[1], recipe.classes)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.Adam(head.parameters(), lr=recipe.optimizer.lr)
        x, y = torch.from_numpy(self.x[rows]), torch.from_numpy(self.y[rows])
        for _ in range(recipe.epochs):
            for batch in torch.randperm(len(x), generator=generator).split(recipe.batch_size):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(head(x[batch]), y[batch]).backward()
                optimizer.step()
        return head.eval()

    @property
    def member_rows(self) -> NDArray[np.int64]:
        return np.arange(self.members)

    @property
    def holdout_rows(self) -> NDArray[np.int64]:
        return np.arange(self.members, self.members + self.holdout)

    def accuracy(self, model: torch.nn.Module, rows: NDArray[np.int64]) -> float:
        predicted = model(torch.from_numpy(self.x[rows])).argmax(1).numpy()
        return float((predicted == self.y[rows]).mean())


def make_scene(
    folder: Path,
    *,
    members: int = 100,
    holdout: int = 1000,
    population: int = 200,
    features: int = 256,
    epochs: int = 40,
    lr: float = 0.05,
    seed: int = 0,
) -> Scene:
    """Five overlapping classes. The defaults memorise: as many features as rows of a class."""
    rng = np.random.default_rng([7, seed])
    rows, classes = members + holdout + population, 5
    y = rng.integers(0, classes, rows)
    x = (rng.normal(size=(classes, features)) * 0.25)[y] + rng.normal(size=(rows, features))
    x = x.astype(np.float32)
    split = ["member"] * members + ["holdout"] * holdout + ["population"] * population
    path = folder / "table.parquet"
    columns = {
        "id": [f"row-{row}" for row in range(rows)],
        "label": y,
        "split": split,
        "features": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), features),
    }
    parquet.write_table(pa.table(columns), path)
    recipe = load(
        f"{{backbone: {{name: identity}}, classes: {classes}, optimizer: {{name: adam, lr: {lr}}}, "
        f"epochs: {epochs}, batch_size: 50, seed: {seed}}}",
        Recipe,
        "recipe",
    )
    return Scene(x, y, members, holdout, recipe, describe_table(str(path), Columns(embedding="features")))


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry in a sqlite file, shared by all tests of the run (setting one up takes seconds)."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = Path.cwd()
    os.chdir(folder)  # artifacts of an sqlite registry lie in ./mlruns of whoever made it
    try:
        registry.client_of(f"sqlite:///{folder}/mlflow.db").create_experiment(
            "tests", artifact_location=str(folder / "artifacts")
        )
    finally:
        os.chdir(before)
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test leaves behind lies in its own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)


@pytest.fixture
def scenes() -> Callable[..., Scene]:
    return make_scene

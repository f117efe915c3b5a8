"""Jobs and results for tests of the store."""

from collections.abc import Callable

import numpy as np
import pytest

from privacy_gate.arrays import Arrays
from privacy_gate.documents import load
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import TrainReference, train_reference


@pytest.fixture
def job() -> Callable[..., TrainReference]:
    """The job of reference `index`, for a recipe with this many epochs."""

    def make(index: int = 0, epochs: int = 1) -> TrainReference:
        text = f"{{backbone: {{name: identity}}, classes: 2, optimizer: {{name: adam, lr: 0.1}}, epochs: {epochs}, "
        return train_reference(load(text + "batch_size: 1, seed: 4}", Recipe, "recipe"), "d" * 64, index)

    return make


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {"confidence": rng.normal(size=4000).astype(np.float32), "included": rng.random(4000) < 0.5}

"""Compiled code trains heads one by one as torch trains them stacked, whatever the remainder of a tile."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from privacy_gate.compute.training import stack
from privacy_gate.compute.training.stack import padded, train_block
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.native.compiler import has_numba

pytestmark = pytest.mark.skipif(not has_numba(), reason="Numba is not installed")

ROUNDING = {torch.float32: 2e-4, torch.float64: 1e-10}
ROWS = 70


def both(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int, classes: int, batch: int, **changes: Any
) -> list[torch.Tensor]:
    """Three heads, trained by compiled code and by torch."""
    rng = np.random.default_rng([width, classes, batch])
    plain = {"backbone": {"name": "identity"}, "classes": classes, "batch_size": batch, "epochs": 3}
    recipe = Recipe.model_validate_json(json.dumps(plain | {"optimizer": {"name": "adam", "lr": 0.02}} | changes))
    x = padded(torch.from_numpy(rng.normal(size=(ROWS, width))), torch.device("cpu"), dtype)
    y = torch.from_numpy(rng.integers(0, classes, ROWS))
    block = [(index, np.sort(rng.choice(ROWS, 33, replace=False))) for index in range(3)]
    found = []
    for compiled in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(stack, "has_numba", lambda compiled=compiled: compiled)
            found.append(train_block(x, y, width, recipe, block, lambda _: None))
    return found


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6, 8, 10, 13])
def test_remainders_of_tiles_are_trained_on_too(
    classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, batch in itertools.product((1, 15, 16, 63, 130), (1, 3, 4, 16, 33, 100)):
        # Adam would divide tiny gradients by their own size and so amplify rounding.
        how = {"optimizer": {"name": "sgd", "lr": 0.1}, "label_smoothing": 0.1}
        compiled, plain = both(monkeypatch, dtype, width, classes, batch, **how)
        assert (compiled - plain).abs().max() <= ROUNDING[dtype] * plain.abs().max(), (width, batch)


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "adam", "lr": 0.02, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 0.1},
        {"name": "adamw", "lr": 0.02, "weight_decay": 0.3},
        {"name": "sgd", "lr": 0.3},
        {"name": "sgd", "lr": 0.1, "weight_decay": 0.01},
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        {"name": "sgd", "lr": 0.1, "momentum": 0.8, "nesterov": True},
    ],
    ids=str,
)
def test_every_optimiser_takes_torch_s_steps(
    optimizer: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, plain = both(monkeypatch, dtype, 40, 6, 8, optimizer=optimizer, schedule={"name": "cosine"})
    assert (compiled - plain).abs().max() <= ROUNDING[dtype] * plain.abs().max()


def test_a_diverging_head_is_nan_in_both_implementations(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, plain = both(monkeypatch, torch.float32, 40, 6, 8, optimizer={"name": "sgd", "lr": 1e38})
    assert not compiled.isfinite().all()
    assert not plain.isfinite().all()


def test_progress_counts_every_epoch_of_every_head() -> None:
    x = padded(torch.ones(8, 4), torch.device("cpu"), torch.float32)
    how = {"backbone": {"name": "identity"}, "classes": 2, "batch_size": 4, "epochs": 5}
    recipe = Recipe.model_validate_json(json.dumps(how | {"optimizer": {"name": "sgd", "lr": 0.1}}))
    counted: list[int] = []
    train_block(x, torch.zeros(8, dtype=torch.int64), 4, recipe, [(0, np.arange(8)), (1, np.arange(8))], counted.append)
    assert counted == [1] * 10

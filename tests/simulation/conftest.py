"""Fixtures of the simulation tests: outputs of other libraries, the slow reference, the reference matrix, updates."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"federated_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def peers() -> dict[str, Any]:
    """Eleven updates with five coordinates, and the results of ByzFL 0.0.11 and Flower for them."""
    stored: dict[str, Any] = json.loads((HERE.parent / "data" / "federated_parity.json").read_text())
    return stored


@pytest.fixture(scope="session")
def naive() -> ModuleType:
    return _load("naive")


@pytest.fixture(scope="session")
def matrix() -> ModuleType:
    return _load("matrix")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)

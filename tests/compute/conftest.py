"""What the tests of the GPU floor share."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def plain_loop() -> Callable[..., torch.nn.Linear]:
    """The slow twin of stacked training, tests/plain.py."""
    spec = importlib.util.spec_from_file_location("plain", Path(__file__).parents[1] / "plain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loop: Callable[..., torch.nn.Linear] = module.plain_loop
    return loop

"""Machine code is kept where there is room for it, and done without where Numba does not work."""

import shutil
import sys
from collections import namedtuple
from typing import Any

import numpy as np
import pytest

from privacy_gate.native import compiler as native

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _asked_anew() -> Any:
    native.has_numba.cache_clear()
    yield
    native.has_numba.cache_clear()


def test_numba_that_refuses_to_be_imported_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # what import does then is raise ImportError
    assert not native.has_numba()


def doubled(out: Any) -> None:
    for k in range(out.size):
        out[k] *= 2


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_code_is_kept_on_disk_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1 << 40, 0, free))
    made: Any = native.compiled(doubled)
    out = np.arange(3.0)
    made(out)
    assert out.tolist() == [0, 2, 4]
    assert (made.stats.cache_path is not None) is (free > 0)

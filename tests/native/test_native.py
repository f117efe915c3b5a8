"""Machine code is kept where there is room for it, and done without where Numba does not work."""

import shutil
import subprocess
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


WITHOUT = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
import numpy as np
import torch
from privacy_gate.compute.training.products import Gathered, products
from privacy_gate.compute.training.stack import padded, train_block
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.local import Batches, local_updates
from privacy_gate.simulation.rules.clipping import centered_clipping
from privacy_gate.simulation.rules.geometry import moments, norms
from privacy_gate.simulation.rules.preaggregation import nearest_neighbour_mixing
from privacy_gate.simulation.rules.robust import geometric_median, meamed, multi_krum, trimmed_mean
from privacy_gate.simulation.scores import right
x = torch.rand(7, 130)
for rule in (centered_clipping, geometric_median, meamed, multi_krum, nearest_neighbour_mixing, trimmed_mean):
    assert rule(x, 1).isfinite().all()
assert norms(x).isfinite().all() and moments(x)[1].isfinite().all()
assert right(torch.rand(2, 3, 4), torch.tensor([0, 1])).isfinite().all()
assert isinstance(products(x), Gathered)
batches = Batches(*torch.zeros(2, 1, 1, 1, 2, dtype=torch.int64), torch.ones(1, 1, 1, 2))
assert local_updates(x, torch.zeros(1, 1, 3, 130), batches, Training(), False)[0].isfinite().all()
how = {"backbone": {"name": "identity"}, "classes": 2, "batch_size": 4, "epochs": 1}
recipe = Recipe.model_validate(how | {"optimizer": {"name": "sgd", "lr": 0.1}})
table = padded(x, torch.device("cpu"), torch.float32)
labels = torch.zeros(7, dtype=torch.int64)
assert train_block(table, labels, 130, recipe, [(0, np.arange(7))], lambda _: None).isfinite().all()
assert [name for name in sys.modules if name.startswith("privacy_gate.native.")] == ["privacy_gate.native.compiler"]
print("done")
"""


def test_without_numba_all_is_computed_by_torch_and_no_kernel_is_imported() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert run.stdout == "done\n", run.stderr

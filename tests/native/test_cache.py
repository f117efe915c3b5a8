"""Machine code is loaded by later processes, and never once anything that it was made of has changed."""

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("numba")

from numba.core.dispatcher import Dispatcher

from privacy_gate import native
from privacy_gate.native import cache

PACKAGE = Path(__file__).parents[2] / "privacy_gate"

# The inner product of (1, 2, 3) with itself, which calls LLVM code of lanes.py, and where its machine code came from.
PROGRAM = """
import torch
from privacy_gate.native import geometry
(product,), = geometry.inner_products(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
stats = geometry._inner_products.stats
print(product, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), stats.cache_path)
"""

ONCE = "builder.store(_sum(builder, builder.load(total)), builder.gep(target, [count.type(place)]))"
TWICE = (
    "builder.store(_sum(builder, builder.fadd(builder.load(total), builder.load(total))), "
    "builder.gep(target, [count.type(place)]))"
)


# Local steps of five heads, every bit of them, and where their machine code came from.
TRAINING = """
import zlib
import torch
from privacy_gate.native import client_steps
draw = torch.Generator().manual_seed(0)
table, heads = torch.rand(97, 65, generator=draw), torch.randn(5, 1, 10, 65, generator=draw)
rows, label = (torch.randint(0, top, (1, 3, 2, 32), generator=draw) for top in (97, 10))
weight = torch.full((1, 3, 2, 32), 1 / 32)
updates, _ = client_steps.local_updates(table, heads, rows, label, weight, (0.7, 0.1, 0.2), False)
stats = client_steps._train.stats
print(zlib.crc32(updates.numpy().tobytes()), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), 0)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package, without anything compiled."""
    shutil.copytree(PACKAGE, tmp_path / "privacy_gate", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def product(copy: Path, program: str = PROGRAM, **environment: str) -> tuple[float, int, int, str]:
    """The program's result in a new process, how often it loaded and compiled the function, and where the code lies.

    Python itself writes no compiled files: only machine code could be stale.
    """
    known = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    known |= {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "XDG_CACHE_HOME": str(copy / "cache"),
    }
    run = subprocess.run(
        [sys.executable, "-c", program], env=known | environment, capture_output=True, text=True, check=True, cwd=copy
    )
    value, hits, misses, place = run.stdout.split()
    return float(value), int(hits), int(misses), place


def test_code_is_loaded_by_the_next_process_and_compiled_again_once_a_function_it_calls_changes(copy: Path) -> None:
    value, hits, misses, place = product(copy)
    assert (value, hits, misses) == (14.0, 0, 1)
    assert product(copy) == (14.0, 1, 0, place)
    lanes = copy / "privacy_gate" / "native" / "lanes.py"
    source = lanes.read_text()
    assert source.count(ONCE) == 1
    lanes.write_text(source.replace(ONCE, TWICE))
    value, hits, misses, _ = product(copy)
    assert (value, hits, misses) == (28.0, 0, 1)
    lanes.write_text(source)
    assert product(copy) == (14.0, 1, 0, place)


def test_code_that_was_just_compiled_and_code_that_was_loaded_give_the_same_bits(copy: Path) -> None:
    compiled, hits, misses, _ = product(copy, TRAINING)
    assert (hits, misses) == (0, 1)
    assert product(copy, TRAINING) == (compiled, 1, 0, "0")


def test_a_read_only_package_keeps_its_code_in_the_user_s_cache_and_without_one_nowhere(copy: Path) -> None:
    (copy / "privacy_gate" / "native" / "__pycache__").touch()  # a file: nothing can be kept in it, not even by root
    value, _, _, place = product(copy)
    assert value == 14.0
    assert Path(place).parent == copy / "cache" / "privacy_gate"
    (copy / "full").touch()
    for nowhere in (str(copy / "full"), "~/.cache"):
        value, hits, _, place = product(copy, XDG_CACHE_HOME=nowhere)
        assert (value, hits, place) == (14.0, 0, "None")
    assert not (copy / "~").exists()


def test_numba_s_own_settings_choose_the_place_but_not_the_key(copy: Path) -> None:
    own = {"NUMBA_CACHE_DIR": str(copy / "own"), "NUMBA_CACHE_LOCATOR_CLASSES": "UserWideCacheLocator"}
    value, _, _, place = product(copy, **own)
    assert value == 14.0
    assert Path(place).parent == copy / "own" / "privacy_gate"


def test_folders_of_other_versions_do_not_pile_up(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for age, name in enumerate("abcdefgh"):
        folder = cache.open_folder([tmp_path], name)
        assert folder is not None
        (folder / "code.nbc").touch()
        os.utime(folder, (age, age))
    again = cache.open_folder([tmp_path], "e")  # used again, so it is the newest
    assert again is not None
    assert cache.open_folder([tmp_path], "i") is not None
    assert {path.name for path in tmp_path.iterdir()} == {"other", *(f"native-{name}" for name in "eghi")}


def test_the_digest_covers_every_source_the_compilers_and_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest() -> str | None:
        cache.digest.cache_clear()
        return cache.digest()

    for path in cache.SOURCES.glob("*.py"):
        shutil.copy(path, tmp_path)
    try:
        known = {digest()}
        with monkeypatch.context() as patch:
            patch.setattr(cache, "SOURCES", tmp_path)
            assert digest() in known
            for path in sorted(tmp_path.glob("*.py")):
                path.write_text(path.read_text() + "\n")
                known.add(digest())
            assert len(known) == 1 + len(list(tmp_path.glob("*.py")))
            for path in tmp_path.glob("*.py"):
                path.unlink()
            assert digest() is None
        for changed in ("numba.__version__", "llvmlite.__version__"):
            with monkeypatch.context() as patch:
                patch.setattr(f"privacy_gate.native.cache.{changed}", "0")
                assert digest() not in known
        with monkeypatch.context() as patch:
            patch.setattr(cache.llvmlite.binding, "get_host_cpu_features", lambda: {"avx": True})
            assert digest() not in known
    finally:
        cache.digest.cache_clear()


def test_compiled_functions_use_nothing_but_native_numpy_and_math() -> None:
    """Whatever else they called would be compiled in without being part of the digest."""
    for found in pkgutil.iter_modules(native.__path__):
        module = importlib.import_module(f"{native.__name__}.{found.name}")
        for function in vars(module).values():
            if not isinstance(function, Dispatcher) or function.py_func.__module__ != module.__name__:
                continue
            code = function.py_func
            for name in set(code.__code__.co_names) & set(code.__globals__):
                used = code.__globals__[name]
                home = used.__name__ if isinstance(used, ModuleType) else getattr(used, "__module__", None)
                plain = isinstance(used, bool | int | float)
                assert plain or home in {"numpy", "math"} or str(home).startswith(native.__name__), (code, name)

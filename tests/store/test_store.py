"""The store: files are whole or absent, immutable, and checked on every read."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from privacy_gate.documents import load
from privacy_gate.dossier.backbone import Backbone, PublicWeights
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import StoreError, UndecidedError
from privacy_gate.jobs.digests import digest
from privacy_gate.jobs.kinds import TrainReference, train_reference
from privacy_gate.store import Store

RECIPE = load(
    "{backbone: {name: identity}, classes: 2, optimizer: {name: adam, lr: 0.1}, epochs: 1, batch_size: 1, seed: 4}",
    Recipe,
    "recipe",
)
ARRAYS = {"confidence": np.arange(5, dtype=np.float32), "included": np.array([True, False])}


def job(index: int = 0) -> TrainReference:
    return train_reference(RECIPE, "d" * 64, index)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path}")


def test_what_is_put_is_got_back_bit_for_bit(store: Store) -> None:
    assert not store.has(job())
    store.put(job(), ARRAYS)
    assert store.has(job())
    assert not store.has(job(1))
    found = store.get(job())
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_what_is_missing_is_said_in_the_order_asked_for(store: Store) -> None:
    for index in (0, 3, 4):
        store.put(job(index), ARRAYS)
    assert store.missing(map(job, (9, 4, 2, 3, 1, 0, 2))) == [job(9), job(2), job(1), job(2)]
    assert store.missing([]) == []


class Slow(MemoryFileSystem):  # type: ignore[misc]
    """A service that answers four requests together, and none before the fourth arrives."""

    protocol = "slow"
    asked: ClassVar[threading.Barrier]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("slow:/")))

    def info(self, path: str, **kwargs: Any) -> Any:
        if "away" in path:
            raise ConnectionError("nobody answers")
        type(self).asked.wait()
        return super().info(path, **kwargs)


def test_a_distant_store_is_asked_for_many_results_at_once() -> None:
    fsspec.register_implementation("slow", Slow, clobber=True)
    Slow.asked = threading.Barrier(4, timeout=60)
    jobs = [job(index) for index in range(32)]
    assert Store("slow://shelf").missing(jobs) == jobs
    with pytest.raises(StoreError, match="nobody answers"):
        Store("slow://away").missing(jobs)


def test_the_first_result_stays(store: Store) -> None:
    store.put(job(), ARRAYS)
    store.put(job(), {"confidence": np.zeros(1, np.float32)})
    assert len(store.get(job())["confidence"]) == 5


def test_a_missing_result_leaves_the_verdict_undecided_and_says_what_to_do(store: Store) -> None:
    with pytest.raises(UndecidedError, match="no result of TrainReference: run `prepare` first") as caught:
        store.get(job())
    assert caught.value.exit_code == 4


def test_the_first_note_stays(store: Store) -> None:
    assert store.remember("policy", "monday") == "monday"
    assert store.remember("policy", "tuesday") == "monday"


def only_file(root: Path) -> Path:
    (path,) = (path for path in root.rglob("*") if path.is_file())
    return path


@pytest.mark.parametrize("place", [3, 40, -1])
def test_any_changed_byte_is_noticed(tmp_path: Path, place: int) -> None:
    store = Store(str(tmp_path))
    store.put(job(), ARRAYS)
    path = only_file(tmp_path)
    payload = bytearray(path.read_bytes())
    payload[place] ^= 1
    path.write_bytes(payload)
    with pytest.raises(StoreError, match="damaged"):
        store.get(job())


def test_a_truncated_file_is_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put(job(), ARRAYS)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match="damaged"):
        store.get(job())


def test_the_result_of_another_job_is_noticed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put(job(0), ARRAYS)
    path = only_file(tmp_path)
    other = tmp_path / digest(job(1))[:2] / f"{digest(job(1))}.safetensors"
    other.parent.mkdir(exist_ok=True)
    path.rename(other)
    with pytest.raises(StoreError, match="damaged"):
        store.get(job(1))


def test_two_writers_of_one_job_leave_one_sound_result(tmp_path: Path) -> None:
    writers = [threading.Thread(target=Store(str(tmp_path)).put, args=(job(), ARRAYS)) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    np.testing.assert_array_equal(Store(str(tmp_path)).get(job())["confidence"], ARRAYS["confidence"])
    only_file(tmp_path)


def test_equal_results_are_equal_files_whichever_process_writes_them(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from privacy_gate.store.contents import pack;"
        "from privacy_gate.jobs.kinds import Embed;"
        "from privacy_gate.dossier.backbone import Backbone, Input; from privacy_gate.dossier.views import View;"
        "job = Embed(Backbone(name='x'), Input(size=32, mean=(0., 0., 0.), std=(1., 1., 1.)), View(), 'd' * 64, 0, 4);"
        "arrays = {name: np.arange(5.0) for name in 'abcd'};"
        "sys.stdout.buffer.write(pack(job, arrays, {'torch': '2', 'device': 'cpu'}))"
    )
    run = [sys.executable, "-c", script]
    assert len({subprocess.run(run, capture_output=True, check=True).stdout for _ in range(3)}) == 1


def test_what_made_a_result_stands_beside_it_and_changes_neither_name_nor_arrays(tmp_path: Path) -> None:
    store = Store(str(tmp_path)).made_by({"torch": "2.13.0", "device": "cpu AVX2"})
    store.put(job(), ARRAYS)
    np.testing.assert_array_equal(Store(str(tmp_path)).get(job())["confidence"], ARRAYS["confidence"])
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"2.13.0", b"2.12.0"))  # but cannot be edited unnoticed
    with pytest.raises(StoreError, match="its checksum differs"):
        store.get(job())


def test_an_unwritable_root_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Store(str(tmp_path / "file" / "store")).put(job(), ARRAYS)


def test_an_unknown_scheme_is_a_store_error() -> None:
    with pytest.raises(StoreError, match="fsspec"):
        Store("nosuchscheme://bucket")


def test_the_place_and_the_licence_of_public_weights_change_no_job_and_their_bytes_do() -> None:
    def named(**weights: str) -> str:
        public = PublicWeights(**({"uri": "file:///a", "sha256": "5e" * 32} | weights))
        recipe = RECIPE.model_copy(update={"backbone": Backbone(name="resnet18", weights=public)})
        return digest(train_reference(recipe, "d" * 64, 0))

    assert named() == named(uri="s3://elsewhere/b") == named(licence="Apache-2.0")
    assert named() != named(sha256="6f" * 32)


def test_the_candidate_s_seed_changes_no_reference() -> None:
    assert digest(job()) == digest(train_reference(RECIPE.model_copy(update={"seed": 9}), "d" * 64, 0))
    assert digest(job()) != digest(train_reference(RECIPE.model_copy(update={"epochs": 9}), "d" * 64, 0))
    assert digest(job()) != digest(train_reference(RECIPE, "e" * 64, 0))

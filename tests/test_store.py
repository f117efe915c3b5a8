"""The store: whole or absent, immutable, checked on every read."""

import threading
from pathlib import Path

import numpy as np
import pytest

from privacy_gate.candidate import Recipe
from privacy_gate.documents import load
from privacy_gate.errors import StoreError
from privacy_gate.job import TrainReference, digest, train_reference
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


def test_the_first_result_stays(store: Store) -> None:
    store.put(job(), ARRAYS)
    store.put(job(), {"confidence": np.zeros(1, np.float32)})
    assert len(store.get(job())["confidence"]) == 5


def test_a_missing_result_says_what_to_do(store: Store) -> None:
    with pytest.raises(StoreError, match="no result of TrainReference: run `prepare` first"):
        store.get(job())


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


def test_an_unwritable_root_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Store(str(tmp_path / "file" / "store")).put(job(), ARRAYS)


def test_an_unknown_scheme_is_a_store_error() -> None:
    with pytest.raises(StoreError, match="fsspec"):
        Store("nosuchscheme://bucket")


def test_the_candidate_s_seed_and_the_place_of_its_public_weights_change_no_reference() -> None:
    assert digest(job()) == digest(train_reference(RECIPE.model_copy(update={"seed": 9}), "d" * 64, 0))
    assert digest(job()) != digest(train_reference(RECIPE.model_copy(update={"epochs": 9}), "d" * 64, 0))
    assert digest(job()) != digest(train_reference(RECIPE, "e" * 64, 0))

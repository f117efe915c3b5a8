"""Merging stores loses no result, changes no result, and refuses results that contradict each other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from privacy_gate.arrays import Arrays
from privacy_gate.cli import app
from privacy_gate.errors import ConflictError, StoreError
from privacy_gate.jobs.digests import digest
from privacy_gate.jobs.kinds import TrainReference
from privacy_gate.store import Store, path_of
from privacy_gate.store.shelf import verify
from privacy_gate.store.union import Merged, agree, merge

Make = Callable[..., TrainReference]


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store, Store]:
    return Store(str(tmp_path / "a")), Store(f"memory://{tmp_path}/b"), Store(str(tmp_path / "c"))


def test_the_union_holds_what_any_part_held_and_again_copies_nothing(
    stores: tuple[Store, Store, Store], job: Make, arrays: Arrays
) -> None:
    a, b, into = stores
    for index, store in enumerate((a, b, b, a, into)):
        store.put(job(index), arrays)
    b.put(job(0), arrays)
    parts = [a.place, b.place]
    assert merge(parts, into.place) == Merged(copied=4, present=1)
    assert all(into.has(job(index)) for index in range(5))
    np.testing.assert_array_equal(into.get(job(1))["confidence"], arrays["confidence"])
    assert merge(parts, into.place) == Merged(copied=0, present=5)


def test_rounding_is_no_contradiction_and_the_first_stays(
    stores: tuple[Store, Store, Store], job: Make, arrays: Arrays
) -> None:
    a, b, into = stores
    a.put(job(), arrays)
    flipped = arrays["included"].copy()
    flipped[0] ^= True
    b.put(job(), {"confidence": arrays["confidence"] + np.float32(1e-3), "included": flipped})
    assert merge([a.place, b.place], into.place).copied == 1
    np.testing.assert_array_equal(into.get(job())["confidence"], arrays["confidence"])


def test_contradicting_results_are_named_and_nothing_is_written(
    stores: tuple[Store, Store, Store], job: Make, arrays: Arrays
) -> None:
    a, b, into = stores
    a.put(job(), arrays)
    a.put(job(1), arrays)
    b.put(job(), {**arrays, "confidence": arrays["confidence"][::-1]})
    with pytest.raises(ConflictError, match=path_of(digest(job()))) as caught:
        merge([a.place, b.place], into.place)
    assert caught.value.exit_code == 7
    assert list(into.place.walk()) == []
    assert merge([a.place, b.place], into.place, keep_first=True).copied == 2
    np.testing.assert_array_equal(into.get(job())["confidence"], arrays["confidence"])


def test_logs_differ_and_epsilon_stands_only_where_opacus_is_and_neither_is_a_contradiction(
    stores: tuple[Store, Store, Store], job: Make, arrays: Arrays
) -> None:
    a, b, into = stores
    monday, tuesday = (np.frombuffer(f"{day} 09:00 trained".encode(), np.uint8) for day in ("monday", "tuesday"))
    a.put(job(), {**arrays, "log": monday, "epsilon": np.array([8.0])})
    b.put(job(), {**arrays, "log": tuesday})
    assert merge([a.place, b.place], into.place).copied == 1
    assert into.get(job())["log"].tobytes() == monday.tobytes()
    assert not agree({**arrays, "epsilon": np.array([8.0])}, {**arrays, "epsilon": np.array([4.0])})


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("confidence", np.zeros(3999, np.float32)),
        ("confidence", np.zeros(4000, np.float64)),
        ("included", np.zeros(4000, bool)),
        ("more", np.zeros(1)),
    ],
)
def test_another_shape_type_subset_or_name_is_a_contradiction(name: str, other: np.ndarray, arrays: Arrays) -> None:  # type: ignore[type-arg]
    assert agree(arrays, dict(arrays))
    assert not agree(arrays, {**arrays, name: other})


def test_one_changed_content_hash_is_a_contradiction() -> None:
    content = np.zeros((256, 32), np.uint8)
    other = content.copy()
    other[3, 5] = 1
    assert not agree({"content": content}, {"content": other})


def test_a_damaged_result_is_not_spread(
    stores: tuple[Store, Store, Store], tmp_path: Path, job: Make, arrays: Arrays
) -> None:
    a, _, into = stores
    a.put(job(), arrays)
    path = tmp_path / "a" / path_of(digest(job()))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="is damaged"):
        merge([a.place], into.place)
    assert list(into.place.walk()) == []


def test_of_two_notes_the_earlier_stays(stores: tuple[Store, Store, Store]) -> None:
    a, b, into = stores
    a.remember("policy", "2030-01-02T00:00:00+00:00")
    b.remember("policy", "2030-01-01T00:00:00+00:00")
    into.remember("policy", "2030-01-03T00:00:00+00:00")
    merge([a.place, b.place], into.place)
    assert into.remember("policy", "2031-01-01T00:00:00+00:00") == "2030-01-01T00:00:00+00:00"


@pytest.mark.parametrize("holder", [0, 1, 2])
@pytest.mark.parametrize("payload", [b"", b"\xff"])
def test_a_note_without_text_is_named_by_merge_verify_and_whoever_reads_it(
    holder: int, payload: bytes, stores: tuple[Store, Store, Store]
) -> None:
    for store in stores:
        store.remember("policy", "2030-01-01T00:00:00+00:00")
    damaged = stores[holder]
    (note,) = damaged.place.walk()
    assert list(verify(damaged.place)) == [(note.path, None)]
    damaged.place.replace(note.path, payload)
    ((_, fault),) = verify(damaged.place)
    assert fault is not None
    assert f"{note.path} is damaged" in fault
    a, b, into = stores
    for refused in (
        lambda: merge([a.place, b.place], into.place),
        lambda: damaged.remember("policy", "2031-01-01T00:00:00+00:00"),
    ):
        with pytest.raises(StoreError, match=f"{note.path} is damaged"):
            refused()


def test_merging_shards_from_the_command_line(tmp_path: Path, job: Make, arrays: Arrays) -> None:
    Store(str(tmp_path / "a")).put(job(0), arrays)
    Store(str(tmp_path / "b")).put(job(1), arrays)
    command = ["store", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--into", str(tmp_path / "c")]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.output.strip()) == (0, "2 results copied, 0 already present")

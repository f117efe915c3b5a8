"""A store's listing comes from its files alone, and pruning deletes only files that are not needed."""

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from privacy_gate.arrays import Arrays
from privacy_gate.cli import app
from privacy_gate.documents import load
from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.federation import Aggregator
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.jobs.digests import FORMAT, describe, digest
from privacy_gate.jobs.kinds import (
    Confirm,
    Embed,
    Job,
    Score,
    TrainReference,
    embed_jobs,
    federate,
    screening,
)
from privacy_gate.store import Store, path_of
from privacy_gate.store.place import START, Place
from privacy_gate.store.shelf import Waste, age, entries, groups, remove, verify, waste

Make = Callable[..., TrainReference]
MADE = {"torch": "2.13.0+cpu", "device": "cpu AVX2"}
NOW = datetime.datetime.now(datetime.UTC)
MONTH = datetime.timedelta(days=30)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path}", MADE)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["store", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def old(root: Path, *paths: Path, days: int = 40) -> None:
    """Sets the files' time of writing to this many days ago."""
    when = NOW.timestamp() - days * 86400
    for path in paths or root.rglob("*.safetensors"):
        os.utime(path, (when, when))


def test_listing_says_what_was_computed_and_what_made_it(store: Store, job: Make, arrays: Arrays) -> None:
    reference, score = job(3, epochs=5), Score("a" * 64, job(epochs=5).recipe, "d" * 64)
    for each in (reference, job(4, epochs=5), job(3, epochs=6), score):
        store.put(each, arrays)
    store.remember("policy", "monday")
    listed = list(entries(store.place))
    assert {entry.name for entry in listed} >= {digest(reference), digest(score)}
    assert len({entry.recipe for entry in listed}) == 2  # the candidate's seed does not make another recipe
    (pair,) = (group for group in groups(listed) if group.kind == "TrainReference" and "5 epochs" in group.summary)
    assert (pair.count, pair.torch, pair.device) == (2, "2.13.0+cpu", "cpu AVX2")
    assert pair.summary == "identity head adam lr 0.1 5 epochs"
    assert pair.size == sum(entry.file.size for entry in listed if entry.name in map(digest, (reference, job(4, 5))))
    assert pair.newest is not None
    assert abs(pair.newest - NOW) < datetime.timedelta(hours=1)


def test_a_label_longer_than_the_first_bytes_read_is_read_whole(store: Store, job: Make, arrays: Arrays) -> None:
    many = TrainReference(job().recipe, "d" * 64, 0, without=tuple(range(START)))
    store.put(many, arrays)
    (entry,) = entries(store.place)
    assert entry.kind == "TrainReference"
    assert list(verify(store.place)) == [(path_of(digest(many)), None)]


def test_a_store_that_does_not_exist_yet_holds_nothing(tmp_path: Path) -> None:
    assert list(entries(Place(str(tmp_path / "absent")))) == []
    assert not Place(str(tmp_path / "absent")).exists()
    (tmp_path / "empty").mkdir()
    code, text = invoke("verify", "--store", str(tmp_path / "empty"))
    assert (code, text.strip()) == (0, "0 files read, 0 damaged")


def test_pruning_takes_what_is_old_and_keeps_a_recipe_with_the_features_it_stands_on(
    tmp_path: Path, job: Make, arrays: Arrays
) -> None:
    store, shape = Store(str(tmp_path)), Input(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    recipe = job().recipe.model_copy(update={"input": shape})
    kept = TrainReference(recipe, "d" * 64, 0)
    stands_on = embed_jobs(recipe.backbone, shape, "d" * 64, 10)[0]
    elsewhere = embed_jobs(recipe.backbone, shape.model_copy(update={"size": 64}), "d" * 64, 10)[0]
    for each in (kept, stands_on, elsewhere, job(1)):
        store.put(each, arrays)
    old(tmp_path)
    store.put(job(2), arrays)
    (name,) = {entry.recipe for entry in entries(store.place) if entry.name == digest(kept)}
    found = waste(store.place, NOW, older_than=MONTH, keep=[name])
    assert {entry.name for entry in found.results} == {digest(elsewhere), digest(job(1))}
    remove(store.place, found)
    assert all(map(store.has, (kept, stands_on, job(2))))
    assert not any(map(store.has, (elsewhere, job(1))))


FEDERATED = """{backbone: {name: x, weights: {uri: w, sha256: "%s"}}, classes: 2,
  optimizer: {name: sgd, lr: 0.1}, epochs: %d, batch_size: 1,
  input: {size: 32, mean: [0, 0, 0], std: [1, 1, 1]}, adaptation: lora, lora: {rank: 2}, seed: 4,
  federation: {rounds: 3, clients: {count: 4, partition: iid}, aggregator: {name: median}}}"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pruning_keeps_the_studies_of_a_kept_recipe_s_federation(
    precision: str, tmp_path: Path, arrays: Arrays
) -> None:
    """Heads that screen for a network in bfloat16 are trained in float32, but they are still its studies."""
    store = Store(str(tmp_path))
    recipe, elsewhere = (
        load(FEDERATED % ("a" * 64, epochs), Recipe, "recipe").model_copy(update={"precision": precision})
        for epochs in (1, 2)
    )
    assert recipe.federation is not None
    mean = recipe.federation.model_copy(update={"aggregator": Aggregator(name="mean")})
    other_rule = recipe.model_copy(update={"federation": mean})
    kept: list[Job] = [
        TrainReference(recipe.model_copy(update={"seed": 0}), "d" * 64, 0),
        federate(screening(recipe), "d" * 64, "sign_flip", 1, 0),
        federate(screening(other_rule), "d" * 64, None, 0, 0),
        federate(other_rule, "d" * 64, None, 0, 0),
        Confirm(recipe, "d" * 64, ("sign_flip",), 1, 0, 3),
    ]
    gone: list[Job] = [federate(screening(elsewhere), "d" * 64, None, 0, 0), TrainReference(other_rule, "d" * 64, 0)]
    for each in (*kept, *gone):
        store.put(each, arrays)
    old(tmp_path)
    (name,) = {entry.recipe for entry in entries(store.place) if entry.name == digest(kept[0])}
    found = waste(store.place, NOW, older_than=MONTH, keep=[name])
    assert {entry.name for entry in found.results} == set(map(digest, gone))


def test_pruning_never_takes_what_is_being_written_a_note_or_a_stranger_s_file(
    tmp_path: Path, job: Make, arrays: Arrays
) -> None:
    store = Store(str(tmp_path))
    store.put(job(), arrays)
    store.remember("policy", "monday")
    abandoned, begun = (tmp_path / "ab" / f"x.{name}.part" for name in "ab")
    for path in (abandoned, begun, tmp_path / "README"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    old(tmp_path, *(path for path in tmp_path.rglob("*") if path.is_file() and path != begun))
    found = waste(store.place, NOW)
    assert found == Waste((), tuple(file for file in store.place.walk() if file.path == "ab/x.a.part"))
    remove(store.place, waste(store.place, NOW, older_than=MONTH))
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} >= {"x.b.part", "README"}
    assert store.remember("policy", "tuesday") == "monday"
    assert not abandoned.exists()
    assert not store.has(job())


def test_results_of_another_format_can_go(tmp_path: Path, job: Make, arrays: Arrays) -> None:
    store = Store(str(tmp_path))
    store.put(job(), arrays)
    payload = (tmp_path / path_of(digest(job()))).read_bytes()
    stale = tmp_path / path_of("0" * 64)
    stale.parent.mkdir()
    stale.write_bytes(payload.replace(f'\\"format\\": {FORMAT}'.encode(), b'\\"format\\": 1'))
    assert waste(store.place, NOW).results == ()
    (gone,) = waste(store.place, NOW, other_formats=True).results
    assert gone.name == "0" * 64


def test_results_of_another_meaning_of_one_kind_can_go_and_those_of_other_kinds_keep_their_names(
    tmp_path: Path, job: Make, arrays: Arrays
) -> None:
    store, study = Store(str(tmp_path)), federate(job().recipe, "d" * 64, None, 0, 0)
    for each in (job(), study):
        store.put(each, arrays)
    assert waste(store.place, NOW, other_formats=True).results == ()
    assert ("revision" in describe(job()), describe(study)["revision"]) == (False, 1)
    payload = (tmp_path / path_of(digest(study))).read_bytes()
    stale = tmp_path / path_of("0" * 64)
    stale.parent.mkdir()
    stale.write_bytes(payload.replace(b'\\"revision\\": 1', b'\\"revision\\": 0'))
    (gone,) = waste(store.place, NOW, other_formats=True).results
    assert gone.name == "0" * 64


def test_a_recipe_that_is_not_there_cannot_be_kept(tmp_path: Path, job: Make, arrays: Arrays) -> None:
    Store(str(tmp_path)).put(job(), arrays)
    with pytest.raises(ConfigurationError, match=r"--keep-recipe 0123: the store .* has no such recipe"):
        waste(Place(str(tmp_path)), NOW, older_than=MONTH, keep=["0123"])


def test_pruning_deletes_only_when_told_to(tmp_path: Path, job: Make, arrays: Arrays) -> None:
    store = Store(str(tmp_path))
    store.put(job(), arrays)
    old(tmp_path)
    command = ("prune", "--store", str(tmp_path), "--older-than", "30d")
    code, text = invoke(*command)
    assert code == 0
    assert "would delete 1 results and 0 abandoned drafts" in text
    assert "TrainReference" in text
    assert store.has(job())
    assert "deleted 1 results" in invoke(*command, "--yes")[1]
    assert not store.has(job())


def spoil(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


def test_verify_names_every_damaged_file_and_deletes_it_when_told_to(tmp_path: Path, job: Make, arrays: Arrays) -> None:
    store = Store(str(tmp_path), MADE)
    for index in range(5):
        store.put(job(index), arrays)
    bit, short, swapped, label = (tmp_path / path_of(digest(job(index))) for index in range(4))
    spoil(bit)
    short.write_bytes(short.read_bytes()[:-7])
    swapped.write_bytes((tmp_path / path_of(digest(job(4)))).read_bytes())
    label.write_bytes(b"")
    faults = {path for path, fault in verify(store.place) if fault}
    assert faults == {path_of(digest(job(index))) for index in range(4)}
    code, text = invoke("verify", "--store", str(tmp_path))
    assert code == 6
    assert all(path.name in text for path in (bit, short, swapped, label))
    assert "5 files read, 4 damaged" in text
    code, text = invoke("verify", "--store", str(tmp_path), "--delete-damaged")
    assert (code, text.splitlines()[-1]) == (0, "5 files read, 4 damaged and deleted")
    assert invoke("verify", "--store", str(tmp_path))[1].strip() == "1 file read, 0 damaged"
    assert store.has(job(4))


def test_a_listing_as_json_is_a_line_per_result(tmp_path: Path, job: Make, arrays: Arrays) -> None:
    store = Store(str(tmp_path), MADE)
    for index in range(3):
        store.put(job(index), arrays)
    (tmp_path / path_of(digest(job(2)))).write_bytes(b"no result at all")
    code, text = invoke("list", "--store", str(tmp_path), "--json")
    found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert sorted(line["job"]["index"] for line in found if line["job"]) == [0, 1]
    assert [line["made"] for line in found if line["kind"] == "TrainReference"] == [MADE, MADE]
    assert sum(line["kind"] == "damaged" for line in found) == 1
    assert "torch 2.13.0+cpu, cpu AVX2" in invoke("list", "--store", str(tmp_path))[1]


def test_features_are_listed_by_their_backbone(store: Store, job: Make) -> None:
    shape = Input(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    part: Embed = embed_jobs(job().recipe.backbone, shape, "d" * 64, 10)[0]
    store.put(part, {"features": np.zeros((10, 2), np.float32)})
    (entry,) = entries(store.place)
    assert (entry.kind, entry.summary, entry.recipe) == ("Embed", "identity", entry.backbone)


@pytest.mark.parametrize("text", ["30", "d", "-3d", "1.5d", "3 d", "3y", ""])
def test_an_age_without_unit_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="for instance 30d"):
        age(text)

"""Round logs: a written log is read back equal, and a hostile log is refused with one clear error."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import privacy_gate
from privacy_gate.dossier.roundlog import KEY, Round, RoundLog, updates_from, write_round
from privacy_gate.errors import CandidateError, ConfigurationError, GateError
from privacy_gate.registry import producer
from privacy_gate.registry import pull as registry

CLIENTS = ("north", "south", "site 3")


def drawn(index: int = 1, clients: tuple[str, ...] = CLIENTS) -> Round:
    rng = np.random.default_rng(index)

    def tensors() -> dict[str, np.ndarray]:
        return {"fc.weight": rng.normal(size=(3, 4)).astype(np.float32), "fc.bias": rng.normal(size=3)}

    weights = {**tensors(), "bn.num_batches_tracked": np.array(7)}
    return Round(index, weights, {name: tensors() for name in clients}, {name: 10 + len(name) for name in clients})


def same(one: Round, other: Round) -> bool:
    pairs = [(one.weights, other.weights), *((one.updates[name], other.updates[name]) for name in one.updates)]
    return (one.index, dict(one.examples), list(one.updates)) == (
        other.index,
        dict(other.examples),
        list(other.updates),
    ) and all(a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in pairs)


def test_a_log_reads_as_it_was_written_round_by_round(tmp_path: Path) -> None:
    for index in (12, 3, 7):
        assert write_round(tmp_path, drawn(index)).name == f"round-{index:06d}.safetensors"
    log = RoundLog.open(tmp_path)
    assert log.indices == (3, 7, 12)
    assert all(same(found, drawn(found.index)) for found in log.rounds())


def test_clients_may_come_and_go_and_examples_may_be_unknown(tmp_path: Path) -> None:
    write_round(tmp_path, drawn(1, ("north", "south")))
    there = drawn(2, ("south", "west"))
    write_round(tmp_path, Round(2, there.weights, there.updates))
    first, second = RoundLog.open(tmp_path).rounds()
    assert (set(first.updates), set(second.updates)) == ({"north", "south"}, {"south", "west"})
    assert not second.examples
    assert RoundLog.open(tmp_path).clients() == ["north", "south", "west"]


def test_only_what_is_named_is_kept(tmp_path: Path) -> None:
    path = write_round(tmp_path, drawn(), only=["fc.weight"])
    assert sorted(load_file(path)) == [*(f"client/{place}/fc.weight" for place in range(3)), "global/fc.weight"]
    with pytest.raises(ConfigurationError, match=r"only names fc\.wight"):
        write_round(tmp_path, drawn(), only=["fc.wight"])


def test_the_digest_stands_for_every_byte_and_name(tmp_path: Path) -> None:
    digests = set()
    for number, rounds in enumerate([(1,), (1, 2), (2,)]):
        (tmp_path / str(number)).mkdir()
        for index in rounds:
            write_round(tmp_path / str(number), drawn(index))
        digests.add(RoundLog.open(tmp_path / str(number)).digest)
    assert len(digests) == 3
    assert RoundLog.open(tmp_path / "0").digest in digests


WRONG: dict[str, tuple[Callable[[Round], Round], str]] = {
    "round 0": (lambda r: Round(0, r.weights, r.updates), "count rounds from 1"),
    "no client": (lambda r: Round(1, r.weights, {}), "no updates"),
    "nan": (
        lambda r: Round(1, r.weights, {"a": {**r.updates["north"], "fc.bias": np.full(3, np.nan)}}),
        "not finite",
    ),
    "shape": (lambda r: Round(1, r.weights, {"a": {"fc.bias": np.zeros(2)}}), r"shape \(2,\)"),
    "unlike": (lambda r: Round(1, r.weights, {**r.updates, "a": {"fc.bias": np.zeros(3)}}), "other tensors"),
    "unknown": (lambda r: Round(1, r.weights, {"a": {"fc": np.zeros(3)}}), "other tensors"),
    "line break": (lambda r: Round(1, r.weights, {"a\nb": r.updates["north"]}), "not printable"),
    "examples": (lambda r: Round(1, r.weights, r.updates, {"north": 3}), "exactly the clients"),
    "no examples": (lambda r: Round(1, r.weights, r.updates, dict.fromkeys(CLIENTS, 0)), "at least 1"),
    "text": (lambda r: Round(1, {"a": np.array(["x"])}, {"b": {"a": np.array(["x"])}}), "not finite numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_round_can_be_is_refused_where_it_is_made(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(ConfigurationError, match=message):
        make(drawn())


def rewritten(path: Path, tensors: Callable[[dict[str, Any]], Any], metadata: Callable[[dict[str, Any]], Any]) -> None:
    said = {"format": 1, "round": 1, "clients": list(CLIENTS), "examples": [1, 2, 3]}
    found = dict(load_file(path))
    tensors(found)
    metadata(said)
    save_file(found, path, metadata={KEY: json.dumps(said)})


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda t: None, lambda m: m.update(format=2), "format 2"),
    "round": (lambda t: None, lambda m: m.update(round=2), "says that it is round 2"),
    "client twice": (lambda t: None, lambda m: m.update(clients=["a", "a", "b"]), "listed twice"),
    "client more": (lambda t: None, lambda m: m.update(clients=[*CLIENTS, "d"], examples=None), "other tensors"),
    "client less": (lambda t: None, lambda m: m.update(clients=["a", "b"], examples=None), "no client"),
    "line break": (lambda t: None, lambda m: m.update(clients=["a", "b", "c\nd"], examples=None), "not printable"),
    "examples": (lambda t: None, lambda m: m.update(examples=[1]), "3 clients but 1 numbers of examples"),
    "unknown key": (lambda t: None, lambda m: m.update(code="x"), "code"),
    "stray": (lambda t: t.update(elsewhere=np.zeros(2)), lambda m: None, "no client"),
    "nan": (lambda t: t.update({"global/fc.bias": np.full(3, np.inf)}), lambda m: None, "not finite"),
    "shape": (lambda t: t.update({"client/1/fc.bias": np.zeros(4)}), lambda m: None, "of shape"),
    "missing": (lambda t: t.pop("client/2/fc.bias"), lambda m: None, "other tensors"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_lies_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors, metadata, message = HOSTILE[name]
    rewritten(write_round(tmp_path, drawn()), tensors, metadata)
    with pytest.raises(CandidateError, match=message) as caught:
        list(RoundLog.open(tmp_path).rounds())
    assert "round-000001.safetensors" in str(caught.value)


def test_who_took_part_is_read_without_a_tensor_and_lies_in_the_metadata_are_refused_there_too(tmp_path: Path) -> None:
    path = write_round(tmp_path, drawn())
    rewritten(path, lambda tensors: tensors.update({"global/fc.bias": np.full(3, np.nan)}), lambda said: None)
    assert RoundLog.open(tmp_path).clients() == sorted(CLIENTS)
    rewritten(path, lambda tensors: None, lambda said: said.update(clients=["a", "a"]))
    with pytest.raises(CandidateError, match=r"round-000001\.safetensors: a client is listed twice"):
        RoundLog.open(tmp_path).clients()


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="no rounds"):
        RoundLog.open(tmp_path)
    path = write_round(tmp_path, drawn())
    (tmp_path / "round-000002.safetensors").symlink_to(path)
    with pytest.raises(CandidateError, match="is no round"):
        RoundLog.open(tmp_path)
    (tmp_path / "round-000002.safetensors").unlink()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CandidateError, match=r"notes\.txt"):
        RoundLog.open(tmp_path)


def test_damaged_bytes_never_end_in_anything_but_a_clear_error(tmp_path: Path) -> None:
    whole, rng = write_round(tmp_path, drawn()).read_bytes(), np.random.default_rng(0)
    path = tmp_path / "round-000001.safetensors"
    refused: list[str] = []
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, 600, 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(bytes(damaged[: rng.integers(100, len(damaged))] if rng.random() < 0.3 else damaged))
        try:
            list(RoundLog.open(tmp_path).rounds())
        except GateError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert all(path.name in each for each in refused)


@contextmanager
def tracked(uri: str) -> Iterator[None]:
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_rounds_logged_where_a_model_is_trained_come_with_the_candidate(
    scenes: Any, tracking: str, tmp_path: Path
) -> None:
    scene = scenes(tmp_path, holdout=100, features=8, epochs=1)
    uri = producer.register(scene.train(scene.member_rows), "rounds", scene.recipe, scene.manifest, {}, tracking)
    entry = registry.client_of(tracking).get_model_version("rounds", uri.rpartition("/")[2])
    with tracked(tracking), mlflow.start_run(run_id=entry.run_id):
        for index in (1, 2):
            one = drawn(index)
            weights = {name: torch.from_numpy(np.asarray(each)) for name, each in one.weights.items()}
            local = {
                client: {name: weights[name] + each[name] for name in each} for client, each in one.updates.items()
            }
            updates = {client: updates_from(each, weights) for client, each in local.items()}
            privacy_gate.log_round(index, weights, updates, one.examples)
    (tmp_path / "without").mkdir()
    assert registry.pull(uri, tmp_path / "without", tracking).rounds is None
    (tmp_path / "with").mkdir()
    pulled = registry.pull(uri, tmp_path / "with", tracking, rounds=True)
    assert pulled.rounds is not None
    log = RoundLog.open(pulled.rounds)
    assert pulled.rounds_digest == log.digest
    assert log.indices == (1, 2)
    for found in log.rounds():
        for client, update in drawn(found.index).updates.items():
            np.testing.assert_allclose(found.updates[client]["fc.weight"], update["fc.weight"], atol=1e-6)
    registry.client_of(tracking).log_text(entry.run_id, "x", f"{registry.ROUNDS}/strange.txt")
    (tmp_path / "again").mkdir()
    with pytest.raises(CandidateError, match="expected only rounds"):
        registry.pull(uri, tmp_path / "again", tracking, rounds=True)


def test_a_run_without_rounds_has_none_and_a_round_needs_a_run(scenes: Any, tracking: str, tmp_path: Path) -> None:
    scene = scenes(tmp_path, holdout=100, features=8, epochs=1)
    uri = producer.register(scene.train(scene.member_rows), "roundless", scene.recipe, scene.manifest, {}, tracking)
    (tmp_path / "pulled").mkdir()
    pulled = registry.pull(uri, tmp_path / "pulled", tracking, rounds=True)
    assert (pulled.rounds, pulled.rounds_digest) == (None, None)
    one = drawn()
    with pytest.raises(ConfigurationError, match="no MLflow run is active"):
        privacy_gate.log_round(1, one.weights, one.updates)


def test_short_floats_of_torch_are_kept_as_float32(tracking: str, tmp_path: Path) -> None:
    weights = {"w": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}
    with tracked(tracking), mlflow.start_run() as run:
        privacy_gate.log_round(1, weights, {"a": {"w": torch.full((2,), 0.5, dtype=torch.float16)}})
        got = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=registry.ROUNDS)
    (found,) = RoundLog.open(Path(got)).rounds()
    assert found.weights["w"].dtype == np.float32
    assert found.updates["a"]["w"].tolist() == [0.5, 0.5]

"""What a round log tells: planted leaks are found, noise tells nothing, a log that says too little is no pass."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from privacy_gate.auditing.audit import Shard
from privacy_gate.auditing.policy import Policy, PolicyInForce
from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.trajectory import TrajectoryMia
from privacy_gate.compute.cluster import Cluster
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import load, parse
from privacy_gate.dossier.candidate import Candidate, Dossier
from privacy_gate.dossier.dataset import AuditData, Columns, DataManifest, Split, Table
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.roundlog import Round, RoundLog, write_round
from privacy_gate.errors import CandidateError, UndecidedError
from privacy_gate.gate.case import Case
from privacy_gate.gate.preparation import prepare
from privacy_gate.metrics.trajectory import source_inference_advantage
from privacy_gate.progress import silent
from privacy_gate.simulation.leaks.trajectory import RoundSums, against_others, guessed, loss_of, own, signals
from privacy_gate.store import Store
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, Status, judged_status

CLASSES, WIDTH, CLIENTS = 4, 150, 5
NAMES = [f"site {place}" for place in range(CLIENTS)]
FEDERATION: dict[str, Any] = {"clients": {"partition": "column"}, "rounds": 8}
PLAIN: dict[str, Any] = {
    "backbone": {"name": "identity"},
    "classes": CLASSES,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "epochs": 1,
    "batch_size": 8,
}


def recipe(**federation: Any) -> Recipe:
    return parse(PLAIN | {"federation": FEDERATION | federation}, Recipe, "recipe")


def table(members: int = 300, holdout: int = 1100) -> AuditData:
    """Overlapping classes; five clients, the first with a third of the members."""
    rng = np.random.default_rng(3)
    rows = members + holdout
    label = rng.integers(0, CLASSES, rows)
    x = (0.1 * rng.normal(size=(CLASSES, WIDTH)))[label] + rng.normal(size=(rows, WIDTH))
    split = np.full(rows, Split.HOLDOUT, dtype=np.int8)
    split[:members] = Split.MEMBER
    client = np.array(NAMES)[np.maximum(0, rng.integers(-1, CLIENTS, rows))]
    ids = np.array([f"r{row}" for row in range(rows)])
    return AuditData(ids, label, split, "d" * 64, embedding=x.astype(np.float32), client=client)


def descent(x: NDArray[Any], label: NDArray[Any], weights: NDArray[Any], steps: int) -> NDArray[Any]:
    """The update of a client who takes full steps of gradient descent on its rows; x (n, D + 1)."""
    local = weights.copy()
    for _ in range(steps):
        logits = x @ local.T
        error = np.exp(logits - logits.max(1, keepdims=True))
        error /= error.sum(1, keepdims=True)
        error[np.arange(len(label)), label] -= 1
        local -= 0.3 * error.T @ x / len(label)
    return local - weights


Sent = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


def federate(
    folder: Path, data: AuditData, sent: Sent | None = None, rounds: int = 8, steps: int = 20, names: Any = NAMES
) -> Path:
    """Trains by averaging, logs every round and saves the candidate; `sent` replaces a client's update.

    names  of the clients, or from a round to those in it
    """
    assert data.embedding is not None
    assert data.client is not None
    x = np.concatenate([data.embedding, np.ones((data.rows, 1))], axis=1).astype(np.float64)
    weights = np.zeros((CLASSES, WIDTH + 1))
    (folder / "rounds").mkdir(parents=True)
    (folder / "candidate" / "data").mkdir(parents=True)
    for index in range(1, rounds + 1):
        updates, examples = {}, {}
        present = names(index) if callable(names) else names
        for name in present:
            rows = (data.client == name) & (data.split == Split.MEMBER)
            update = descent(x[rows], data.label[rows], weights, steps)
            updates[name] = update if sent is None else sent(update, np.array(index))
            examples[name] = int(rows.sum())
        logged = {name: {"weight": update[:, :-1], "bias": update[:, -1]} for name, update in updates.items()}
        write_round(
            folder / "rounds", Round(index, {"weight": weights[:, :-1], "bias": weights[:, -1]}, logged, examples)
        )
        weights = weights + sum(examples[name] * updates[name] for name in present) / sum(examples.values())
    tensors = {"weight": torch.from_numpy(weights[:, :-1].copy()), "bias": torch.from_numpy(weights[:, -1].copy())}
    save_file({name: tensor.float() for name, tensor in tensors.items()}, folder / "candidate/data/model.safetensors")
    return folder


def judged(
    folder: Path, data: AuditData, how: Recipe | None = None, check: TrajectoryMia | None = None
) -> tuple[CheckResult, dict[tuple[str, str], Measurement]]:
    """The check's word on what lies in the folder, as the gate would compute it."""
    how, check = how or recipe(), check or TrajectoryMia(permutations=99)
    log = RoundLog.open(folder / "rounds")
    subject = Subject(how, "a" * 64, data, {}, rounds=log.digest)
    store = Store(str(folder / "store"))
    jobs = list(check.jobs(subject))
    run(jobs, Inputs(data, folder / "candidate", folder / "rounds"), Machine(device="cpu", threads=1), store)
    result = check.measure(subject, store.get, 0.95)
    return result, {(each.metric, each.subject): each for each in result.measurements}


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditData]:
    data = table()
    return federate(tmp_path_factory.mktemp("leaky"), data), data


def test_updates_of_overfitting_clients_reveal_members_and_their_clients(leaky: tuple[Path, AuditData]) -> None:
    result, found = judged(*leaky)
    for signal in ("cosine", "loss"):
        tpr, source = found["trajectory_tpr", signal], found["source_inference_advantage", signal]
        assert tpr.low is not None
        assert source.low is not None
        assert tpr.low > (0.3 if signal == "cosine" else 0.03)
        assert source.low > 0.4
        assert found["client_mia_gap", signal].value is not None
        assert found["client_mia_gap_p_value", signal].value is not None
    assert "read from 8 logged rounds" in result.notes[0]
    assert judged_status(found["trajectory_tpr", "loss"], Limit(max=0.05)) is Status.VIOLATED


def test_updates_of_noise_tell_nothing(tmp_path: Path) -> None:
    """20 federations of 2 signals: nominal intervals of 95 % miss the truth 5 times of 100."""
    data, missed = table(), {"trajectory_tpr": 0, "source_inference_advantage": 0}
    truth = {"trajectory_tpr": 0.01, "source_inference_advantage": 0.0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        folder = federate(
            tmp_path / str(seed), data, lambda update, _, rng=rng: 0.1 * rng.normal(size=update.shape), steps=1
        )
        _, found = judged(folder, data)
        for (metric, _), each in found.items():
            if metric in truth:
                assert each.low is not None
                missed[metric] += each.low > truth[metric]  # above: a false alarm
    assert max(missed.values()) <= 4


def test_signals_are_those_of_gradients_taken_one_by_one() -> None:
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(12, 7)), rng.integers(0, CLASSES, 12)
    weights, updates = rng.normal(size=(CLASSES, 7)), rng.normal(size=(3, CLASSES, 7))
    cosine, gain = signals(x, label, weights, updates)
    for row in range(12):
        leaf = torch.tensor(weights, requires_grad=True)
        one, target = torch.tensor(x[row : row + 1]), torch.tensor(label[row : row + 1])
        before = torch.nn.functional.cross_entropy(one @ leaf.T, target)
        (gradient,) = torch.autograd.grad(before, leaf)
        for place, update in enumerate(torch.from_numpy(updates)):
            alike = torch.nn.functional.cosine_similarity(-gradient.flatten(), update.flatten(), dim=0)
            after = torch.nn.functional.cross_entropy(one @ (leaf.detach() + update).T, target)
            assert cosine[row, place] == pytest.approx(float(alike), abs=1e-12)
            assert gain[row, place] == pytest.approx(before.item() - after.item(), abs=1e-12)


def test_z_is_the_distance_from_the_others_mean_in_spreads_over_rows() -> None:
    values = np.random.default_rng(1).normal(size=(9, 4)) * [1, 2, 3, 4] + [0, 5, 0, 5]
    z = against_others(values)
    for client in range(4):
        apart = values[:, client] - np.delete(values, client, axis=1).mean(axis=1)
        np.testing.assert_allclose(z[:, client], (apart - apart.mean()) / apart.std(), atol=1e-12)
    np.testing.assert_allclose(against_others(7 - 3 * values), -z, atol=1e-12)
    assert not against_others(np.full((2, 5), 0.1)).any()  # nobody apart
    assert not against_others(np.repeat(values[:, :1], 5, axis=1)).any()
    assert not against_others(values[:1]).any()


def test_order_and_common_scale_of_clients_change_nothing() -> None:
    rng = np.random.default_rng(2)
    x, label = rng.normal(size=(20, 7)), rng.integers(0, CLASSES, 20)
    order, rounds = rng.permutation(5), rng.normal(size=(6, 5, CLASSES, 7))
    plain, permuted, scaled = (RoundSums(x, label, 5) for _ in range(3))
    everybody, start = np.arange(5), rng.normal(size=(CLASSES, 7))
    for updates in rounds:
        assert plain.add(start, updates, everybody)
        assert permuted.add(start, updates[order], order)
        assert scaled.add(start, 1e-6 * updates, everybody)
    np.testing.assert_allclose(permuted.z(), plain.z(), atol=1e-9)
    np.testing.assert_allclose(scaled.z()[0], plain.z()[0], atol=1e-6)  # a cosine has no scale
    assert (guessed(plain.z(), plain.seen)[0] == guessed(scaled.z(), scaled.seen)[0]).all()


def test_absent_silent_and_constant_clients_leave_finite_scores() -> None:
    rng = np.random.default_rng(4)
    x, label = rng.normal(size=(10, 7)), rng.integers(0, CLASSES, 10)
    log = RoundSums(x, label, 6)
    start = np.zeros((CLASSES, 7))
    assert log.add(start, np.zeros((4, CLASSES, 7)), np.arange(4))  # all silent
    assert log.add(start, np.repeat(rng.normal(size=(1, CLASSES, 7)), 4, axis=0), np.arange(4))  # all alike
    assert not log.add(start, rng.normal(size=(2, CLASSES, 7)), np.arange(2))  # nobody to be compared with
    assert log.seen.tolist() == [2, 2, 2, 2, 0, 0]
    assert not log.z().any()
    assert guessed(log.z() - 1, log.seen).max() < 4  # never one who was not there
    assert log.add(start, 1e200 * rng.normal(size=(3, CLASSES, 7)), np.array([0, 1, 5]))
    assert np.isfinite(log.z()).all()
    assert own(log.z(), np.full(10, 5)).shape == (2, 10)


def test_the_loss_is_the_cross_entropy_even_for_sure_rows() -> None:
    logits = np.array([[800.0, 0.0, 0.0], [0.0, 800.0, 0.0], [1.0, 2.0, 3.0]])
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor([0, 0, 2]), reduction="none")
    np.testing.assert_allclose(loss_of(logits, np.array([0, 0, 2])), expected.numpy(), rtol=1e-12, atol=1e-300)


def test_naming_the_largest_client_is_worth_nothing() -> None:
    client = np.array([0] * 60 + [1] * 40)
    assert source_inference_advantage(np.zeros(100, dtype=int), client, 0.95).value == pytest.approx(0)
    assert source_inference_advantage(client, client, 0.95).value == pytest.approx(0.4)
    assert source_inference_advantage(1 - client, client, 0.95).value == pytest.approx(-0.6)


def unmeasured(result: CheckResult) -> str:
    assert {each.value for each in result.measurements} == {None}
    assert len({each.metric for each in result.measurements}) == 4
    reasons = {each.reason for each in result.measurements}
    assert len(reasons) == 1
    assert {judged_status(each, Limit(max=1.0)) for each in result.measurements} == {Status.NOT_MEASURED}
    return str(reasons.pop())


SHORT: dict[str, tuple[Mapping[str, Any], str]] = {
    "four rounds": ({"rounds": 4}, "needs >= 5 rounds with at least 3 clients, the log has 4"),
    "two clients": ({"names": NAMES[:2]}, "needs >= 5 rounds with at least 3 clients, the log has 0"),
    "a client lacks": ({"names": NAMES[:4]}, "the log lacks 1 of 5 clients that have members, the first is 'site 4'"),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_log_that_says_too_little_is_no_pass(name: str, tmp_path: Path) -> None:
    settings, reason = SHORT[name]
    data = table()
    result, _ = judged(federate(tmp_path / "short", data, **settings), data)
    assert reason in unmeasured(result)


def test_clients_in_too_few_rounds_do_not_dilute_the_evidence(tmp_path: Path) -> None:
    """Two clients overfit, and are logged in rounds of two, in which no one can be compared with others, or seldom."""
    data = table()

    def in_pairs(index: int) -> list[str]:
        return NAMES[:3] if index % 2 else NAMES[3:]

    def seldom(index: int) -> list[str]:
        return NAMES if index > 6 else NAMES[:4]

    result, _ = judged(federate(tmp_path / "pairs", data, rounds=12, names=in_pairs), data)
    reason = unmeasured(result)
    assert "2 of 5 clients that have members are in fewer than 5 rounds with at least 3 clients" in reason
    assert "the first is 'site 3', in 0" in reason
    result, _ = judged(federate(tmp_path / "seldom", data, rounds=10, names=seldom), data)
    assert "1 of 5 clients that have members are in fewer than 5 rounds" in unmeasured(result)
    _, found = judged(federate(tmp_path / "often", data, rounds=11, names=seldom), data)
    assert found["trajectory_tpr", "cosine"].measured


def test_the_log_of_another_model_is_no_pass(leaky: tuple[Path, AuditData], tmp_path: Path) -> None:
    folder, data = leaky
    path = federate(tmp_path / "other", data, steps=1) / "candidate/data/model.safetensors"
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "rounds").symlink_to(folder / "rounds")
    (tmp_path / "mixed" / "candidate").mkdir()
    (tmp_path / "mixed" / "candidate" / "data").mkdir()
    (tmp_path / "mixed/candidate/data/model.safetensors").write_bytes(path.read_bytes())
    result, _ = judged(tmp_path / "mixed", data)
    assert "of the head's length from the candidate, expected at most 10%" in unmeasured(result)
    # What the server adds to the sum is in no client's update; what clients add is.
    for by, sigma, hidden in (("server", 1.0, True), ("server", 0.0, False), ("clients", 1.0, False)):
        noisy = recipe(privacy={"noise_multiplier": sigma, "clip": 0.5, "noise_by": by})
        reason = unmeasured(judged(tmp_path / "mixed", data, noisy)[0])
        assert "expected at most 10%" in reason
        assert ("the server's noise for the privacy of clients, which no log contains" in reason) == hidden


def test_a_log_that_changed_or_is_not_here_is_an_error(leaky: tuple[Path, AuditData], tmp_path: Path) -> None:
    folder, data = leaky
    check, subject = TrajectoryMia(), Subject(recipe(), "a" * 64, data, {}, rounds="e" * 64)
    machine, store = Machine(device="cpu", threads=1), Store(str(tmp_path))
    with pytest.raises(CandidateError, match="changed since it was pinned"):
        run(list(check.jobs(subject)), Inputs(data, folder / "candidate", folder / "rounds"), machine, store)
    with pytest.raises(UndecidedError, match="round log is not here"):
        run(list(check.jobs(subject)), Inputs(data, folder / "candidate"), machine, store)


def test_where_only_what_reads_the_round_log_is_missing_no_cluster_is_asked(
    leaky: tuple[Path, AuditData], tmp_path: Path
) -> None:
    folder, data = leaky
    manifest = DataManifest(
        table=Table(uri="t.parquet", sha256="d" * 64, format="parquet"), columns=Columns(embedding="x")
    )
    candidate = Candidate(
        "models:/m/1", "m", "1", folder / "candidate", "a" * 64, Dossier(recipe=recipe(), data=manifest),
        rounds=folder / "rounds", rounds_digest=RoundLog.open(folder / "rounds").digest,
    )  # fmt: skip
    policy = load("{name: p, version: 1, release_context: api, checks: [{check: trajectory}]}", Policy, "policy")
    case = Case(PolicyInForce(policy, "", "", ""), candidate, data, Store(str(tmp_path / "store")))
    machine = Machine(device="cpu", threads=1)
    others = [job for job in case.jobs if not hasattr(job, "rounds")]
    run(others, Inputs(data, folder / "candidate"), machine, case.store)
    nobody = Cluster("127.0.0.1:1")  # no port that anybody listens on
    prepared = prepare(case, machine, Shard(), silent, nobody)
    assert (prepared.computed, prepared.stored) == (1, len(others))
    assert case.missing(case.jobs) == []


def test_updates_of_other_shapes_are_refused(leaky: tuple[Path, AuditData], tmp_path: Path) -> None:
    folder, data = leaky
    entry = Round(1, {"a": np.zeros((2, 3))}, {name: {"a": np.zeros((2, 3))} for name in NAMES})
    for place, refused in enumerate(
        [entry, replace(entry, weights={"a": np.zeros(3)}, updates={"n": {"a": np.ones(3)}})]
    ):
        (tmp_path / str(place)).mkdir()
        write_round(tmp_path / str(place), refused)
        log = RoundLog.open(tmp_path / str(place))
        subject = Subject(recipe(), "a" * 64, data, {}, rounds=log.digest)
        with pytest.raises(CandidateError, match=r"round log: (a has shape|its updates hold)"):
            run(
                list(TrajectoryMia().jobs(subject)),
                Inputs(data, folder / "candidate", tmp_path / str(place)),
                Machine(device="cpu", threads=1),
                Store(str(tmp_path / "store")),
            )


def test_missing_evidence_is_explained(leaky: tuple[Path, AuditData]) -> None:
    _, data = leaky

    def told(how: Recipe, rows: AuditData = data, rounds: str | None = "b" * 64) -> str:
        check, subject = TrajectoryMia(), Subject(how, "a" * 64, rows, {}, rounds=rounds)
        assert check.jobs(subject) == []
        return unmeasured(check.measure(subject, dict[Any, Any]().__getitem__, 0.95))

    assert "secure aggregation" in told(recipe(secure_aggregation=True))
    assert "each row's client" in told(recipe(clients={"partition": "iid", "count": 5}))
    assert "each row's client" in told(recipe(), replace(data, client=None))
    assert "has no round log" in told(recipe(), rounds=None)
    alone = Subject(parse(PLAIN, Recipe, "recipe"), "a" * 64, data, {})
    left_out = TrajectoryMia(required=False).measure(alone, dict[Any, Any]().__getitem__, 0.95)
    assert left_out.measurements == ()
    assert "declares no federation" in left_out.notes[0]
    assert "trajectory_tpr" in left_out.left_out
    assert "declares no federation" in unmeasured(TrajectoryMia().measure(alone, dict[Any, Any]().__getitem__, 0.95))


def test_rows_of_clients_outside_the_log_are_asked_of_somebody_in_it(leaky: tuple[Path, AuditData]) -> None:
    folder, data = leaky
    assert data.client is not None
    client = np.where(data.split == Split.HOLDOUT, "elsewhere", data.client)
    _, found = judged(folder, replace(data, client=client, digest="c" * 64))
    tpr = found["trajectory_tpr", "cosine"]
    assert tpr.low is not None
    assert tpr.low > 0.3

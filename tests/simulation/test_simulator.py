"""The stacked simulator equals a plain loop, however cells are packed, and avoids known errors of other code."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from privacy_gate.errors import ConfigurationError, EvidenceError
from privacy_gate.simulation.blocks import blocks
from privacy_gate.simulation.cells import Cell, Draws, Training
from privacy_gate.simulation.partitions import Partition, partition
from privacy_gate.simulation.rules.aggregators import rule
from privacy_gate.simulation.samples import Samples
from privacy_gate.simulation.scores import exam, right, stacked_right
from privacy_gate.simulation.servers import Server
from privacy_gate.simulation.simulator import Outcome, Study, simulate

UNEVEN = partition("dirichlet_by_class", minimum=2, alpha=0.3)
SHORT = Training(clients=8, rounds=6, lr=0.5, batch=16)


def blobs(rows: int = 400, classes: int = 4, width: int = 6, seed: int = 0, extra: bool = False) -> Samples:
    """Classes around their own centres; optionally clients, and a trigger that shifts the last feature."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, rows)
    centres = np.random.default_rng(99).normal(size=(classes, width)) * 1.5
    centres[:, -1] = 0
    features = centres[label] + rng.normal(size=(rows, width)) * 0.7
    features[:, -1] = 0
    shown = features.copy()
    shown[:, -1] = 4
    client = rng.integers(0, 8, rows) if extra else None
    return Samples(features, label, client, shown if extra else None)


def study(extra: bool = False, root: bool = False, **settings: object) -> Study:
    known = {"dtype": torch.float64, **settings}
    small = blobs(40, seed=2) if root else None
    return Study(blobs(extra=extra), blobs(300, seed=1, extra=extra), "test", root=small, **known)  # type: ignore[arg-type]


def same(one: Outcome, other: Outcome) -> None:
    np.testing.assert_allclose(one.head, other.head, rtol=1e-9, atol=1e-11)
    assert one.accuracy == pytest.approx(other.accuracy, abs=1e-9)
    np.testing.assert_allclose(one.client_accuracy, other.client_accuracy, atol=1e-9)


TWINS = [
    Training(clients=10, rounds=4, lr=0.5, batch=32),
    Training(clients=10, rounds=3, lr=0.3, steps=None, epochs=2, batch=20, prox=0.5),
    Training(clients=10, rounds=3, lr=0.3, steps=4, batch=8, participation=0.8),
    Training(clients=14, rounds=4, lr=0.3, batch=16, gone=0.1, absent=0.2, stale=0.3),
]


@pytest.mark.parametrize(
    "training", TWINS, ids=["one step", "epochs and prox", "steps and participation", "gone, absent and stale"]
)
def test_every_rule_under_every_attack_equals_a_plain_loop(
    training: Training, naive: ModuleType, matrix: ModuleType
) -> None:
    train, test = matrix.digits(dtype=np.float64)
    cells = matrix.cells([UNEVEN], [0], (1, 2), training)
    # min-max is exactly as far away as the farthest pair: mixing then breaks a tie by rounding.
    cells = [cell for cell in cells if (cell.adversary, str(cell.rule)) != ("min_max", "nnm + trimmed_mean")]
    draws = Draws("twin")
    for cell, found in zip(cells, simulate(Study(train, test, "twin", dtype=torch.float64), cells), strict=True):
        accuracy, head = naive.train(cell, train, test, draws)
        np.testing.assert_allclose(found.head, head, rtol=1e-6, atol=1e-7, err_msg=str(cell))
        assert found.accuracy == pytest.approx(accuracy, abs=0.003)


def mixed() -> list[Cell]:
    """Cells with many shapes, some of which share their data."""
    chains = [
        rule("mean"),
        rule("median"),
        rule("bucketing", "trimmed_mean"),
        rule("nnm", "krum"),
        rule("q_fedavg"),
        rule("fltrust"),
    ]
    attacks = [None, "sign_flip", "gaussian", "label_flip", "alie_search", "inflated_counts", "free_rider", "backdoor"]
    cells = [
        Cell(rule=each, adversary=name, f=1, partition=UNEVEN, seed=seed, training=SHORT)
        for each in chains
        for name in attacks
        for seed in (0, 1)
    ]
    cells += [replace(cell, server=Server("adam", lr=0.1)) for cell in cells[:6]]
    cells += [replace(cell, training=replace(SHORT, participation=0.6)) for cell in cells[:40:3]]
    cells += [replace(cell, training=replace(SHORT, absent=0.25, stale=0.25)) for cell in cells[:60:5]]
    return cells + [replace(cell, partition=Partition("column")) for cell in cells[:20:3]]


def test_a_cell_alone_equals_the_cell_among_others_in_any_order_on_any_number_of_threads() -> None:
    cells = mixed()
    plain = study(extra=True, root=True)
    together = simulate(plain, cells)
    order = np.random.default_rng(0).permutation(len(cells))
    shuffled = simulate(replace(plain, threads=3, memory=3000), [cells[index] for index in order])
    for place, index in enumerate(order):
        same(shuffled[place], together[index])
    for index in range(0, len(cells), 17):
        same(simulate(plain, [cells[index]])[0], together[index])


def test_every_cell_is_in_one_block_and_no_block_too_large() -> None:
    cells = mixed()
    found = blocks(cells, 7)
    places = sorted(place for block in found for chosen in block.cells for place in chosen)
    assert places == list(range(len(cells)))
    for block in found:
        assert len({len(chosen) for chosen in block.cells}) == 1
        assert sum(map(len, block.cells)) <= 7


def test_honest_clients_data_depends_on_seed_and_check_but_not_on_rule_or_attack() -> None:
    draws, other = Draws("a"), Draws("b")
    first = draws.batches(SHORT, 50, 0, 3, 2)[0]
    np.testing.assert_array_equal(first, Draws("a").batches(SHORT, 50, 0, 3, 2)[0])
    for changed in (
        draws.batches(SHORT, 50, 1, 3, 2),
        draws.batches(SHORT, 50, 0, 4, 2),
        draws.batches(SHORT, 50, 0, 3, 1),
    ):
        assert not np.array_equal(first, changed[0])
    assert not np.array_equal(first, other.batches(SHORT, 50, 0, 3, 2)[0])


def test_batches_that_do_not_fit_the_cache_are_redrawn_identically() -> None:
    kept, small, none = (Draws("test", memory) for memory in (1 << 20, 3000, 0))
    every = [(seed, client, turn) for turn in range(6) for seed in (0, 1) for client in range(8)]
    for _ in range(2):
        for key in every:
            found = [draws.batches(SHORT, 50, *key) for draws in (kept, small, none)]
            for rows, weight in found[1:]:
                np.testing.assert_array_equal(rows, found[0][0])
                np.testing.assert_array_equal(weight, found[0][1])
    # Each batch takes 16 rows of 16 bytes. Batches are cached in order of rounds while there is room.
    again = [
        [draws.batches(SHORT, 50, *key)[0] is draws.batches(SHORT, 50, *key)[0] for key in every]
        for draws in (kept, small, none)
    ]
    assert [sum(one) for one in again] == [len(every), 3000 // 256, 0]
    assert again[1] == sorted(again[1], reverse=True)


def test_an_epoch_visits_every_row_once_in_batches_whose_weights_sum_to_1() -> None:
    rows, weight = Draws("a").batches(Training(steps=None, epochs=2, batch=16), 50, 0, 0, 0)
    assert rows.shape == weight.shape == (8, 16)
    np.testing.assert_allclose(weight.sum(1), 1)
    for epoch in (slice(0, 4), slice(4, 8)):
        assert sorted(rows[epoch][weight[epoch] > 0]) == list(range(50))


def test_byzantine_clients_take_part_at_least_as_often_as_their_share() -> None:
    training = Training(clients=10, participation=0.5)
    draws = Draws("a")
    seen = [draws.participants(training, 3, 0, turn) for turn in range(200)]
    assert {len(chosen) for chosen in seen} == {5}
    assert {sum(client >= 7 for client in chosen) for chosen in seen} == {2}
    counts = np.bincount(np.concatenate(seen), minlength=10)
    assert counts.min() > 50
    assert draws.participants(training, 0, 0, 1) == Draws("a").participants(training, 0, 0, 1)
    assert training.participants(9) == (1, 4)


def test_gone_clients_never_return_and_absent_clients_change_every_round() -> None:
    draws = Draws("a")

    def seen(seed: int = 0, byzantine: int = 2, **shares: float) -> list[list[int]]:
        return [draws.participants(Training(clients=10, **shares), byzantine, seed, turn) for turn in range(300)]  # type: ignore[arg-type]

    gone = seen(gone=0.3)
    assert len(set(map(tuple, gone))) == 1
    assert len(gone[0]) == 7
    assert {8, 9} < set(gone[0])
    assert len({tuple(seen(seed, gone=0.3)[0]) for seed in range(10)}) > 5
    absent = seen(absent=0.3)
    assert {len(chosen) for chosen in absent} == {7}
    assert all(chosen[-2:] == [8, 9] for chosen in absent)
    shares = np.bincount(np.concatenate(absent), minlength=10)[:8] / 300
    np.testing.assert_allclose(shares, 5 / 8, atol=0.12)  # five standard errors
    fewer = seen(gone=0.3, participation=0.5, absent=0.25)
    assert {len(chosen) for chosen in fewer} == {3}
    assert {client for chosen in fewer for client in chosen} == set(gone[0])
    assert all(len(chosen) == 1 for chosen in seen(byzantine=0, absent=0.99))


def test_late_clients_change_every_round_come_first_and_the_first_round_has_none() -> None:
    training, draws = Training(clients=10, stale=0.2), Draws("a")
    assert [training.late(2, turn) for turn in range(3)] == [0, 2, 2]
    turns = [draws.participants(training, 2, 0, turn) for turn in range(300)]
    assert turns[0] == list(range(10))
    assert all(sorted(chosen) == list(range(10)) and chosen[-2:] == [8, 9] for chosen in turns)
    late = np.bincount(np.concatenate([chosen[:2] for chosen in turns[1:]]), minlength=10)[:8] / 299
    np.testing.assert_allclose(late, 2 / 8, atol=0.12)
    assert Training(clients=2, stale=0.9).late(1, 1) == 1


def test_a_late_update_is_computed_from_the_previous_rounds_model() -> None:
    """One client that is always late, with full batches: w moves by the gradient at the w of one round ago."""
    data = blobs()
    training = Training(clients=1, rounds=4, batch=len(data.label), lr=0.2, stale=0.9)
    found = simulate(study(), [Cell(training=training)])[0]
    x, truth = np.hstack([data.features, np.ones((len(data.label), 1))]), np.eye(4)[data.label]
    before = now = np.zeros((4, x.shape[1]))
    for turn in range(4):
        logits = x @ (before if turn else now).T
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        before, now = now, now - 0.2 * (p - truth).T @ x / len(x)
    np.testing.assert_allclose(found.head, now, rtol=1e-10)


def test_the_result_is_the_mean_of_the_last_tenth_of_the_rounds_not_the_best() -> None:
    training = replace(SHORT, rounds=25, lr=3.0)
    found = simulate(
        study(), [Cell(rule=rule("median"), adversary="ipm_10", f=3, partition=UNEVEN, training=training)], every=1
    )[0]
    np.testing.assert_array_equal(found.rounds, np.arange(1, 26))
    assert found.accuracy == pytest.approx(found.curve[-3:].mean())
    assert found.accuracy < found.curve.max()


def test_updates_are_differences_and_are_added() -> None:
    """If updates were stored as weights, each round would forget the last, and one round would do as well as thirty."""
    short, long = (replace(SHORT, rounds=rounds, lr=0.02) for rounds in (1, 30))
    one, many = simulate(study(), [Cell(training=short), Cell(training=long)])
    assert np.linalg.norm(many.head) > 10 * np.linalg.norm(one.head)


def test_attacks_replace_a_rounds_update_and_not_the_model() -> None:
    """In round 1, weights equal their change; only round 2 shows the difference.

    At a small rate, full batches give the same update u twice: one client out of eight that sends -u leaves .75 u per
    round, so 1.5 u. If it sent weights -(w + u), that would leave .75 u + (7 u - u - 2 * .75 u) / 8, which is 1.3125 u.
    """
    whole = replace(SHORT, batch=400, lr=1e-3)
    cells = [
        Cell(training=replace(whole, rounds=rounds), adversary="sign_flip", f=1, rule=rule("uniform_mean"))
        for rounds in (1, 2)
    ]
    one, two = simulate(study(), cells)
    np.testing.assert_allclose(two.head, 2 * one.head, atol=0.01 * np.abs(one.head).max())


def test_one_client_with_whole_batches_is_gradient_descent() -> None:
    data = blobs()
    training = Training(clients=1, rounds=5, batch=len(data.label), lr=0.2, decay=0.1)
    found = simulate(study(), [Cell(training=training)])[0]
    x = torch.from_numpy(np.hstack([data.features, np.ones((len(data.label), 1))]))
    head = torch.zeros(4, x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([head], lr=0.2, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(x @ head.T, torch.from_numpy(data.label)).backward()
        optimizer.step()
    np.testing.assert_allclose(found.head, head.detach().numpy(), rtol=1e-10)


def test_a_strong_proximal_term_keeps_clients_near_the_global_model() -> None:
    training = replace(SHORT, steps=8, lr=0.2)
    free, tied = simulate(
        study(), [Cell(partition=UNEVEN, training=replace(training, rounds=1, prox=prox)) for prox in (0.0, 4.0)]
    )
    assert np.linalg.norm(tied.head) < 0.5 * np.linalg.norm(free.head)


def test_two_byzantine_clients_out_of_ten_break_the_mean_but_not_robust_rules() -> None:
    training = Training(clients=10, rounds=30, lr=0.5)
    chains = [
        rule("mean"),
        rule("trimmed_mean"),
        rule("multi_krum"),
        rule("geometric_median"),
        rule("centered_clipping"),
    ]
    found = simulate(study(), [Cell(rule=each, adversary="ipm_10", f=2, training=training) for each in chains])
    assert found[0].accuracy < 0.3
    assert min(each.accuracy for each in found[1:]) > 0.85


def test_a_claim_of_a_billion_examples_breaks_fedavg_and_not_capped_claims() -> None:
    training = Training(clients=10, rounds=30, lr=0.5)
    cells = [
        Cell(rule=rule(name), adversary="inflated_counts", f=1, training=training) for name in ("mean", "capped_mean")
    ]
    broken, kept = simulate(study(), cells)
    assert broken.accuracy < 0.3
    assert kept.accuracy > 0.85


def test_the_mean_learns_a_planted_backdoor_and_a_median_does_not() -> None:
    training = Training(clients=8, rounds=30, lr=0.5)
    cells = [Cell(rule=rule(name), adversary="backdoor", f=2, training=training) for name in ("mean", "median")]
    clean, planted, kept = simulate(study(extra=True), [Cell(training=training), *cells])
    assert clean.backdoor is None
    assert planted.backdoor is not None
    assert kept.backdoor is not None
    assert planted.backdoor.mean() > 0.9
    assert kept.backdoor.mean() < 0.4
    with pytest.raises(ConfigurationError, match="features of triggered images"):
        simulate(study(), cells)


def test_q_fedavg_raises_the_accuracy_of_the_worst_client() -> None:
    """One client out of eight holds all rows of a class: the larger q, the higher its accuracy."""
    data = blobs(800)
    client = np.random.default_rng(5).integers(0, 7, 800)
    client[data.label == 3] = 7
    train = Samples(data.features, data.label, client)
    held = Study(train, blobs(400, seed=1), "q", dtype=torch.float64)
    training = Training(clients=8, rounds=20, lr=0.1, batch=16)
    plain, fair = simulate(
        held,
        [
            Cell(rule=rule(name), partition=Partition("column"), training=training)
            for name in ("uniform_mean", "q_fedavg")
        ],
    )
    assert (
        fair.client_accuracy[7] - fair.client_accuracy[:7].mean()
        > plain.client_accuracy[7] - plain.client_accuracy[:7].mean()
    )


def test_client_accuracy_uses_own_rows_or_class_shares() -> None:
    data = study(extra=True)
    column, uneven = simulate(
        data, [Cell(partition=Partition("column"), training=SHORT), Cell(partition=UNEVEN, training=SHORT)]
    )
    x = np.hstack([data.test.features, np.ones((300, 1))])
    # The last tenth of six rounds is the last round.
    right = (x @ column.head.T).argmax(1) == data.test.label
    assert data.test.client is not None
    np.testing.assert_allclose(column.client_accuracy, [right[data.test.client == k].mean() for k in range(8)])
    assert column.accuracy == pytest.approx(right.mean())
    absent = replace(data, test=replace(data.test, client=np.maximum(data.test.client, 1)))
    assert np.isnan(simulate(absent, [Cell(partition=Partition("column"), training=SHORT)])[0].client_accuracy[0])
    assert uneven.client_accuracy.min() >= uneven.class_accuracy.min() - 1e-9
    assert uneven.heterogeneity > column.heterogeneity
    assert uneven.sizes.sum() == 400


def test_a_row_s_hit_is_its_mean_over_the_last_tenth_of_the_rounds_whatever_else_is_measured() -> None:
    data = study()
    # A federation with fewer rounds equals the beginning of one with more.
    ended = [Cell(partition=UNEVEN, training=replace(SHORT, rounds=rounds)) for rounds in (28, 29, 30)]
    x = np.hstack([data.test.features, np.ones((300, 1))])
    right = np.mean([(x @ one.head.T).argmax(1) == data.test.label for one in simulate(data, ended)], axis=0)
    assert ((right > 0) & (right < 1)).any()
    for every in (0, 1, 29):
        found = simulate(data, ended[-1:], every)[0]
        np.testing.assert_allclose(found.hit, right, rtol=1e-6)
        assert found.hit.dtype == np.float32
        assert found.accuracy == pytest.approx(right.mean())
        for name in range(4):
            assert found.class_accuracy[name] == pytest.approx(right[data.test.label == name].mean())


def test_a_head_of_zeros_is_right_by_chance_and_one_that_is_not_finite_never() -> None:
    trial = exam(blobs(), torch.device("cpu"), torch.float64)
    heads = torch.zeros(2, 4 * 7, dtype=torch.float64)
    heads[1] = torch.nan
    np.testing.assert_allclose(trial.hits(heads, 4), np.tile([0.25, 0.0], (400, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_hits_are_torchs(dtype: torch.dtype) -> None:
    logits = torch.randint(0, 4, (50, 5, 7), generator=torch.Generator().manual_seed(0)).to(dtype)  # many ties
    logits[3, 2, 4], logits[4, 0, 1], logits[5, :, 2] = torch.nan, torch.inf, -torch.inf
    label = torch.randint(0, 5, (50,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(right(logits, label), stacked_right(logits, label))
    assert torch.equal(right(logits[::2, :, 1:], label[::2]), stacked_right(logits[::2, :, 1:], label[::2]))


@pytest.mark.parametrize("strange", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 1])
def test_a_row_with_a_logit_that_is_not_finite_is_never_right(strange: float, place: int) -> None:
    """Neither if the logit is the true class's, which +inf would make the largest, nor if it is another class's."""
    logits = torch.tensor([[[2.0], [1.0], [0.0]], [[2.0], [1.0], [0.0]]])
    logits[1, place] = strange
    assert right(logits, torch.tensor([0, 0])).tolist() == [[1.0], [0.0]]


def test_training_leaves_the_samples_the_threads_and_gradients_as_they_were() -> None:
    data, fresh = study(extra=True), study(extra=True)
    threads = torch.get_num_threads()
    found = simulate(data, mixed()[:3])
    np.testing.assert_array_equal(data.train.features, fresh.train.features)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert isinstance(found[0].head, np.ndarray)


def test_invalid_samples_and_cells_are_refused() -> None:
    for wrong in (
        lambda: Cell(adversary="sign_flop", f=1),
        lambda: Cell(adversary="sign_flip", f=0),
        lambda: Cell(f=10),
        lambda: Training(lr=0.0),
        lambda: Training(participation=1.5),
        lambda: Training(gone=1.0),
        lambda: Training(stale=-0.1),
        lambda: simulate(study(), [Cell(rule=rule("fltrust"))]),
        lambda: Study(blobs(), blobs(width=5), "test"),
    ):
        with pytest.raises(ConfigurationError):
            wrong()
    with pytest.raises(EvidenceError, match="not finite"):
        Samples(np.full((2, 2), np.nan), np.zeros(2, dtype=int))
    with pytest.raises(EvidenceError, match="label has shape"):
        Samples(np.zeros((2, 2)), np.zeros(3, dtype=int))
    with pytest.raises(TypeError):
        Cell(tolerted=1)  # type: ignore[call-arg]

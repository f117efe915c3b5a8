"""An update reveals a single row exactly and the classes exactly, and less the more rows are mixed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from privacy_gate.metrics.inversion import inversion_advantage
from privacy_gate.simulation.cells import Draws, Privacy, Training
from privacy_gate.simulation.leaks.inversion import (
    AttackerRows,
    BatchSchedule,
    Leak,
    certain,
    counts,
    labels,
    leak,
    likeness,
    local_update,
    noise_scale,
    refine,
    trained,
    with_bias,
)
from privacy_gate.simulation.local import Batches, local_updates
from privacy_gate.simulation.rules.clipping import clip

CLASSES, WIDTH = 6, 12


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def own(seed: int = 9, count: int = 300) -> AttackerRows:
    label = torch.arange(count) % CLASSES
    return AttackerRows(rows(seed, count, WIDTH) + rows(1, CLASSES, WIDTH)[label], label, CLASSES)


def whole(count: int, steps: int = 1, updates: int = 1) -> BatchSchedule:
    """A schedule in which every step trains on all rows."""
    place = torch.arange(count).expand(updates, 1, steps, count).contiguous()
    weight = torch.full(place.shape, 1 / count, dtype=torch.float64)
    return BatchSchedule(place, weight, torch.ones(updates, 1, dtype=torch.float64))


def attacked(
    x: torch.Tensor, y: torch.Tensor, training: Training, start: torch.Tensor | None = None, steps: int = 1
) -> tuple[torch.Tensor, Leak]:
    """The update trained on rows (T, V, D) with classes (T, V), and the server's reconstruction."""
    start = torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64) if start is None else start
    made = whole(x.shape[1], steps, len(x))
    seen = local_update(with_bias(x), y, made, start, training)
    draw = torch.from_numpy(np.random.default_rng(5).random(y.shape))
    return seen, leak(seen, made, start, training, own(), draw)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("late", [False, True])
def test_a_single_row_is_recovered_exactly_whatever_the_head_steps_decay_and_pull(steps: int, late: bool) -> None:
    x, y = rows(0, 20, 1, WIDTH), torch.arange(20).unsqueeze(1) % CLASSES
    training = Training(lr=0.05, decay=0.3, prox=0.2)
    start = 0.2 * rows(2, CLASSES, WIDTH + 1) if late else None
    _, found = attacked(x, y, training, start, steps)
    recovered = found.features.gather(1, y.unsqueeze(2).expand(-1, -1, WIDTH))
    assert (recovered - x).abs().max() < 1e-12
    assert (found.label == y).all()


def test_the_ratio_of_weight_and_bias_is_the_row_for_every_class() -> None:
    x, y = rows(0, 1, 1, WIDTH), torch.tensor([[2]])
    seen, _ = attacked(x, y, Training(lr=0.1))
    assert torch.allclose(seen[0, :, :-1] / seen[0, :, -1:], x[0].expand(CLASSES, -1), atol=1e-12, rtol=0)


def test_after_one_step_from_zeros_classes_are_counted_right() -> None:
    rng = np.random.default_rng(3)
    y = torch.from_numpy(np.sort(rng.integers(0, CLASSES, (200, 17)), axis=1))
    _, found = attacked(rows(4, 200, 17, WIDTH), y, Training(lr=0.7, decay=0.1, prox=0.1))
    assert (found.label == y).all()


def test_rows_of_distinct_classes_are_recovered_and_of_one_class_their_mean() -> None:
    x = rows(6, 1, 5, WIDTH)
    _, apart = attacked(x, torch.tensor([[0, 1, 2, 3, 4]]), Training())
    assert (apart.features[0, :5] - x[0]).abs().max() < 1e-12
    _, mixed = attacked(x, torch.tensor([[0, 1, 1, 1, 4]]), Training())
    assert (mixed.features[0, 1] - x[0, 1:4].mean(0)).abs().max() < 1e-12
    assert (mixed.features[0, 4] - x[0, 4]).abs().max() < 1e-12


def test_if_every_class_occurs_only_the_mean_of_all_rows_is_unknown() -> None:
    x, y = rows(6, 1, CLASSES, WIDTH), torch.arange(CLASSES).unsqueeze(0)
    _, found = attacked(x, y, Training())
    missing = own().features.mean(0) - x[0].mean(0)
    assert torch.allclose(found.features[0] - x[0], missing.expand(CLASSES, -1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("training", [Training(lr=0.3), Training(lr=0.3, decay=0.2, prox=0.5)])
def test_clients_train_as_they_do_in_a_federation(training: Training) -> None:
    table, label = with_bias(rows(7, 40, WIDTH)), torch.arange(40) % CLASSES
    draws, sizes = Draws("here"), (9, 23)
    training = Training(**{**vars(training), "batch": 8, "steps": None, "epochs": 2})
    batches = [draws.batches(training, size, 0, client, 0) for client, size in enumerate(sizes)]
    place, weight = np.zeros((1, 2, 6, 8), dtype=np.int64), np.zeros((1, 2, 6, 8))
    for client, (chosen, share) in enumerate(batches):
        place[0, client, : len(chosen)] = chosen + (0 if client == 0 else 9)
        weight[0, client, : len(chosen)] = share
    there = Batches(torch.from_numpy(place), label[torch.from_numpy(place)], torch.from_numpy(weight))
    start = rows(8, CLASSES, WIDTH + 1)
    expected, _ = local_updates(table, start[None, None], there, training, False)
    shares = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    made = BatchSchedule(torch.from_numpy(place), torch.from_numpy(weight), shares)
    seen = local_update(table[None, :32], label[None, :32], made, start, training)
    whole = (shares[0, :, None] * expected[0, 0]).sum(0)
    assert torch.allclose(seen[0].flatten(), whole, atol=1e-12, rtol=0)
    # The sum of all effects determines the decay of the head, and each row has the effect that the module states.
    tau = made.effect(training).sum()
    assert seen[0].sum(0) == pytest.approx((-training.decay * tau * start).sum(0), abs=1e-12)


def test_each_client_clips_its_own_update() -> None:
    x, y = rows(7, 1, 40, WIDTH), (torch.arange(40) % CLASSES).unsqueeze(0)
    place, weight = torch.arange(40).view(1, 2, 1, 20), torch.full((1, 2, 1, 20), 1 / 20, dtype=torch.float64)
    made = BatchSchedule(place, weight, torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    training, start = Training(lr=0.3), torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64)
    long, short = trained(with_bias(x), y, made, start, training)[0].flatten(1).norm(dim=1).sort(descending=True).values
    for reach in (2 * long, (long + short) / 2, short / 2):
        private = replace(training, privacy=Privacy(1.0, float(reach)))
        each = trained(with_bias(x), y, made, start, private).flatten(2)
        seen = local_update(with_bias(x), y, made, start, private)
        assert torch.allclose(seen.flatten(1), clip(each, 0, tau=float(reach)).mean(1), atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("tau", [1e-4, 0.01, 10.0])
def test_a_single_row_is_recovered_however_small_the_clip(tau: float) -> None:
    y = torch.arange(CLASSES).unsqueeze(1)
    x = rows(2, CLASSES, 1, WIDTH)
    _, found = attacked(x, y, Training(lr=0.1, privacy=Privacy(0.0, tau)))
    recovered = found.features.gather(1, y.unsqueeze(2).expand(-1, -1, WIDTH))
    assert (recovered - x).abs().max() < 1e-9
    assert (found.label == y).all()


def test_visible_noise_comes_from_the_visible_clients_and_not_from_the_server() -> None:
    training = Training(clients=9, privacy=Privacy(2.0, 0.3, by_clients=True))
    alone, summed = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 9), 1 / 9, dtype=torch.float64)
    assert float(noise_scale(alone, training)) == pytest.approx(2.0 * 0.3 / 3)
    assert float(noise_scale(summed, training)) == pytest.approx(2.0 * 0.3 / 9)
    for other in (None, Privacy(2.0, 0.3), Privacy(2.0, 0.3, hidden=True)):
        assert float(noise_scale(alone, replace(training, privacy=other))) == 0


def test_noise_makes_no_class_certain_and_never_more_classes_than_rows() -> None:
    bias = torch.tensor([[0.5, 0.2, -0.7], [0.5, 0.2, 0.1]], dtype=torch.float64)
    none, some = torch.zeros(2, 1, dtype=torch.float64), torch.full((2, 1), 0.1, dtype=torch.float64)
    assert certain(bias, none, 2).tolist() == [[True, True, False], [True, True, False]]
    assert certain(bias, some, 2).tolist() == [[True, False, False], [True, False, False]]
    lost = torch.full((1, 3), -1.0, dtype=torch.float64)
    assert counts(lost, 10, lost > 0).sum() == 10


def test_optimisation_separates_rows_of_one_class_after_many_steps() -> None:
    rng = np.random.default_rng(0)
    y = torch.from_numpy(np.sort(rng.integers(0, CLASSES, (40, 5)), axis=1))
    x = rows(1, CLASSES, WIDTH)[y] + torch.from_numpy(rng.standard_normal((40, 5, WIDTH)))
    training, start = Training(lr=0.1), torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64)
    made, draw = whole(5, 10, 40), torch.from_numpy(rng.random((40, 5)))
    seen = local_update(with_bias(x), y, made, start, training)
    first = leak(seen, made, start, training, own(), draw)
    found = refine(seen, first, made, start, training, own(), draw, 150)
    target, centre = x[:, 2:3], own().mean[y[:, 2]]
    mean = first.features.gather(1, y[:, 2:3, None].expand(-1, -1, WIDTH))
    alike = (first.label == y[:, 2:3]).unsqueeze(2)
    by_mean = likeness(mean, target, centre, own().metric)
    by_rows = likeness(torch.where(alike, found, torch.nan), target, centre, own().metric)
    repeated = (y == y[:, 2:3]).sum(1) > 1
    assert by_rows[repeated].mean() > by_mean[repeated].mean() + 0.03
    assert by_rows.mean() > by_mean.mean()


def test_uninformative_updates_identify_rows_at_chance_level() -> None:
    audits, targets, candidates = 60, 60, 5
    rng = np.random.default_rng(1)
    seen = torch.from_numpy(rng.standard_normal((audits * targets, CLASSES, WIDTH + 1)))
    seen -= seen.mean(1, keepdim=True)
    shown = torch.from_numpy(rng.standard_normal((len(seen), candidates, WIDTH)))
    made, start = whole(8, 1, len(seen)), torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64)
    draw = torch.from_numpy(rng.random((len(seen), 8)))
    found = leak(seen, made, start, Training(), own(), draw).features[:, :1]
    scores = likeness(found, shown, own().mean[:1].expand(len(seen), -1), own().metric)
    place = rng.integers(0, candidates, len(seen))
    hits = (scores.argmax(1).numpy() == place).reshape(audits, targets)
    figures = [inversion_advantage({"analytic": one}, candidates, 0.95) for one in hits]
    covered = [one.low <= 0 <= one.high for one in figures if one.low is not None and one.high is not None]
    assert len(covered) == audits
    assert np.mean(covered) >= 0.95


def test_counts_add_up_by_largest_remainders_and_labels_match_the_counts() -> None:
    mass = torch.tensor([[0.46, 0.36, 0.18], [1.0, 0.0, -0.2], [1.0, 1.0, 1.0]], dtype=torch.float64)
    unsure = torch.zeros(3, 3, dtype=torch.bool)
    assert counts(mass, 5, unsure).tolist() == [[2, 2, 1], [5, 0, 0], [2, 2, 1]]
    assert labels(counts(mass, 5, unsure), 5).tolist() == [[0, 0, 1, 1, 2], [0] * 5, [0, 0, 1, 1, 2]]


def test_classes_certain_to_occur_are_counted_whatever_their_mass() -> None:
    mass = torch.tensor([[0.8, 0.1, 0.1], [3.0, 1.0, 0.0]], dtype=torch.float64)
    sure = torch.tensor([[False, True, True], [True, False, False]])
    assert counts(mass, 2, sure).tolist() == [[0, 1, 1], [2, 0, 0]]
    assert counts(mass, 4, sure).tolist() == [[2, 1, 1], [3, 1, 0]]


def test_likeness_ignores_scale_and_correlations_of_features() -> None:
    theirs, found, shown = own(count=600), rows(11, 30, 1, WIDTH), rows(12, 30, 4, WIDTH)
    mixing = rows(13, WIDTH, WIDTH) + 3 * torch.eye(WIDTH)
    mixed = AttackerRows(theirs.features @ mixing, theirs.label, CLASSES)
    plain = likeness(found, shown, theirs.mean[:1].expand(30, -1), theirs.metric)
    other = likeness(found @ mixing, shown @ mixing, mixed.mean[:1].expand(30, -1), mixed.metric)
    assert (plain - other).abs().mean() < 0.07
    raw = likeness(found @ mixing, shown @ mixing, mixed.mean[:1].expand(30, -1), torch.eye(WIDTH).double())
    assert (plain - raw).abs().mean() > 0.1


def test_own_rows_become_uncorrelated_and_stand_in_for_an_empty_class() -> None:
    theirs = own(count=3000)
    rest = (theirs.features - theirs.mean[theirs.label]) @ theirs.metric
    assert torch.allclose(rest.T @ rest / len(rest), torch.eye(WIDTH, dtype=torch.float64), atol=0.05)
    some = AttackerRows(theirs.features[theirs.label != 4], theirs.label[theirs.label != 4], CLASSES)
    assert torch.allclose(some.mean[4], some.features.mean(0))
    drawn = some.of(torch.tensor([[0, 4, 5]]), torch.tensor([[0.0, 0.999, 0.5]], dtype=torch.float64))
    assert torch.isin(drawn, some.features).all()
    assert (drawn[0, 0] == some.features[some.label == 0][0]).all()


def test_identical_features_give_a_finite_metric() -> None:
    alike = AttackerRows(torch.ones(6, WIDTH, dtype=torch.float64), torch.arange(6), CLASSES)
    assert torch.equal(alike.metric, torch.eye(WIDTH, dtype=torch.float64))

"""Client-level privacy: the clip bounds every client, the noise has its stated size, and packing does not matter."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from privacy_gate.arrays import Floats
from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.cells import UNIFORM, Cell, Draws, Privacy, Training
from privacy_gate.simulation.partitions import partition
from privacy_gate.simulation.rules.aggregators import Rule, rule
from privacy_gate.simulation.samples import Samples
from privacy_gate.simulation.simulator import Study, simulate

UNEVEN = partition("dirichlet_by_class", minimum=2, alpha=0.3)
PLAIN = Training(clients=8, rounds=5, lr=0.5, batch=16)
SIGMA, CLIP = 0.8, 0.3


def samples(rows: int, seed: int) -> Samples:
    """Four classes, each around its own centre."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, rows)
    return Samples(np.random.default_rng(9).normal(size=(4, 6))[label] + rng.normal(size=(rows, 6)), label)


STUDY = Study(samples(300, 0), samples(100, 1), "private", dtype=torch.float64)


def private(training: Training = PLAIN, noise: float = SIGMA, clip: float = CLIP, hidden: bool = False) -> Training:
    return replace(training, privacy=Privacy(noise, clip, hidden))


def cell(training: Training, seed: int = 0, **changes: object) -> Cell:
    return Cell(rule=UNIFORM, partition=UNEVEN, seed=seed, training=training, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_and_within_the_clip_it_is_exactly_the_uniform_mean(hidden: bool, dtype: torch.dtype) -> None:
    for training in (PLAIN, replace(PLAIN, participation=0.5, stale=0.25)):
        cells = [cell(training), cell(private(training, 0.0, 1e9, hidden))]
        plain, same = simulate(replace(STUDY, dtype=dtype), cells)
        assert np.array_equal(plain.model, same.model)
        assert plain.accuracy == same.accuracy


def twin(naive: ModuleType, training: Training) -> Floats:
    """DP-FedAvg in a plain loop."""
    how, draws, data = cell(training, 3), Draws("private"), STUDY.train
    assert training.privacy is not None
    x = np.hstack([data.features, np.ones((len(data.label), 1))])
    parts = how.partition.rows(data.label, training.clients, draws.generator("partition", 3))
    head, asked = np.zeros((4, x.shape[1])), sum(training.asked(0))
    for turn in range(training.rounds):
        total = np.zeros(head.size)
        for client in draws.participants(training, 0, 3, turn):
            drawn, weight = draws.batches(training, len(parts[client]), 3, client, turn)
            sent = naive.local(head, x, data.label, parts[client][drawn], weight, how).ravel()
            total += sent * min(1.0, training.privacy.clip / np.linalg.norm(sent))
        noise = draws.generator("privacy", 3, turn).standard_normal(head.size)
        scale = training.privacy.noise_multiplier * training.privacy.clip
        head = head + ((total + scale * noise) / asked).reshape(head.shape)
    return head


@pytest.mark.parametrize("shares", [{}, {"participation": 0.5}, {"absent": 0.5}], ids=str)
def test_it_equals_a_plain_loop_that_divides_by_all_clients_asked(shares: dict[str, float], naive: ModuleType) -> None:
    training = private(replace(PLAIN, **shares))  # type: ignore[arg-type]
    np.testing.assert_allclose(simulate(STUDY, [cell(training, 3)])[0].head, twin(naive, training), rtol=1e-9)


@pytest.mark.parametrize("sent", [1e12, -1e3, 0.01, np.inf, np.nan])
def test_one_client_moves_the_model_by_at_most_the_clip_over_the_clients(sent: float) -> None:
    joined = cell(private()).joined
    updates = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 20)))
    without, attacked = updates.clone(), updates.clone()
    without[3], attacked[3] = 0, sent
    assert float((joined(attacked, 0) - joined(without, 0)).norm()) <= CLIP / 8 * (1 + 1e-12)


def test_hostile_clients_move_the_model_no_farther_unless_the_server_sees_only_sums() -> None:
    once = replace(PLAIN, rounds=1)

    def moved(hidden: bool) -> float:
        training = private(once, 0.0, CLIP, hidden)
        cells = [cell(training), cell(training, adversary="ipm_10", f=2)]
        clean, attacked = simulate(STUDY, cells)
        return float(np.linalg.norm(attacked.model - clean.model))

    reach = 2 * 2 * CLIP / 8  # two clients, each moving across the whole diameter of the ball
    assert moved(hidden=False) <= reach < moved(hidden=True)


def test_the_noise_has_the_stated_variance_and_is_new_in_each_round_and_for_each_seed() -> None:
    still = replace(PLAIN, lr=1e-12, participation=0.5)
    rounds, seeds = 6, 200
    ends = {
        turns: np.array(
            [
                one.model
                for one in simulate(STUDY, [cell(private(replace(still, rounds=turns)), s) for s in range(seeds)])
            ]
        )
        for turns in (1, rounds)
    }
    each = SIGMA * CLIP / 4  # four of eight clients are asked
    count = ends[1].size
    for turns, found in ends.items():
        # A variance of so many normal values has a relative standard error of sqrt(2 / count).
        assert np.mean(found**2) == pytest.approx(turns * each**2, rel=5 * np.sqrt(2 / count))
        assert abs(found.mean()) < 5 * np.sqrt(turns / count) * each
    alike = np.corrcoef(ends[1])[~np.eye(seeds, dtype=bool)]
    assert abs(alike.mean()) < 5 / np.sqrt(ends[1].shape[1] * alike.size / 2)


@pytest.mark.parametrize("absent", [0.0, 0.5])
def test_client_noise_equals_server_noise_minus_that_of_absent_clients(absent: float) -> None:
    once = replace(PLAIN, rounds=1, absent=absent)
    hows = [
        Privacy(noise, CLIP, hidden=True, by_clients=own) for noise, own in ((0, False), (SIGMA, False), (SIGMA, True))
    ]
    silent, servers, clients = (
        one.model for one in simulate(STUDY, [cell(replace(once, privacy=how)) for how in hows])
    )
    np.testing.assert_allclose(clients - silent, (servers - silent) * np.sqrt(1 - absent), rtol=1e-9)


def test_a_server_that_sees_noisy_updates_cannot_clip_them() -> None:
    for hidden in (False, True):
        assert cell(replace(PLAIN, privacy=Privacy(SIGMA, CLIP, hidden, by_clients=True))).joined == UNIFORM


def test_a_cell_alone_equals_the_cell_among_others_in_any_order_on_any_number_of_threads() -> None:
    trainings = [PLAIN, private(), private(hidden=True), private(replace(PLAIN, participation=0.6))]
    attacks: list[dict[str, object]] = [{}, {"adversary": "ipm_search", "f": 2}, {"adversary": "label_flip", "f": 1}]
    cells = [cell(training, seed, **attack) for training in trainings for attack in attacks for seed in (0, 1)]
    together = simulate(STUDY, cells)
    order = np.random.default_rng(0).permutation(len(cells))
    shuffled = simulate(replace(STUDY, threads=3, memory=2000), [cells[index] for index in order])
    for place, index in enumerate(order):
        np.testing.assert_allclose(shuffled[place].model, together[index].model, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(simulate(STUDY, [cells[7]])[0].model, together[7].model, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("other", [rule("median"), rule("mean"), rule("nnm", "uniform_mean")], ids=str)
def test_no_other_rule_supports_client_privacy(other: Rule) -> None:
    with pytest.raises(ConfigurationError, match="needs the rule uniform_mean"):
        replace(cell(private()), rule=other)


@pytest.mark.parametrize(("noise", "clip"), [(-0.1, 1.0), (1.0, 0.0), (np.nan, 1.0)])
def test_impossible_privacy_settings_are_refused(noise: float, clip: float) -> None:
    with pytest.raises(ConfigurationError, match="out of range"):
        Privacy(noise, clip)

"""Noise for a given epsilon: more privacy needs more noise; failures give a reason."""

import importlib.util
import math

import pytest

from privacy_gate.compute.training.accountant import noise_multiplier, private_settings, spent_on_clients, steps_in_all
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.federation import ClientPrivacy, Federation
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import UndecidedError

RECIPE = Recipe(
    backbone=Backbone(name="identity"), classes=2, optimizer=Sgd(name="sgd", lr=0.1), epochs=3, batch_size=20
)
INSTALLED = importlib.util.find_spec("opacus") is not None


def test_steps_are_whole_batches_of_every_epoch() -> None:
    assert steps_in_all(RECIPE, 101) == 18


def test_an_epsilon_close_to_zero_is_refused() -> None:
    with pytest.raises(UndecidedError, match="name a larger one"):
        noise_multiplier(0.001, 1e-5, 0.1, 10)


@pytest.mark.skipif(INSTALLED, reason="Opacus is installed")
def test_without_opacus_the_reason_says_what_to_install() -> None:
    with pytest.raises(UndecidedError, match=r"pip install 'privacy-gate\[dp\]'"):
        private_settings(RECIPE, 8.0, 100)


@pytest.mark.skipif(not INSTALLED, reason="Opacus is not installed")
def test_less_epsilon_and_more_steps_need_more_noise() -> None:
    loose, tight = noise_multiplier(8, 1e-5, 0.1, 100), noise_multiplier(1, 1e-5, 0.1, 100)
    assert loose < tight < noise_multiplier(1, 1e-5, 0.1, 1000)
    assert private_settings(RECIPE, 8.0, 100)["delta"] == 1e-5
    assert private_settings(RECIPE, 8.0, 100_000)["delta"] == pytest.approx(1e-6)


@pytest.mark.skipif(not INSTALLED, reason="Opacus is not installed")
def test_without_sampling_it_is_the_gaussian_mechanism_of_renyi_accounting() -> None:
    # One step on all rows: epsilon = min over a of a / (2 s^2) + log(1/delta) / (a - 1) + log1p(-1/a) - log(a)/(a - 1)
    noise = noise_multiplier(2.0, 1e-5, 1.0, 1)
    orders = [1 + step / 10 for step in range(1, 100)] + list(range(12, 64))
    spent = min(a / (2 * noise**2) + math.log1p(-1 / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in orders)
    assert spent == pytest.approx(2.0, abs=0.05)


def federation(noise: float, participation: float, rounds: int, delta: float = 1e-5) -> Federation:
    private = ClientPrivacy(noise_multiplier=noise, clip=0.5, delta=delta)
    return Federation(rounds=rounds, participation=participation, privacy=private)


@pytest.mark.skipif(not INSTALLED, reason="Opacus is not installed")
@pytest.mark.parametrize(
    ("participation", "clients", "rate"), [(0.1, 100, 0.1), (1.0, 10, 1.0), (0.25, 10, 0.2), (0.01, 20, 0.05)]
)
def test_clients_are_accounted_like_opacus_round_by_round_at_the_sampled_share(
    participation: float, clients: int, rate: float
) -> None:
    """The number of clients asked is an integer: a hundredth of 20 clients is rounded to one, a twentieth."""
    from opacus.accountants import RDPAccountant

    stepped = RDPAccountant()
    for _ in range(30):
        stepped.step(noise_multiplier=1.3, sample_rate=rate)
    spent = spent_on_clients(federation(1.3, participation, 30, 1e-4), clients)
    assert spent == pytest.approx(stepped.get_epsilon(1e-4), rel=1e-12)


@pytest.mark.skipif(not INSTALLED, reason="Opacus is not installed")
def test_more_noise_fewer_rounds_and_a_smaller_share_spend_less() -> None:
    spent = spent_on_clients(federation(1.0, 0.2, 100), 50)
    assert spent is not None
    for less in (federation(2.0, 0.2, 100), federation(1.0, 0.1, 100), federation(1.0, 0.2, 50)):
        assert 0 < (spent_on_clients(less, 50) or 0) < spent


def test_without_noise_or_client_privacy_there_is_no_epsilon() -> None:
    assert spent_on_clients(federation(0.0, 0.5, 10), 10) is None
    assert spent_on_clients(Federation(rounds=10), 10) is None

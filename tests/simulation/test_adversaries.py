"""Attacks follow their papers, leave honest updates unchanged, and break the rules that they are known to break."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from privacy_gate.errors import ConfigurationError
from privacy_gate.simulation.adversaries import (
    ADVERSARIES,
    Scene,
    a_little_is_enough,
    a_little_is_enough_search,
    alie_z,
    flipped,
    free_rider,
    gaussian,
    inner_product_manipulation,
    inner_product_search,
    mimic,
    min_max,
    min_sum,
    model_replacement,
    next_class,
    sign_flip,
)
from privacy_gate.simulation.rules.aggregators import rule
from privacy_gate.simulation.rules.geometry import squared_distances

H, F, D = 8, 2, 30


def scene(seed: int = 0, *cells: int, dtype: torch.dtype = torch.float64) -> Scene:
    rng = np.random.default_rng(seed)
    honest = torch.from_numpy(rng.normal(size=(*cells, H, D)) + rng.normal(size=D)).to(dtype)

    def respond(sent: torch.Tensor) -> torch.Tensor:
        others = honest.unsqueeze(-3).expand(*honest.shape[:-2], sent.shape[-3], H, D)
        return rule("trimmed_mean")(torch.cat([others, sent], -2), F)

    return Scene(
        honest,
        F,
        own=torch.from_numpy(rng.normal(size=(*cells, F, D))).to(dtype),
        previous=torch.from_numpy(rng.normal(size=(*cells, D))).to(dtype),
        noise=torch.from_numpy(rng.normal(size=(*cells, F, D))).to(dtype),
        respond=respond,
    )


@pytest.mark.parametrize("name", sorted(ADVERSARIES))
def test_an_adversary_uses_its_own_training_exactly_if_it_declares_so(name: str) -> None:
    """Clients of an adversary that does not need their training are not trained."""
    attack, seen = ADVERSARIES[name], scene(0, 3)
    alone = replace(seen, own=None)
    if attack.own:
        with pytest.raises(ConfigurationError, match="its own training"):
            attack.craft(alone)
    else:
        assert torch.equal(attack.craft(alone), attack.craft(seen))


@pytest.mark.parametrize("name", sorted(ADVERSARIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_adversary_sends_f_finite_updates_and_leaves_honest_ones_unchanged(name: str, dtype: torch.dtype) -> None:
    seen, fresh = scene(0, 3, 2, dtype=dtype), scene(0, 3, 2, dtype=dtype)
    sent = ADVERSARIES[name].craft(seen)
    assert sent.shape == (3, 2, F, D)
    assert sent.dtype == dtype
    assert torch.isfinite(sent).all()
    assert torch.equal(seen.honest, fresh.honest)


@pytest.mark.parametrize("name", sorted(ADVERSARIES))
def test_every_cell_is_attacked_as_if_alone(name: str) -> None:
    batch = ADVERSARIES[name].craft(scene(0, 4))
    for cell in range(4):
        whole = scene(0, 4)
        assert whole.own is not None
        assert whole.previous is not None
        assert whole.noise is not None

        def respond(sent: torch.Tensor, cell: int = cell, whole: Scene = whole) -> torch.Tensor:
            others = whole.honest[cell].expand(len(sent), H, D)
            return rule("trimmed_mean")(torch.cat([others, sent], -2), F)

        alone = Scene(whole.honest[cell], F, whole.own[cell], whole.previous[cell], whole.noise[cell], respond)
        np.testing.assert_allclose(ADVERSARIES[name].craft(alone), batch[cell], rtol=1e-9, atol=1e-12)


def test_attacks_agree_with_byzfl_up_to_the_sign_of_deviations(peers: dict[str, Any]) -> None:
    honest = torch.tensor(peers["X"], dtype=torch.float64)[:9]
    seen, theirs = Scene(honest, 2), peers["byzfl_attacks"]
    np.testing.assert_allclose(sign_flip(seen)[0], theirs["signflip"], atol=1e-6)
    np.testing.assert_allclose(inner_product_manipulation(seen, eps=2.0)[1], theirs["ipm2"], atol=1e-6)
    np.testing.assert_allclose(a_little_is_enough(seen, z=-1.5)[0], theirs["alie15"], atol=1e-6)
    np.testing.assert_allclose(mimic(seen)[0], theirs["mimic0"], atol=1e-6)


Z = [
    (50, 3, 0.0267),
    (50, 5, 0.0837),
    (50, 8, 0.1800),
    (50, 10, 0.2533),
    (50, 12, 0.3360),
    (20, 4, 0.1573),
    (10, 2, 0.0),
]


@pytest.mark.parametrize(("n", "f", "z"), Z)
def test_alie_uses_the_inverse_of_the_normal_distribution(n: int, f: int, z: float) -> None:
    """The distribution function itself, which some code uses, gives values near .6 in all cases."""
    assert alie_z(n, f) == pytest.approx(z, abs=5e-5)
    supporters = n // 2 + 1 - f
    assert norm.cdf(alie_z(n, f)) == pytest.approx((n - f - supporters) / (n - f))


def test_alie_by_a_majority_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="6 of the 10 clients in a round attack, expected a minority"):
        alie_z(10, 6)


def test_alie_has_no_effect_with_two_byzantine_out_of_ten() -> None:
    seen = scene()
    np.testing.assert_allclose(a_little_is_enough(seen)[0], seen.honest.mean(0))


@pytest.mark.parametrize("search", [a_little_is_enough_search, inner_product_search])
def test_a_line_search_moves_the_aggregate_farther_than_any_point_on_its_grid(search: Any) -> None:
    seen = scene(0, 5)
    assert seen.respond is not None
    centre = seen.honest.mean(-2)

    def moved(sent: torch.Tensor) -> torch.Tensor:
        assert seen.respond is not None
        return (seen.respond(sent.unsqueeze(-3)).squeeze(-2) - centre).norm(dim=-1)

    best = moved(search(seen))
    for factor in (0.1, 0.25, 0.5, 1.0):
        single = search(seen, factors=(factor,))
        assert (best >= moved(single) - 1e-12).all() or factor not in search.__kwdefaults__["factors"]
    with pytest.raises(ConfigurationError, match="know the rule"):
        search(Scene(seen.honest, F))


def test_min_max_goes_exactly_as_far_as_the_two_farthest_honest_clients_are_apart() -> None:
    seen = scene(1, 6)
    sent = min_max(seen)[..., 0, :]
    limit = squared_distances(seen.honest).amax((-1, -2))
    reached = ((sent.unsqueeze(-2) - seen.honest) ** 2).sum(-1).amax(-1)
    np.testing.assert_allclose(reached, limit, rtol=1e-9)


def test_min_sum_goes_exactly_as_far_as_the_most_distant_honest_client() -> None:
    seen = scene(2, 6)
    sent = min_sum(seen)[..., 0, :]
    limit = squared_distances(seen.honest).sum(-1).amax(-1)
    np.testing.assert_allclose(((sent.unsqueeze(-2) - seen.honest) ** 2).sum((-1, -2)), limit, rtol=1e-9)


def test_model_replacement_makes_the_plain_mean_the_attackers_own_model() -> None:
    """n / f times their update replaces the mean, once the other updates are nearly 0."""
    seen = scene()
    assert seen.own is not None
    own = seen.own[:1].expand(F, D)
    quiet = Scene(0 * seen.honest, F, own=own)
    np.testing.assert_allclose(rule("uniform_mean")(torch.cat([quiet.honest, model_replacement(quiet)]), 0), own[0])
    bounded = model_replacement(seen, bound=1.0).norm(dim=-1)
    assert (bounded <= seen.honest.norm(dim=-1).median() * (1 + 1e-9)).all()


def test_label_flipping_changes_labels_not_updates() -> None:
    """Some code averages honest weights and calls it label flipping, which is no attack."""
    np.testing.assert_array_equal(flipped(10)[np.arange(10)], 9 - np.arange(10))
    np.testing.assert_array_equal(next_class(10)[[0, 9]], [1, 0])
    assert ADVERSARIES["label_flip"].labels is flipped
    seen = scene()
    assert ADVERSARIES["label_flip"].craft(seen) is seen.own


def test_free_riders_resend_the_last_aggregate_and_noise_has_the_stated_size() -> None:
    seen = scene()
    assert seen.previous is not None
    np.testing.assert_allclose(free_rider(seen, scale=0.0)[0], seen.previous)
    size = seen.honest.square().mean().sqrt() * 10
    assert gaussian(seen).std() == pytest.approx(float(size), rel=0.4)
    with pytest.raises(ConfigurationError, match="sends noise"):
        gaussian(Scene(seen.honest, F))


def test_inflated_counts_claim_a_billion() -> None:
    assert ADVERSARIES["inflated_counts"].claim == 1e9

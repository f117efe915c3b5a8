"""Properties of every rule in AGGREGATORS, and agreement with ByzFL and Flower on eleven updates."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy_gate.errors import ConfigurationError
from privacy_gate.native.compiler import has_numba
from privacy_gate.simulation.rules.aggregators import AGGREGATORS, PREAGGREGATIONS, Rule, RuleStep, rule, step
from privacy_gate.simulation.rules.clipping import centered_clipping, stacked_clipping
from privacy_gate.simulation.rules.geometry import (
    exchanged,
    exchanges,
    inner_products,
    mean_of_ranks,
    moments,
    norms,
    ordered,
    squared_distances,
    stacked_moments,
    widened_distances,
    widened_products,
)
from privacy_gate.simulation.rules.known import Known
from privacy_gate.simulation.rules.preaggregation import nearest_neighbour_mixing, stacked_mixing
from privacy_gate.simulation.rules.robust import (
    krum,
    krum_mean,
    krum_scores,
    minimum_diameter,
    stacked_krum,
    stacked_weiszfeld,
    trimmed_mean,
    weiszfeld,
)

N, F, D = 11, 2, 6
ALL = sorted(AGGREGATORS)
NOT_ROBUST = {"mean", "uniform_mean", "capped_mean", "q_fedavg"}
ROBUST = sorted(set(ALL) - NOT_ROBUST)
MIXED = [rule(first, name) for first in ("nnm", "clip", "arc") for name in ("trimmed_mean", "krum", "geometric_median")]
# Eleven updates make six buckets, which are enough for f = 2.
BUCKETS = [
    rule("bucketing", *names)
    for names in (
        ["median"],
        ["trimmed_mean"],
        ["meamed"],
        ["geometric_median"],
        ["centered_clipping"],
        ["minimum_diameter"],
        ["norm_clipping"],
        ["nnm", "trimmed_mean"],
    )
]
RULES = [rule(name) for name in ROBUST] + MIXED + BUCKETS
HULL = ["median", "trimmed_mean", "krum", "multi_krum", "bulyan", "meamed", "minimum_diameter"]


def updates(seed: int = 0, *cells: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(*cells, N, D)))


def known(*cells: int, seed: int = 1) -> Known:
    """Inputs for every rule; the server's own update points in the direction of the mean update."""
    rng = np.random.default_rng(seed)
    return Known(
        counts=torch.from_numpy(rng.integers(10, 20, (*cells, N)).astype(float)),
        root=torch.from_numpy(rng.normal(size=(*cells, D))),
        losses=torch.from_numpy(rng.random((*cells, N))),
        previous=torch.zeros(*cells, D, dtype=torch.float64),
        order=torch.from_numpy(rng.permutation(N)),
        lr=0.1,
    )


BYZFL: list[tuple[str, Rule, int]] = [
    ("mean", rule("mean"), F),
    ("median", rule("median"), F),
    ("trmean", rule("trimmed_mean"), F),
    ("krum", rule("krum"), F),
    ("multikrum", rule("multi_krum"), F),
    ("centered_clip_tau1", rule(step("centered_clipping", {"tau": 1.0, "iterations": 3})), F),
    ("mda", rule("minimum_diameter"), F),
    ("meamed", rule("meamed"), F),
]


@pytest.mark.parametrize(("name", "ours", "f"), BYZFL, ids=[name for name, _, _ in BYZFL])
def test_rules_agree_with_byzfl(name: str, ours: Rule, f: int, peers: dict[str, Any]) -> None:
    x = torch.tensor(peers["X"], dtype=torch.float64)
    np.testing.assert_allclose(ours(x, f), peers["byzfl"][name], atol=1e-6)


@pytest.mark.parametrize("name", ["nnm", "clip", "arc"])
def test_preaggregations_agree_with_byzfl(name: str, peers: dict[str, Any]) -> None:
    x = torch.tensor(peers["X"], dtype=torch.float64)
    parameters = {"tau": 1.0} if name == "clip" else {}
    theirs = {"nnm": "pre_nnm", "clip": "pre_clip1", "arc": "pre_arc"}[name]
    np.testing.assert_allclose(PREAGGREGATIONS[name](x, F, **parameters), peers["byzfl"][theirs], atol=1e-6)


def test_three_steps_of_weiszfeld_from_zero_are_byzfls_geometric_median(peers: dict[str, Any]) -> None:
    x = torch.tensor(peers["X"], dtype=torch.float64)
    np.testing.assert_allclose(weiszfeld(x, torch.zeros_like(x[0]), 0.1, 3), peers["byzfl"]["geomed"], atol=1e-6)


FLOWER = [
    ("mean", "mean"),
    ("median", "median"),
    ("trim_0.2", "trimmed_mean"),
    ("krum", "krum"),
    ("multikrum_keep9", "multi_krum"),
    ("bulyan", "bulyan"),
]


@pytest.mark.parametrize(("theirs", "ours"), FLOWER, ids=[name for name, _ in FLOWER])
def test_rules_agree_with_flower(theirs: str, ours: str, peers: dict[str, Any]) -> None:
    x = torch.tensor(peers["X"], dtype=torch.float64)
    np.testing.assert_allclose(rule(ours)(x, F), peers["flwr"][theirs], atol=1e-6)


def test_krum_counts_n_minus_f_minus_2_neighbours() -> None:
    """With one neighbour more, as in ByzFL 0.0.11, another update wins."""
    x = torch.tensor([[0.0], [1.0], [2.1], [3.3], [8.0], [8.9], [9.8]], dtype=torch.float64)
    scores = krum_scores(squared_distances(x), len(x) - 2 - 2)
    by_hand = [sum(sorted(float((a - b) ** 2) for b in x.flatten())[1:4]) for a in x.flatten()]
    np.testing.assert_allclose(scores, by_hand, rtol=1e-6)
    assert krum(x, 2).item() == x[int(np.argmin(by_hand))].item()


@pytest.mark.parametrize("each", RULES + [rule(name) for name in sorted(NOT_ROBUST)], ids=str)
def test_every_cell_of_a_batch_is_aggregated_as_if_alone(each: Rule) -> None:
    x, facts = updates(0, 3, 4), known(3, 4)
    batch = each(x, F, facts)
    assert batch.shape == (3, 4, D)
    for a in range(3):
        for b in range(4):
            alone = {
                name: value[a, b]
                for name, value in vars(facts).items()
                if getattr(value, "ndim", 0) > 2 or name in {"root", "previous", "counts", "losses"}
            }
            np.testing.assert_allclose(each(x[a, b], F, replace(facts, **alone)), batch[a, b], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_rule_changes_its_input_or_its_dtype(name: str, dtype: torch.dtype) -> None:
    x, facts = updates(0, 3).to(dtype), known(3)
    facts = replace(facts, root=facts.root.to(dtype), previous=facts.previous.to(dtype))
    before = {key: value.clone() for key, value in vars(facts).items() if isinstance(value, torch.Tensor)}
    fresh = x.clone()
    for chain in ([name], ["nnm", name], ["clip", name], ["arc", name]):
        assert rule(*chain)(x, F, facts).dtype == dtype
    if name not in {"q_fedavg", "bulyan"}:  # a bucket has no loss; six are too few for Bulyan
        assert rule("bucketing", name)(x, 1, facts).dtype == dtype
    assert torch.equal(x, fresh)
    assert all(torch.equal(getattr(facts, key), value) for key, value in before.items())


@pytest.mark.parametrize("each", RULES + [rule(name) for name in sorted(NOT_ROBUST)], ids=str)
def test_the_order_of_clients_changes_nothing(each: Rule) -> None:
    """Bulyan breaks ties by order if f <= 2; so f is 3 out of 15 here. Buckets keep their clients."""
    rng = np.random.default_rng(2)
    x, order = torch.from_numpy(rng.normal(size=(15, D))), torch.from_numpy(rng.permutation(15))
    counts, losses = torch.from_numpy(rng.random((2, 15)) + 1)
    drawn = torch.from_numpy(rng.permutation(15))
    facts = Known(counts=counts, losses=losses, root=x.mean(0), order=drawn, lr=0.1)
    shuffled = replace(facts, counts=counts[order], losses=losses[order], order=order.argsort()[drawn])
    np.testing.assert_allclose(each(x[order], 3, shuffled), each(x, 3, facts), rtol=1e-9, atol=1e-12)


def test_which_clients_share_a_bucket_matters() -> None:
    x, drawn = updates(), torch.from_numpy(np.random.default_rng(8).permutation(N))
    one, other = (rule("bucketing", "median")(x, F, Known(order=order)) for order in (drawn, drawn.roll(1)))
    assert (one - other).norm() > 1e-3


SHIFTED = [
    "mean",
    "capped_mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "meamed",
    "minimum_diameter",
    "geometric_median",
    "centered_clipping",
]


@pytest.mark.parametrize(
    "each",
    [rule(name) for name in SHIFTED]
    + [rule("nnm", name) for name in SHIFTED]
    + [each for each in BUCKETS if each.aggregator.name in SHIFTED]
    + [rule("bucketing", "mean")],
    ids=str,
)
def test_a_common_shift_of_updates_shifts_the_aggregate(each: Rule) -> None:
    x, facts = updates(), known()
    shift = torch.from_numpy(np.random.default_rng(3).normal(size=D) * 100)
    assert facts.previous is not None
    moved = each(x + shift, F, replace(facts, previous=facts.previous + shift))
    np.testing.assert_allclose(moved, each(x, F, facts) + shift, atol=1e-9)


SCALED = (
    [rule(name) for name in ALL if name not in {"geometric_median", "fltrust", "q_fedavg"}]
    + MIXED[:2]
    + MIXED[3:5]
    + MIXED[6:8]
    + [each for each in BUCKETS if each.aggregator.name != "geometric_median"]
)


@pytest.mark.parametrize("each", SCALED, ids=str)
@pytest.mark.parametrize("scale", [1e-6, -3.0, 1e6])
def test_a_common_scale_of_updates_scales_the_aggregate(each: Rule, scale: float) -> None:
    np.testing.assert_allclose(each(scale * updates(), F, known()), scale * each(updates(), F, known()), rtol=1e-9)


def test_the_geometric_median_scales_with_its_smoothing_and_is_a_minimum() -> None:
    x = updates()
    small = rule(step("geometric_median", {"nu": 1e-9, "iterations": 200}))(x, F)
    large = rule(step("geometric_median", {"nu": 1e-6, "iterations": 200}))(1000 * x, F)
    np.testing.assert_allclose(1000 * small, large, rtol=1e-6)
    away = x - small
    slope = (away / away.norm(dim=-1, keepdim=True)).sum(0)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


VECTORS = [
    ("far", 1e6),
    ("very far", 1e30),
    ("infinite", np.inf),
    ("negative infinite", -np.inf),
    ("not a number", np.nan),
    ("zero", 0.0),
]


@pytest.mark.parametrize("each", [r for r in RULES if str(r) != "fltrust"], ids=str)
@pytest.mark.parametrize(("kind", "value"), VECTORS, ids=[kind for kind, _ in VECTORS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_arbitrary_vectors_cannot_move_a_robust_rule_far(
    each: Rule, kind: str, value: float, dtype: torch.dtype
) -> None:
    x = updates(4, 5).to(dtype)
    honest = x[..., F:, :]
    for row in range(F):
        x[..., row, :] = value * (1 - 2 * (row % 2)) if kind == "far" else value
    found = each(x, F, Known(order=torch.from_numpy(np.random.default_rng(5).permutation(N))))
    assert torch.isfinite(found).all()
    spread = (honest.amax(-2) - honest.amin(-2)).norm(dim=-1)
    assert ((found - honest.mean(-2)).norm(dim=-1) <= 1.5 * spread).all()


@pytest.mark.parametrize("name", HULL)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_coordinates_stay_within_the_honest_ones(name: str, data: st.DataObject) -> None:
    x = updates(data.draw(st.integers(0, 1000)))
    bad = data.draw(
        st.lists(st.sampled_from([1e3, -1e3, 1e30, -1e30, np.nan, np.inf, -np.inf]), min_size=F * D, max_size=F * D)
    )
    honest = x[F:].clone()
    x[:F] = torch.tensor(bad).view(F, D)
    found = AGGREGATORS[name](x, F)
    assert (found >= honest.amin(0) - 1e-12).all()
    assert (found <= honest.amax(0) + 1e-12).all()


def test_one_vector_or_one_claim_moves_the_mean_anywhere() -> None:
    x, claims = updates(), torch.full((N,), 100.0, dtype=torch.float64)
    x[0] = 1e6
    assert rule("mean")(x, 0).mean() > 9e4
    claims[0] = 1e9
    share = torch.eye(N, dtype=torch.float64)
    taken = rule("mean")(share, 0, Known(counts=claims))[0]
    assert taken > 0.999999
    assert rule("capped_mean")(share, 0, Known(counts=claims))[0].item() == pytest.approx(2 / (N + 1))


def test_a_claim_of_a_billion_by_one_client_out_of_ten_gets_the_stated_weight() -> None:
    claims = torch.tensor([1e9] + [100.0] * 9, dtype=torch.float64)
    taken = rule("mean")(torch.eye(10, dtype=torch.float64), 0, Known(counts=claims))[0].item()
    assert taken == pytest.approx(0.9999991, abs=1e-9)


def test_identical_honest_updates_are_returned_unchanged() -> None:
    same = torch.arange(1.0, D + 1, dtype=torch.float64).expand(N, D)
    for name in set(ALL) - {"q_fedavg"}:
        np.testing.assert_allclose(rule(name)(same, F, Known(root=same[0])), same[0], rtol=1e-12)


def test_q_fedavg_is_the_definition_and_q_0_the_plain_mean() -> None:
    x, facts = updates(), known()
    assert facts.losses is not None
    np.testing.assert_allclose(rule(step("q_fedavg", {"q": 0.0}))(x, 0, facts), x.mean(0))
    above, below = np.zeros(D), 0.0
    for update, loss in zip(x.numpy(), facts.losses.numpy(), strict=True):
        delta = -update / 0.1
        above += loss**2 * delta
        below += 2 * loss * (delta**2).sum() + loss**2 / 0.1
    np.testing.assert_allclose(rule(step("q_fedavg", {"q": 2.0}))(x, 0, facts), -above / below, rtol=1e-10)


def test_fltrust_ignores_opposed_updates_and_limits_the_rest_to_the_servers_norm() -> None:
    root = torch.tensor([3.0, 4.0])
    x = torch.tensor([[30.0, 40.0], [-1e9, -1e9], [0.0, 2.0]])
    expected = (1.0 * root + 0.8 * torch.tensor([0.0, 5.0])) / 1.8
    np.testing.assert_allclose(rule("fltrust")(x, 1, Known(root=root)), expected, rtol=1e-6)
    assert rule("fltrust")(-x[:1], 0, Known(root=root)).tolist() == [0, 0]
    with pytest.raises(ConfigurationError, match="the server's own update"):
        rule("fltrust")(x, 1)


def test_centered_clipping_keeps_its_centre_across_rounds() -> None:
    """From the last aggregate, one far vector moves it by at most tau / n per round; else it would restart at 0."""
    x = torch.full((N, D), 5.0, dtype=torch.float64)
    centre = torch.full((D,), 4.9, dtype=torch.float64)
    x[0] = 1e12
    found = centered_clipping(x, 1, Known(previous=centre), tau=1.0)
    assert (found - 5).norm() < (centre - 5).norm() + 1 / N
    assert (centered_clipping(x, 1, tau=1.0) - 5).norm() > 10


def test_mixing_narrows_honest_updates_and_bucketing_averages_neighbours_in_the_given_order() -> None:
    x = updates()
    mixed = PREAGGREGATIONS["nnm"](x, F)
    assert mixed.var(0).sum() < x.var(0).sum()
    order = torch.from_numpy(np.random.default_rng(5).permutation(N))
    buckets = PREAGGREGATIONS["bucketing"](x, 0, Known(order=order), size=4)
    np.testing.assert_allclose(buckets[0], x[order[:4]].mean(0))
    np.testing.assert_allclose(buckets[2], x[order[8:]].mean(0))
    many = PREAGGREGATIONS["bucketing"](updates(0, 2), 0, Known(order=torch.stack([order, order.flip(0)])), size=4)
    np.testing.assert_allclose(many[1, 0], updates(0, 2)[1, order.flip(0)[:4]].mean(0))


@given(n=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_exchanges_sort_any_number_of_rows(n: int, seed: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 9, (3, n, 4)).astype(float))
    x[0, 0, 0] = torch.nan
    expected = torch.where(x.isnan(), torch.inf, x).sort(dim=-2).values
    assert torch.equal(torch.stack(ordered(x), -2), expected)
    some = range(n // 3, n - n // 3)
    assert torch.equal(torch.stack(ordered(x, some), -2), expected[:, some])
    assert torch.equal(torch.stack(exchanged(x, exchanges(n, some), some), -2), expected[:, some])


@pytest.mark.skipif(not has_numba(), reason="Numba is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 8, 11])
def test_compiled_inner_products_of_scattered_rows_are_torchs(n: int, dtype: torch.dtype) -> None:
    wide = torch.randn(4, 3, 2 * n, 70, generator=torch.Generator().manual_seed(n), dtype=dtype)
    for x in (wide[1:, :, n:, 3:], wide[0, 1, ::2], wide.transpose(-1, -2)[:2, :, :n]):
        torch.testing.assert_close(inner_products(x), widened_products(x), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not has_numba(), reason="Numba is not installed")
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 8, 11])
def test_compiled_distances_moments_and_means_of_ranks_are_torchs(n: int, dtype: torch.dtype, rounding: float) -> None:
    wide = torch.randn(4, 3, 2 * n, 70, generator=torch.Generator().manual_seed(n), dtype=dtype)
    for x in (wide[1:, :, n:, 3:], wide[0, 1, ::2], wide.transpose(-1, -2)[:2, :, :n]):
        torch.testing.assert_close(squared_distances(x), widened_distances(x), rtol=rounding, atol=rounding)
        torch.testing.assert_close(norms(x), torch.linalg.vector_norm(x.double(), dim=-1), rtol=1e-12, atol=0)
        torch.testing.assert_close(norms(x[..., 0, :]), norms(x)[..., 0], rtol=0, atol=0)
        for found, expected in zip(moments(x), stacked_moments(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
        some = range(n // 3, n - n // 3)
        ascending = x.sort(dim=-2).values[..., some.start : some.stop, :]
        torch.testing.assert_close(mean_of_ranks(x, some), ascending.mean(-2), rtol=rounding, atol=rounding)


@pytest.mark.skipif(not has_numba(), reason="Numba is not installed")
def test_compiled_distances_to_updates_that_are_not_finite_are_torchs() -> None:
    x = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(0))
    x[0, 1, 3], x[0, 4, 0], x[1, 2, 39], x[1, 3] = torch.nan, torch.inf, -torch.inf, 1e38
    found = squared_distances(x)
    torch.testing.assert_close(found, widened_distances(x))
    assert found[0, 1, 0].isinf()
    assert found[1, 3, 0].isinf()
    assert not found.diagonal(dim1=-2, dim2=-1).any()


@pytest.mark.skipif(not has_numba(), reason="Numba is not installed")
@pytest.mark.parametrize("broken", [0, 2, 7], ids="{} rows broken".format)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("n", [7, 10])
def test_compiled_rules_are_torchs(n: int, dtype: torch.dtype, rounding: float, broken: int) -> None:
    draw = torch.Generator().manual_seed(n)
    wide = torch.randn(4, 3, 2 * n, 70, generator=draw, dtype=dtype)
    wide[..., n, :] *= 1e9  # one update is far away
    wide[..., 2, :] = wide[..., n + 2, :] = 0.0
    wide[1:, :, n + 1 : n + 1 + broken, 5] = torch.tensor([torch.nan, torch.inf, -torch.inf])[: wide.shape[1], None]
    for x in (wide[1:, :, n:, 3:], wide[0, 1, ::2], wide[:, 1, n:], wide.unflatten(2, (n, 2))[1, :, :, 1]):
        point = torch.randn(*x.shape[:-2], x.shape[-1], generator=draw, dtype=dtype)
        alike = partial(torch.testing.assert_close, rtol=rounding, atol=rounding, equal_nan=True)
        for nearest, count in ((n - 4, n - 2), (n - 4, 1)):
            alike(krum_mean(x, nearest, count), stacked_krum(x, nearest, count))
        alike(nearest_neighbour_mixing(x, 2), stacked_mixing(x, n - 2))
        alike(weiszfeld(x, point, 0.1, 5), stacked_weiszfeld(x, point, 0.1, 5))
        for tau, times in ((None, 1), (None, 3), (0.7, 2)):
            found = centered_clipping(x, 2, Known(previous=point), tau=tau, iterations=times)
            alike(found, stacked_clipping(x, point, tau, times))


def test_distances_of_float32_updates_tell_close_clients_from_closer_ones() -> None:
    """For weights of norm 1,000, float32 Gram distances of .001 are lost in rounding; for updates in float64 not."""
    rng = np.random.default_rng(6)
    deltas = torch.from_numpy(rng.normal(size=(9, 500)).astype(np.float32)) * 1e-3
    exact = ((deltas.double().unsqueeze(0) - deltas.double().unsqueeze(1)) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(deltas), exact, rtol=1e-9)
    assert (squared_distances(deltas + 10.0) >= 0).all()


def test_the_smallest_diameter_is_found_among_all_subsets() -> None:
    x = updates(7)
    x[3] += 4
    x[8] += 5
    np.testing.assert_allclose(minimum_diameter(x, 2), x[[0, 1, 2, 4, 5, 6, 7, 9, 10]].mean(0))
    with pytest.raises(ConfigurationError, match="more than 5000 subsets"):
        minimum_diameter(torch.zeros(40, 2), 5)


def test_trimming_nothing_is_the_mean_and_trimming_most_is_the_median() -> None:
    x = updates()
    np.testing.assert_allclose(trimmed_mean(x, 0), x.mean(0))
    np.testing.assert_allclose(trimmed_mean(x, 5), x.median(0).values)


@pytest.mark.parametrize(
    ("name", "n", "f"), [("krum", 6, 2), ("bulyan", 10, 2), ("median", 4, 2), ("trimmed_mean", 4, 2)]
)
def test_too_few_updates_for_f_are_refused(name: str, n: int, f: int) -> None:
    with pytest.raises(ConfigurationError, match=r"at least \d+ updates"):
        rule(name)(torch.zeros(n, 3), f)


def test_a_misspelt_name_or_parameter_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigurationError, match="krum has no parameter 'ff'; it takes none"):
        step("krum", {"ff": 2.0})
    with pytest.raises(ConfigurationError, match="no parameter 'taau'; it takes tau, iterations"):
        step("centered_clipping", {"taau": 2.0})
    with pytest.raises(ConfigurationError, match="no aggregator is called 'krumm'"):
        rule("krumm")
    with pytest.raises(ConfigurationError, match="cannot come last"):
        rule("krum", "nnm")
    with pytest.raises(ConfigurationError, match="can only come last"):
        Rule(RuleStep("krum"), (RuleStep("median"),))

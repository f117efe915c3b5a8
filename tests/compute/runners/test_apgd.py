"""Auto-PGD reaches known closed-form optima, stays in its ball, and is as strong as other implementations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from privacy_gate.compute.runners.apgd import _checkpoints, ahead, apgd, cross_entropy, towards
from privacy_gate.compute.runners.universal import linear_probe, sign_noise, universal
from privacy_gate.errors import CandidateError

CLASSES, SIZE, RADIUS, STEPS = 5, 8, 8 / 255, 20
SMALL = 2 / 255
PARITY = json.loads((Path(__file__).parents[2] / "data" / "apgd_parity.json").read_text())


def drawn(rows: int, seed: int = 0, low: float = 0.2, high: float = 0.8) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, (rows, 3, SIZE, SIZE)))


def linear(seed: int = 1) -> tuple[nn.Module, torch.Tensor]:
    """Logits W x + b with the weights (C, 3 S S), float64."""
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(CLASSES, 3 * SIZE * SIZE))) / 10
    layer = nn.Linear(weight.shape[1], CLASSES).double()
    layer.weight.data, layer.bias.data = weight, -weight.sum(1) / 2
    return nn.Sequential(nn.Flatten(), layer), weight


def network(seed: int = 0) -> nn.Module:
    """A small network with seeded weights, so that the script of the other implementation uses the same."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES)
    )
    for tensor in model.parameters():
        scale = 2.0 / np.sqrt(max(1, tensor[0].numel()))
        tensor.data = torch.from_numpy(rng.normal(size=tuple(tensor.shape)) * scale).float()
    return model.eval().requires_grad_(False)


def test_on_a_linear_model_the_attack_reaches_the_closed_form_optimum() -> None:
    model, weight = linear()
    x = drawn(60)
    label = model(x).argmax(1)
    for target in range(CLASSES):
        rows = label != target
        chosen = torch.full((int(rows.sum()),), target)
        moved, fooled = apgd(model, x[rows], label[rows], ahead(chosen), RADIUS, STEPS)
        apart = weight[chosen] - weight[label[rows]]
        logits = model(x[rows])
        margin = (logits.gather(1, chosen[:, None]) - logits.gather(1, label[rows][:, None]))[:, 0]
        best = margin + RADIUS * apart.abs().sum(1)
        reached = ahead(chosen)(model(moved), label[rows])
        still = ~fooled  # fooled rows keep the image that fooled the model
        torch.testing.assert_close(reached[still], best[still], atol=1e-9, rtol=0)
        assert bool(fooled[best > 1e-9].all())


def test_all_targets_together_leave_exactly_the_rows_that_are_robust_in_closed_form() -> None:
    model, weight = linear()
    x = drawn(200, seed=3)
    logits = model(x)
    label = logits.argmax(1)
    apart = (weight.unsqueeze(0) - weight[label].unsqueeze(1)).abs().sum(2)
    worst = logits - logits.gather(1, label[:, None]) + SMALL * apart
    stands = (worst.scatter(1, label[:, None], -torch.inf) < 0).all(1)
    assert 0.1 < float(stands.double().mean()) < 0.9
    left = torch.ones(len(x), dtype=torch.bool)
    for place in range(CLASSES - 1):
        target = logits.scatter(1, label[:, None], -torch.inf).argsort(dim=1, descending=True)[:, place]
        left &= ~apgd(model, x, label, towards(target), SMALL, STEPS)[1]
    assert torch.equal(left, stands)


def test_the_targeted_loss_is_the_ratio_that_a_plain_loop_gives_and_the_peer_s() -> None:
    peer = PARITY["targeted_dlr"]
    logits, label, target = (torch.tensor(peer[name]) for name in ("logits", "label", "target"))
    expected = []
    for row, own, wanted in zip(peer["logits"], peer["label"], peer["target"], strict=True):
        first, _, third, fourth, *_ = sorted(row, reverse=True)
        expected.append(-(row[own] - row[wanted]) / (first - 0.5 * third - 0.5 * fourth))
    found = towards(target)(logits.double(), label)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(found, torch.tensor(peer["loss"], dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_ratio_ignores_scale_and_offset_and_is_a_difference_for_few_classes() -> None:
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(20, CLASSES)))
    label, target = torch.arange(20) % CLASSES, (torch.arange(20) + 1) % CLASSES
    torch.testing.assert_close(towards(target)(7 * logits - 3, label), towards(target)(logits, label))
    few = logits[:, :3]
    torch.testing.assert_close(towards(target % 3)(few, label % 3), ahead(target % 3)(few, label % 3))
    alike = torch.ones(2, CLASSES, requires_grad=True)
    torch.autograd.backward(towards(target[:2])(alike, label[:2]).sum())
    assert alike.grad is not None
    assert bool(torch.isfinite(alike.grad).all())


@pytest.mark.parametrize("targeted", [False, True])
def test_images_stay_within_the_ball_and_the_range_and_their_loss_only_rises(targeted: bool) -> None:
    model, x = network(), drawn(40, low=0, high=1).float()
    label = model(x).argmax(1)
    loss = towards((label + 1) % CLASSES) if targeted else cross_entropy
    before = loss(model(x), label)
    for steps in (5, 20, 60):
        moved, fooled = apgd(model, x, label, loss, RADIUS, steps)
        assert float((moved - x).abs().max()) <= RADIUS + 1e-6
        assert float(moved.min()) >= 0
        assert float(moved.max()) <= 1
        assert bool((loss(model(moved), label) >= before - 1e-6).all())
        assert torch.equal(model(moved).argmax(1) != label, fooled)


def test_no_radius_changes_nothing_and_rows_wrong_already_count_as_fooled() -> None:
    model, x = network(), drawn(20).float()
    label = model(x).argmax(1)
    label[:5] = (label[:5] + 1) % CLASSES
    moved, fooled = apgd(model, x, label, cross_entropy, 0.0, STEPS)
    assert torch.equal(moved, x)
    assert fooled.tolist() == [True] * 5 + [False] * 15


def test_the_attack_on_a_row_does_not_depend_on_other_rows() -> None:
    model, x = network().double(), drawn(30, low=0, high=1)
    label = model(x).argmax(1)
    together = apgd(model, x, label, cross_entropy, RADIUS, STEPS)
    order = torch.from_numpy(np.random.default_rng(0).permutation(30))
    for rows in (order, order[:7], order[7:8]):
        alone = apgd(model, x[rows], label[rows], cross_entropy, RADIUS, STEPS)
        torch.testing.assert_close(alone[0], together[0][rows], atol=1e-9, rtol=0)
        assert torch.equal(alone[1], together[1][rows])


def test_fooled_rows_are_not_evaluated_again() -> None:
    model, x = network(), drawn(40, low=0, high=1).float()
    label = model(x).argmax(1)
    asked: list[int] = []

    def counted(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return model(images)

    _, fooled = apgd(counted, x, label, cross_entropy, SMALL, STEPS)
    assert 0 < int(fooled.sum()) < len(x)
    assert len(asked) == STEPS + 1
    assert asked == sorted(asked, reverse=True)
    assert len(x) - int(fooled.sum()) <= asked[-1] < asked[0] == len(x)
    asked.clear()
    assert bool(apgd(counted, x, label, cross_entropy, 0.9, STEPS)[1].all())
    assert len(asked) < STEPS + 1
    label = (label + 1) % CLASSES
    asked.clear()
    assert torch.equal(apgd(counted, x, label, cross_entropy, RADIUS, STEPS)[0], x)
    assert asked == [len(x)]


def test_checkpoints_are_those_of_the_paper() -> None:
    assert sorted(_checkpoints(100))[:6] == [22, 41, 57, 70, 80, 87]
    assert all(0 < each <= 20 for each in _checkpoints(20))


def test_nan_logits_are_refused() -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :CLASSES] * torch.nan

    with pytest.raises(CandidateError, match="not finite"):
        apgd(broken, drawn(2), torch.zeros(2, dtype=torch.int64), cross_entropy, RADIUS, STEPS)


def test_it_is_no_weaker_than_other_implementations() -> None:
    """The figures come from tests/data/apgd_parity.py."""
    model, x = network(), drawn(PARITY["rows"], seed=5, low=0, high=1).float()
    label = model(x).argmax(1)
    for levels, theirs in PARITY["standing"].items():
        radius = float(levels) / 255
        alone = ~apgd(model, x, label, cross_entropy, radius, PARITY["steps"])[1]
        assert int(alone.sum()) <= theirs["APGD-CE"] + 1
        both = alone
        for place in range(CLASSES - 1):
            target = model(x).scatter(1, label[:, None], -torch.inf).argsort(dim=1, descending=True)[:, place]
            both = both & ~apgd(model, x, label, towards(target), radius, PARITY["steps"])[1]
        assert int(both.sum()) <= min(theirs["APGD-CE"], theirs["APGD-T"]) + 1


def test_one_change_fools_many_images_and_random_signs_do_not() -> None:
    model, _ = linear()
    x = drawn(100)
    label = model(x).argmax(1)
    change = universal(model, x[:50], label[:50], RADIUS, 60)
    assert float(change.abs().max()) <= RADIUS + 1e-12
    fresh, own = x[50:], label[50:]
    crafted = float((model(fresh + change).argmax(1) != own).double().mean())
    noise = float((model(fresh + RADIUS * sign_noise(SIZE, 0, 0)).argmax(1) != own).double().mean())
    assert crafted > 0.5 > 0.2 + noise
    assert torch.equal(change, universal(model, x[:50], label[:50], RADIUS, 60))


def test_the_probe_learns_classes_that_lie_apart() -> None:
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(0, CLASSES, 300))
    x = torch.from_numpy(rng.normal(size=(CLASSES, 12)) * 3)[label] + torch.from_numpy(rng.normal(size=(300, 12)))
    weight, bias = linear_probe(x[:200].float(), label[:200], CLASSES)
    logits = x[200:].float() @ weight.T + bias
    assert float((logits.argmax(1) == label[200:]).double().mean()) > 0.95
    assert float(logits.std()) == pytest.approx(5, rel=0.2)
    same, _ = linear_probe(torch.ones(20, 3), label[:20], CLASSES)  # uninformative features
    assert bool(torch.isfinite(same).all())


def test_random_signs_depend_only_on_the_row() -> None:
    one, again, other = sign_noise(SIZE, 4, 1), sign_noise(SIZE, 4, 1), sign_noise(SIZE, 5, 1)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert set(one.unique().tolist()) == {-1.0, 1.0}

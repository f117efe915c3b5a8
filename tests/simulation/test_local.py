"""Compiled code and torch give the same updates of heads, and both equal the analytic gradient step."""

import numpy as np
import pytest
import torch

from privacy_gate.native.compiler import has_numba
from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.local import Batches, local_updates, stacked_updates

SHAPES = {
    "the reference matrix": (3, 2, 3, 1, 32, 65, 10),
    "narrower than a vector, several steps": (3, 2, 3, 2, 8, 7, 4),
    "neither rows nor features fill vectors": (2, 2, 3, 3, 20, 33, 7),
    "two classes": (2, 1, 2, 2, 3, 15, 2),
    "one row and one class": (1, 1, 1, 1, 1, 1, 1),
    "many features": (1, 1, 2, 2, 70, 301, 13),
}
"""A, G, K, S, B, E, C: see local.py."""


def scene(
    cells: int, groups: int, clients: int, steps: int, size: int, width: int, classes: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, Batches]:
    draw = torch.Generator().manual_seed(1)
    table = torch.rand(97, width, generator=draw, dtype=dtype)
    heads = torch.randn(cells, groups, classes, width, generator=draw, dtype=dtype) * 0.3
    shape = groups, clients, steps, size
    rows, label = (torch.randint(0, top, shape, generator=draw) for top in (97, classes))
    weight = torch.rand(shape, generator=draw, dtype=dtype)
    weight[-1, -1, -1] = 0  # no rows in its last step
    return table, heads, Batches(rows, label, weight / weight.sum(-1, keepdim=True).clamp(min=1))


@pytest.mark.skipif(not has_numba(), reason="Numba is not installed")
@pytest.mark.parametrize("pulls", [{}, {"prox": 0.5}, {"prox": 0.2, "decay": 0.1}], ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 4e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_compiled_and_stacked_training_differ_by_rounding_alone(
    shape: tuple[int, int, int, int, int, int, int], dtype: torch.dtype, rounding: float, pulls: dict[str, float]
) -> None:
    table, heads, batches = scene(*shape, dtype)
    training = Training(lr=0.7, **pulls)  # type: ignore[arg-type]
    found, loss = local_updates(table, heads, batches, training, losses=True)
    expected, surprise = stacked_updates(table, heads, batches, training, losses=True)
    assert loss is not None
    assert surprise is not None
    size = max(float(expected.abs().max()), 1e-3)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding * size)
    torch.testing.assert_close(loss, surprise, rtol=rounding, atol=rounding)
    again, none = local_updates(table, heads, batches, training, losses=False)
    assert torch.equal(again, found)
    assert none is None


@pytest.mark.parametrize("train", [local_updates, stacked_updates])
def test_a_step_is_the_gradient_of_the_mean_loss_times_the_rate(train: object) -> None:
    table, heads, batches = scene(2, 1, 2, 1, 9, 18, 5, torch.float64)
    found, loss = train(table, heads, batches, Training(lr=0.3), losses=True)  # type: ignore[operator]
    for cell in range(2):
        head = heads[cell, 0].clone().requires_grad_()
        logits = table[batches.rows[0, 0, 0]] @ head.T
        each = torch.nn.functional.cross_entropy(logits, batches.label[0, 0, 0], reduction="none")
        mean = (each * batches.weight[0, 0, 0]).sum()
        mean.backward()
        assert head.grad is not None
        np.testing.assert_allclose(found[cell, 0, 0].view(5, -1), -0.3 * head.grad, rtol=1e-12, atol=1e-15)
        assert float(loss[cell, 0, 0]) == pytest.approx(float(mean.detach()), rel=1e-12)


@pytest.mark.parametrize("train", [local_updates, stacked_updates])
def test_a_client_without_rows_does_not_move_and_nan_heads_stay_nan(train: object) -> None:
    table, heads, batches = scene(3, 1, 3, 2, 8, 20, 4, torch.float32)
    batches.weight[0, 1] = 0
    heads[1, 0, 2, 3], heads[2, 0, 1, 1] = torch.nan, torch.inf
    found, _ = train(table, heads, batches, Training(lr=0.3), losses=False)  # type: ignore[operator]
    assert found[0].isfinite().all()
    assert found[0, 0, 0].any()
    assert not found[0, 0, 1].any()
    assert found[1:, 0, [0, 2]].isnan().all()


@pytest.mark.parametrize("train", [local_updates, stacked_updates])
def test_confident_mistakes_have_finite_steps_and_losses(train: object) -> None:
    table, heads, batches = scene(1, 1, 1, 1, 8, 20, 4, torch.float32)
    batches.label.zero_()
    batches.weight.fill_(1 / 8)
    heads.zero_()[0, 0, 1, :] = 1e4
    found, loss = train(table, heads, batches, Training(lr=1.0), losses=True)  # type: ignore[operator]
    expected = table[batches.rows[0, 0, 0]].mean(0)
    np.testing.assert_allclose(
        found.view(4, -1), [*(sign * expected for sign in (1, -1)), *np.zeros((2, 20))], atol=1e-6
    )
    assert float(loss) == pytest.approx(-np.log(np.finfo(np.float32).tiny), rel=1e-5)

"""Every kernel has a twin in NumPy or torch and gives the same, whatever the sizes, up to rounding."""

import importlib
import itertools
import json
import pkgutil
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import numba
from numba.core.dispatcher import Dispatcher

from privacy_gate import native
from privacy_gate.compute.training import stack
from privacy_gate.compute.training.optimizers import stepper
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.native import client_steps, geometry, lanes, optimizers, products, rules
from privacy_gate.simulation import local, scores
from privacy_gate.simulation.cells import Training
from privacy_gate.simulation.rules import clipping, preaggregation, robust
from privacy_gate.simulation.rules import geometry as plain
from privacy_gate.simulation.rules.exchanges import exchanges

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-11}
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}

Pairs = Iterator[tuple[Any, Any]]
"""What a kernel gives and what its twin gives, for one input after the other."""

NO_KERNELS = {
    "head_epochs.first_state": "zeros",
    "lanes.lanes": "how many numbers a vector holds",
    "geometry.rows_of": "where rows lie, as plain numbers",
}
"""Public functions that compute nothing. Modules without kernels: cache, compiler."""


@pytest.fixture(autouse=True)
def _twins_without_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twins that call geometry's functions get torch's."""
    monkeypatch.setattr(plain, "has_numba", lambda: False)


def updates(dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Updates (..., n, d) of several sizes, from one row and one number on, side by side and scattered."""
    draw = torch.Generator().manual_seed(0)
    for n, d in itertools.product((1, 2, 7, 10), (1, 3, 65, 1030)):
        x = torch.randn(2, 3, n, d, generator=draw, dtype=dtype)
        yield x
        yield x[1, 0]
        yield x[:, 1, :, : (d + 1) // 2]
        yield x.transpose(-1, -2).contiguous().transpose(-1, -2)


def broken(x: torch.Tensor) -> torch.Tensor:
    """A copy of updates, of which some rows hold NaN and inf."""
    found = x.clone()
    found[..., 0, 0] = torch.nan
    if x.shape[-2] > 6:
        found[..., 2, -1], found[..., 3, 0] = torch.inf, -torch.inf
    return found


def ordered(dtype: torch.dtype) -> Pairs:
    for x in (y for whole in updates(dtype) for y in (whole, broken(whole))):
        n = x.shape[-2]
        for ranks in {range(n), range(n // 3, n - n // 3)}:
            needed = exchanges(n, ranks)
            yield geometry.ordered(x, needed, ranks), plain.exchanged(x, needed, ranks)
        ascending = torch.where(x.isnan(), torch.inf, x).sort(dim=-2).values
        yield torch.stack(geometry.ordered(x, exchanges(n, range(n)), range(n)), -2), ascending


def mean_of_ranks(dtype: torch.dtype) -> Pairs:
    for x in (y for whole in updates(dtype) for y in (whole, broken(whole))):
        ranks = range(x.shape[-2] // 3, x.shape[-2] - x.shape[-2] // 3)
        yield geometry.mean_of_ranks(x, exchanges(x.shape[-2], ranks), ranks), plain.mean_of_ranks(x, ranks)


def inner_products(dtype: torch.dtype) -> Pairs:
    for x in updates(dtype):
        yield geometry.inner_products(x), plain.widened_products(x)
        spoiled = geometry.inner_products(broken(x))
        yield spoiled[..., 0, :].isnan(), torch.ones_like(spoiled[..., 0, :], dtype=torch.bool)


def squared_distances(dtype: torch.dtype) -> Pairs:
    for x in updates(dtype):
        yield geometry.squared_distances(x), plain.widened_distances(x)
        yield geometry.squared_distances(broken(x)), plain.widened_distances(broken(x))


def norms(dtype: torch.dtype) -> Pairs:
    for x in (y for whole in updates(dtype) for y in (whole, whole[..., 0, :], broken(whole))):
        yield geometry.norms(x), torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)


def moments(dtype: torch.dtype) -> Pairs:
    for x in (y for whole in updates(dtype) for y in (whole, broken(whole))):
        yield geometry.moments(x), plain.stacked_moments(x)


def right(dtype: torch.dtype) -> Pairs:
    draw = torch.Generator().manual_seed(1)
    for rows, classes, cells in itertools.product((1, 7), (1, 2, 10), (1, 5, 33)):
        logits = torch.randn(rows, classes, cells, generator=draw, dtype=dtype).round()  # with ties
        label = torch.randint(0, classes, (rows,), generator=draw)
        yield geometry.right(logits, label), scores.stacked_right(logits, label)
        logits[0, -1, 0], logits[-1, 0, -1] = torch.nan, torch.inf
        yield geometry.right(logits, label), scores.stacked_right(logits, label)


def krum_mean(dtype: torch.dtype) -> Pairs:
    for x in (y for whole in updates(dtype) for y in (whole, broken(whole))):
        n = x.shape[-2]
        for nearest, count in ((n - 4, n - 2), (n - 4, 1), (n, n)):
            yield rules.krum_mean(x, nearest, max(1, count)), robust.stacked_krum(x, nearest, max(1, count))


def mixed(dtype: torch.dtype) -> Pairs:
    for x in (y for whole in updates(dtype) for y in (whole, broken(whole))):
        for keep in {1, max(1, x.shape[-2] - 2), x.shape[-2]}:
            yield rules.mixed(x, keep), preaggregation.stacked_mixing(x, keep)


def weiszfeld(dtype: torch.dtype) -> Pairs:
    for x in (y for whole in updates(dtype) for y in (whole, broken(whole))):
        begin = torch.zeros_like(x[..., 0, :]) + 0.1
        for nu, iterations in ((0.1, 5), (0.1, 1)):
            expected = robust.stacked_weiszfeld(x, begin, nu, iterations)
            yield rules.weiszfeld(x, begin, nu, iterations, robust.FAR), expected


def clipped_from(dtype: torch.dtype) -> Pairs:
    for x in (y for whole in updates(dtype) for y in (whole, broken(whole))):
        point = torch.zeros_like(x[..., 0, :]) - 0.2
        for tau, iterations in ((None, 1), (None, 3), (0.7, 2)):
            yield rules.clipped_from(x, point, tau, iterations), clipping.stacked_clipping(x, point, tau, iterations)


def local_updates(dtype: torch.dtype) -> Pairs:
    draw = torch.Generator().manual_seed(2)
    sizes = itertools.product((1, 3), (1, 2), (1, 5, 33), (1, 16, 65), (1, 2, 11))
    for cells, steps, size, width, classes in sizes:
        table = torch.rand(40, width, generator=draw, dtype=dtype)
        heads = torch.randn(cells, 2, classes, width, generator=draw, dtype=dtype) * 0.3
        if cells > 1:
            heads[1, 0, 0, 0] = torch.nan
        shape = 2, 3, steps, size
        rows, label = (torch.randint(0, top, shape, generator=draw) for top in (len(table), classes))
        weight = torch.rand(shape, generator=draw, dtype=dtype)
        weight[0, 1], weight[1, 2, -1] = 0, 0  # one without rows, and one whose last step is over
        batches = local.Batches(rows, label, weight / weight.sum(-1, keepdim=True).clamp(min=1))
        for lr, decay, prox in ((0.7, 0.0, 0.0), (0.3, 0.1, 0.2)):
            given = batches.rows, batches.label, batches.weight
            found, loss = client_steps.local_updates(table, heads, *given, (lr, decay, prox), True)
            training = Training(lr=lr, decay=decay, prox=prox)
            expected, surprise = local.stacked_updates(table, heads, batches, training, losses=True)
            lost = heads.isnan().any(-1).any(-1)  # only the updates of clients that train are defined, and are NaN
            yield found[~lost], expected[~lost]
            yield loss[~lost] if loss is not None else None, surprise[~lost] if surprise is not None else None
            trained = weight.sum((-1, -2)) > 0
            yield found[lost][:, trained[0]].isnan().any(-1).all(), torch.tensor(True)


def stacks(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    """Tables, rows, parameters and room for logits and gradients."""
    kind = DTYPES[dtype]
    for classes, size, width in itertools.product((1, 2, 5, 11), (1, 4, 7), (1, 37, 130)):
        rng = np.random.default_rng([classes, size, width])
        x, parameters = rng.normal(size=(30, width)).astype(kind), rng.normal(size=(3, classes, width)).astype(kind)
        rows = rng.integers(0, 30, (3, size))
        yield x, rows, parameters, np.full((3, classes, size), 7, kind), np.full_like(parameters, 7)


def logits(dtype: torch.dtype) -> Pairs:
    for x, rows, parameters, out, _ in stacks(dtype):
        products.logits(x, rows, parameters, out)
        yield out, np.einsum("mcw,mbw->mcb", parameters, x[rows])


def gradient(dtype: torch.dtype) -> Pairs:
    for x, rows, _, error, out in stacks(dtype):
        products.gradient(x, rows, error, out)
        yield out, np.einsum("mcb,mbw->mcw", error, x[rows])


def dot(dtype: torch.dtype) -> Pairs:
    for x, _, parameters, out, _ in stacks(dtype):
        products.dot(x[0], parameters[0, 0], out[0, 0], 0)
        yield out[0, 0, 0], x[0] @ parameters[0, 0]


def start(dtype: torch.dtype) -> Pairs:
    for x in updates(dtype):
        cells = geometry.rows_of(x)
        whole = x.reshape(-1, *x.shape[-2:])
        for place in range(len(whole)):
            yield cells.flat[geometry.start(cells, place)].item(), whole[place, 0, 0].item()


def heads(dtype: torch.dtype) -> Pairs:
    settings = [
        {"name": "adam", "lr": 0.02, "betas": [0.8, 0.99], "eps": 1e-3, "weight_decay": 0.1},
        {"name": "adamw", "lr": 0.02, "weight_decay": 0.3, "eps": 1e-3},
        {"name": "sgd", "lr": 0.1, "momentum": 0.8, "nesterov": True},
    ]
    sizes = itertools.product((2, 7, 11), (1, 40, 130), (1, 33), settings)
    for classes, width, batch, optimizer in sizes:
        rng = np.random.default_rng([classes, width, batch])
        how = {"backbone": {"name": "identity"}, "classes": classes, "batch_size": batch, "epochs": 2}
        recipe = Recipe.model_validate_json(json.dumps(how | {"optimizer": optimizer, "label_smoothing": 0.1}))
        x = stack.padded(torch.from_numpy(rng.normal(size=(70, width))), torch.device("cpu"), dtype)
        y = torch.from_numpy(rng.integers(0, classes, len(x)))
        block = [(index, np.sort(rng.choice(len(x), 30, replace=False))) for index in range(2)]
        found, expected = (x.new_zeros(2, classes, x.shape[1]) for _ in range(2))
        stack._one_by_one(x, y, found, recipe, block, lambda _: None)
        stack._side_by_side(x, y, width, expected, recipe, block, lambda _: None)
        # Hundreds of steps, and Adam divides by what rounding may change.
        yield found / 100, expected / 100


def steps(dtype: torch.dtype, name: str, **changes: float) -> Pairs:
    """Three steps of an optimiser by machine code, by torch's functions, and by torch.optim itself."""
    recipe = {"backbone": {"name": "identity"}, "classes": 2, "batch_size": 1, "epochs": 1}
    optimizer = Recipe.model_validate_json(
        json.dumps(recipe | {"optimizer": {"name": name, "lr": 1.0} | changes})
    ).optimizer
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    for size in (1, 7, 130):
        draw = torch.Generator().manual_seed(size)
        head = torch.randn(size, generator=draw, dtype=dtype)
        ours, functions, classes = head.numpy().copy(), head.clone(), head.clone().requires_grad_()
        slope, mean, square = torch.empty_like(head), *(np.zeros_like(ours) for _ in range(2))
        step, torchs = stepper(functions, slope, optimizer), kinds[name]([classes], **{"lr": 1.0} | changes)
        for count, lr in enumerate((0.1, 0.2, 0.05), 1):
            slope.copy_(torch.randn(size, generator=draw, dtype=dtype))
            if name == "sgd":
                momentum, nesterov = changes.get("momentum", 0.0), float(changes.get("nesterov", 0.0))
                given = np.array([lr, optimizer.weight_decay, momentum, nesterov, 0.0])
                optimizers.sgd(ours, slope.numpy(), mean, given, count == 1)
            else:
                given = np.array([lr, optimizer.weight_decay, *optimizer.betas, optimizer.eps])  # type: ignore[union-attr]
                optimizers.adam(ours, slope.numpy(), mean, square, given, name == "adamw", count)
            step(lr)
            torchs.param_groups[0]["lr"], classes.grad = lr, slope.clone()
            torchs.step()
            yield torch.from_numpy(ours), functions
            yield torch.from_numpy(ours), classes.detach()


def adam(dtype: torch.dtype) -> Pairs:
    yield from steps(dtype, "adam", betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)  # type: ignore[arg-type]
    yield from steps(dtype, "adamw", weight_decay=0.3)


def sgd(dtype: torch.dtype) -> Pairs:
    yield from steps(dtype, "sgd", weight_decay=0.01)
    yield from steps(dtype, "sgd", weight_decay=0.01, momentum=0.9)
    yield from steps(dtype, "sgd", momentum=0.8, nesterov=True)


def softmax(dtype: torch.dtype) -> Pairs:
    @numba.njit
    def call(values: Any, classes: int, size: int, weight: Any) -> None:
        lanes.softmax(values, 0, classes, size, weight)

    for classes, vectors in itertools.product((1, 2, 11), (1, 3)):
        rng, size = np.random.default_rng(classes), vectors * lanes.lanes(DTYPES[dtype])
        values = rng.normal(size=(classes, size)) * 30
        values[0, 0], values[0, 1] = np.nan, np.inf
        weight = rng.normal(size=size)
        found = torch.from_numpy(values).to(dtype)
        expected = found.softmax(0) * torch.from_numpy(weight).to(dtype)
        call(found.numpy(), classes, size, weight.astype(DTYPES[dtype]))
        yield found[:, 1:], expected[:, 1:]
        yield found[:, 0].isnan().all(), torch.tensor(True)


def dots(dtype: torch.dtype) -> Pairs:
    @numba.njit
    def call(rows: Any, places: Any, width: int, out: Any) -> None:
        lanes.dots(rows, places, width, out)

    for vectors in (1, 3):
        width, count = vectors * lanes.lanes(DTYPES[dtype]), lanes.DOWN + lanes.ACROSS
        rows = np.random.default_rng(vectors).normal(size=(count, width)).astype(DTYPES[dtype])
        out = np.empty(lanes.DOWN * lanes.ACROSS, DTYPES[dtype])
        call(rows, np.arange(count) * width, width, out)
        yield out.reshape(lanes.DOWN, lanes.ACROSS), rows[: lanes.DOWN] @ rows[lanes.DOWN :].T


def tiles(dtype: torch.dtype) -> Pairs:
    for (rows, vectors), tile in lanes.TILES.items():

        @numba.njit
        def call(a: Any, b: Any, count: int, out: Any, tile: Any = tile) -> None:
            tile(a, 1, a.shape[1], b, 0, b.shape[1], count, out, 0, out.shape[1])

        width, rng = vectors * lanes.lanes(DTYPES[dtype]), np.random.default_rng([rows, vectors])
        a, b = (rng.normal(size=shape).astype(DTYPES[dtype]) for shape in ((rows + 1, 6), (5, width + 3)))
        out = np.full((rows, width), 7, DTYPES[dtype])
        call(a, b, 5, out)
        yield out, a[:rows, 1:] @ b[:, :width]


def meeting(dtype: torch.dtype) -> Pairs:
    for classes, tile in lanes.MEETING.items():

        @numba.njit
        def call(x: Any, rows: Any, heads: Any, out: Any, tile: Any = tile) -> None:
            tile(x, rows, 1, heads, 2, out)

        width, rng = 2 * lanes.lanes(DTYPES[dtype]), np.random.default_rng(classes)
        x, heads = (rng.normal(size=(count, width)).astype(DTYPES[dtype]) for count in (9, classes + 2))
        rows, out = rng.integers(0, 9, lanes.DOWN + 1), np.full((classes + 2, lanes.DOWN + 1), 7, DTYPES[dtype])
        call(x, rows, heads, out)
        yield out[2:, 1:], heads[2:] @ x[rows[1:]].T
        yield out[:2], np.full_like(out[:2], 7)


def gathered(dtype: torch.dtype) -> Pairs:
    for (classes, vectors), tile in lanes.GATHERED.items():

        @numba.njit
        def call(error: Any, x: Any, rows: Any, v: int, out: Any, tile: Any = tile) -> None:
            tile(error, 1, x, rows, v, out, rows, 0)

        lane, rng = lanes.lanes(DTYPES[dtype]), np.random.default_rng([classes, vectors])
        x = rng.normal(size=(9, (vectors + 1) * lane)).astype(DTYPES[dtype])
        error, rows = rng.normal(size=(classes + 1, 8)).astype(DTYPES[dtype]), rng.integers(0, 9, 5)
        out = np.full((classes + 1, x.shape[1]), 7, DTYPES[dtype])
        call(error, x, rows, lane, out)
        yield out[1:, lane:], error[1:, :5] @ x[rows][:, lane:]
        yield out[:, :lane], np.full_like(out[:, :lane], 7)


TWINS: dict[str, Callable[[torch.dtype], Pairs]] = {
    "client_steps.local_updates": local_updates,
    "geometry.inner_products": inner_products,
    "geometry.mean_of_ranks": mean_of_ranks,
    "geometry.moments": moments,
    "geometry.norms": norms,
    "geometry.ordered": ordered,
    "geometry.right": right,
    "geometry.squared_distances": squared_distances,
    "geometry.start": start,
    "head_epochs.train_epoch": heads,
    "lanes.GATHERED": gathered,
    "lanes.MEETING": meeting,
    "lanes.TILES": tiles,
    "lanes.dots": dots,
    "lanes.softmax": softmax,
    "optimizers.adam": adam,
    "optimizers.sgd": sgd,
    "products.dot": dot,
    "products.gradient": gradient,
    "products.logits": logits,
    "rules.clipped_from": clipped_from,
    "rules.krum_mean": krum_mean,
    "rules.mixed": mixed,
    "rules.weiszfeld": weiszfeld,
}
"""Every public function of native that computes, by module and name, and its comparison with its twin."""


def public() -> Iterator[str]:
    """Kernels of all modules: functions, compiled ones, LLVM code and tables of it."""
    for module in pkgutil.iter_modules(native.__path__):
        if module.name in {"cache", "compiler"}:
            continue
        whole = importlib.import_module(f"{native.__name__}.{module.name}")
        for name, value in vars(whole).items():
            code = next(iter(value.values())) if isinstance(value, dict) and value else value
            kernel = isinstance(code, FunctionType | Dispatcher | type(lanes.dots))
            if kernel and not name.startswith("_") and code.__module__ == whole.__name__:
                yield f"{module.name}.{name}"


def test_every_public_kernel_has_a_twin() -> None:
    assert sorted(public()) == sorted([*TWINS, *NO_KERNELS])


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("kernel", list(TWINS))
def test_kernels_give_what_their_twins_give(kernel: str, dtype: torch.dtype) -> None:
    compared = 0
    for found, expected in TWINS[kernel](dtype):
        torch.testing.assert_close(found, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype], equal_nan=True)
        compared += 1
    assert compared > 0

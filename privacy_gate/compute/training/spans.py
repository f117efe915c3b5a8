"""The gradient span of a network: which rows' gradients are in the change of its weights?

Training moves weights by a sum over members, theta - theta_0 = -sum_i m_i c g_i + noise, m_i in {0, 1}. Here g_i is the
gradient of row i's loss, averaged over training. The span is the least-squares estimate of m; see attacks.weights.
After GLiR (arXiv 2306.07273), which does this for single steps, with three additions, chosen on references of three
settings (see docs/benchmarks.md): gradients are whitened, since training noise is itself a sum over rows; layers are
weighted by how much of their change gradients explain; and gradients are averaged over POINTS of the path.

Axes: N rows of the table, (O, I) a layer's outputs and inputs, P = O I. The attacker knows which rows may be members,
not which are: nothing here sees `split`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from privacy_gate.arrays import Floats
from privacy_gate.compute.images.backbone import head_names
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.network_stack import shared_copy
from privacy_gate.compute.training.networks import Images
from privacy_gate.compute.training.starts import known_start, served
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.weights.layout import Tensors

POINTS = (0.125, 0.375, 0.625, 0.875)
"""Places on the way from the first weights to the last, as shares of it, at which gradients are averaged."""

WHITENING = 0.03
"""Noise that is equal in all directions, as a share of the mean noise that varies as the gradients do."""

RIDGE = 0.3
"""Noise in a row's own direction relative to what its membership moves there, mean over rows."""

GRADIENT_BYTES = 128 << 20
"""Memory for the gradients of one block of rows, in bytes. At one point, torch.func holds about three times as much
besides the activations of the block."""

HELD_BYTES = 1 << 30
"""Memory for whitened gradients of all rows, in bytes; layers that need more are processed in groups, at the cost of
computing gradients once per group. A single layer may exceed it. Two N x N matrices come on top."""

SKETCHED = 8_192
"""Numbers per row and layer that are held: larger layers are projected to so many, by random signs and buckets that
depend on the number of parameters alone, so that they are the same for all models."""

WHITENING_ROWS = 2_048
"""Rows, evenly spaced, from which a layer's covariance and weight are estimated if there are more."""

WIDEST = 8_192
"""Inputs of a layer up to which their whole covariance is inverted; of wider layers only its diagonal."""

SUREST = 20.0
"""Largest ratio of signal to noise, mean over rows, with which a layer is weighted. Otherwise a layer whose
change lies in the span of all rows' gradients, because its parameters or the rows are few, would silence the others."""

_SHARES = np.logspace(-6, 3, 37)
"""Ratios of signal to noise, mean over rows, among which a layer's most likely one is chosen."""


@dataclass(frozen=True)
class _Layer:
    """Parameters whose gradients are whitened and weighted together: one matrix, or all vectors.

    basis  (I, r) for LoRA: the inputs that its update reads; None: all inputs
    """

    names: tuple[str, ...]
    basis: torch.Tensor | None = None


@dataclass(frozen=True)
class _Whitening:
    """root (I, I): lower Cholesky factor of the covariance, or (I,) of its diagonal; size (O, I): relative root mean
    square of each parameter's gradient over rows."""

    root: torch.Tensor
    size: torch.Tensor


def network_span(
    model: torch.nn.Module,
    tensors: Tensors,
    images: Images,
    label: NDArray[np.int64],
    recipe: Recipe,
    machine: Machine,
) -> Floats:
    """The span (N,) of a reference or of the candidate, from the tensors that differ from those of `public_network`.

    Its start is `known_start`, for references too: the attacker must treat them as he treats the candidate.
    """
    last = served(model, tensors, recipe)
    return gradient_span(model, known_start(model, recipe), last, images, label, recipe, machine)


def gradient_span(
    model: torch.nn.Module,
    first: Tensors,
    last: Tensors,
    images: Images,
    label: NDArray[np.int64],
    recipe: Recipe,
    machine: Machine,
    *,
    gradient_bytes: int = GRADIENT_BYTES,
    held_bytes: int = HELD_BYTES,
    sketched: int = SKETCHED,
) -> Floats:
    """The estimate of every row's membership from the change of the weights: (N,), larger = more likely a member.

    model        the network as served, on the device, in eval mode; threads may share it
    first, last  the changed parameters before and after training; last also has every other tensor that differs from
                 the model's, such as BatchNorm's statistics
    label        (N,); images: all N rows

    Only the unchanged image counts, not the recipe's other views. All rows in which gradients vanish, or a network that
    did not move, score 0. Memory: see the constants. The dtype of computation is the model's.
    """
    where = next(model.parameters())
    path = _Path(model, _moved(first, where), _moved(last, where), images, label, recipe.label_smoothing, machine)
    layers = _layers(path.change, recipe, model)
    numbers = max(sum(value.numel() for value in path.change.values()), 1)
    rows = max(1, gradient_bytes // (numbers * where.element_size()))
    some = np.unique(np.linspace(0, len(label) - 1, min(len(label), WHITENING_ROWS)).astype(np.int64))
    whitenings = _whitenings(path, layers, some, rows)
    kernel = np.zeros((len(label), len(label)), dtype=np.float64 if where.dtype == torch.float64 else np.float32)
    right = np.zeros(len(label))
    for group in _groups(path, layers, len(label), held_bytes, sketched):
        for one in _features(path, [(layers[place], whitenings[place]) for place in group], len(label), rows, sketched):
            own = (one.held @ one.held.T).cpu().numpy()
            signal, noise = _fit(own[np.ix_(some, some)], one.towards[some], one.squares, one.numbers)
            if noise > 0:
                trust = min(1.0, SUREST * noise * len(some) / (signal * float(np.trace(own[np.ix_(some, some)]))))
                kernel += own * kernel.dtype.type(trust * signal / noise)
                right += one.towards * (trust * np.sqrt(signal) / noise)
    mean = float(np.trace(kernel)) / len(kernel)
    if not mean > 0:
        return np.zeros(len(label), dtype=kernel.dtype)
    # In units in which a row's own share is 1 on average: float32 then holds both sides.
    kernel /= kernel.dtype.type(mean)
    kernel[np.diag_indices(len(kernel))] += kernel.dtype.type(RIDGE)
    factor = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, (right / mean).astype(kernel.dtype)))


def _fit(kernel: NDArray[Any], towards: NDArray[Any], squares: float, size: int) -> tuple[float, float]:
    """Most likely variances of a layer's signal and noise, if its change is N(0, signal G'G + noise I).

    kernel = G G' (n, n); towards = G change (n,); squares = |change|^2; size: the number of parameters.
    """
    values, vectors = np.linalg.eigh(kernel.astype(np.float64))
    values, parts = np.maximum(values, 0), (vectors.T @ towards) ** 2
    mean = values.mean()
    if not (mean > 0 and squares > 0):
        return 0.0, 0.0
    best = (-np.inf, 0.0, 0.0)
    for ratio in _SHARES / mean:
        left = squares - (parts * ratio / (1 + ratio * values)).sum()
        # A change that lies in the span, up to rounding, still has some noise.
        noise = max(left, 1e-12 * squares) / size
        fit = -size / 2 * np.log(noise) - np.log1p(ratio * values).sum() / 2
        best = max(best, (fit, ratio * noise, noise))
    return best[1], best[2]


class _Path:
    """Gradients of rows' losses on the way from the first weights to the last."""

    def __init__(
        self,
        model: torch.nn.Module,
        first: Tensors,
        last: Tensors,
        images: Images,
        label: NDArray[np.int64],
        smoothing: float,
        machine: Machine,
    ) -> None:
        self._model = shared_copy(model).eval()
        self._first, self._images, self._label, self._smoothing = first, images, label, smoothing
        names = [name for name, _ in model.named_parameters() if name in first]
        self.change = {name: last[name] - first[name] for name in names}
        self._rest = {name: value for name, value in last.items() if name not in self.change}
        self._machine = machine
        any_value = next(model.parameters())
        self._device, self._dtype = any_value.device, any_value.dtype

    def blocks(self, rows: NDArray[np.int64], size: int, names: Sequence[str]) -> Iterator[tuple[slice, Tensors]]:
        """Descent directions, the negative gradients, of consecutive rows, at most `size`, averaged over POINTS."""
        size = min(size, self._machine.images(self._images.pixels.shape[-1]))
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            x = self._images.take(part, self._device, self._dtype)
            y = torch.from_numpy(self._label[part]).to(self._device)
            yield slice(begin, begin + len(part)), self._descent(x, y, names)

    def _descent(self, x: torch.Tensor, y: torch.Tensor, names: Sequence[str]) -> Tensors:
        def loss(chosen: Tensors, others: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            logits = functional_call(self._model, {**others, **chosen}, x.unsqueeze(0))
            return cross_entropy(logits, y.unsqueeze(0), label_smoothing=self._smoothing)

        total: Tensors = {}
        example_grad: Callable[..., Any] = vmap(grad(loss), in_dims=(None, None, 0, 0))
        with sdpa_kernel(SDPBackend.MATH):  # fused attention does not support vmap
            for share in POINTS:
                here = {name: self._first[name] + share * value for name, value in self.change.items()}
                others = self._rest | {name: value for name, value in here.items() if name not in names}
                gradients = example_grad({name: here[name] for name in names}, others, x, y)
                for name, value in gradients.items():
                    part = value.detach() / -len(POINTS)
                    total[name] = total[name] + part if name in total else part
        return total


def _layers(change: Tensors, recipe: Recipe, model: torch.nn.Module) -> list[_Layer]:
    """One layer per matrix, and one of all vectors."""
    vectors = tuple(name for name, value in change.items() if value.ndim < 2)
    layers = [_Layer(vectors)] if vectors else []
    for name, value in change.items():
        if value.ndim < 2:
            continue
        basis = None
        if recipe.lora is not None and name not in head_names(model):
            # The change up @ down reads only the inputs that `down` spans, and so does all that a row can have moved.
            basis = torch.linalg.svd(value.flatten(1), full_matrices=False)[2][: recipe.lora.rank].T
        layers.append(_Layer((name,), basis))
    return layers


def _matrix(values: Tensors, name: str, basis: torch.Tensor | None) -> torch.Tensor:
    """A block's values of one parameter as (B, O, I); vectors (B, C) as (B, 1, C)."""
    value = values[name]
    wide = value.unsqueeze(1) if value.ndim == 2 else value.flatten(2)
    return wide if basis is None else wide @ basis


def _whitenings(
    path: _Path, layers: Sequence[_Layer], rows: NDArray[np.int64], size: int
) -> list[dict[str, _Whitening]]:
    """How each layer's parameters are whitened, from the descent directions of `rows`."""
    names = [name for layer in layers for name in layer.names]
    bases = {name: layer.basis for layer in layers for name in layer.names}
    covariance: Tensors = {}
    squares: Tensors = {}
    for _, descent in path.blocks(rows, size, names):
        for name in names:
            value = _matrix(descent, name, bases[name])
            flat = value.reshape(-1, value.shape[2])
            one = (flat.T @ flat) if flat.shape[1] <= WIDEST else (flat**2).sum(dim=0)
            two = (value**2).sum(dim=0)
            covariance[name] = covariance.get(name, 0) + one.double()
            squares[name] = squares.get(name, 0) + two.double()
    return [{name: _whitening(covariance[name], squares[name], path) for name in layer.names} for layer in layers]


def _whitening(covariance: torch.Tensor, squares: torch.Tensor, path: _Path) -> _Whitening:
    dtype = next(iter(path.change.values())).dtype
    size = squares.sqrt()
    size = size / size.mean().clamp(min=torch.finfo(torch.float64).tiny)
    diagonal = covariance if covariance.ndim == 1 else covariance.diagonal()
    mean = diagonal.mean()
    if not mean > 0:
        return _Whitening(torch.ones_like(diagonal).to(dtype), size.to(dtype))
    if covariance.ndim == 1:
        return _Whitening((covariance / mean + WHITENING).sqrt().to(dtype), size.to(dtype))
    noise = WHITENING * torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    return _Whitening(torch.linalg.cholesky(covariance / mean + noise).to(dtype), size.to(dtype))


def _whitened(values: Tensors, layer: _Layer, whitenings: dict[str, _Whitening]) -> torch.Tensor:
    """A block's descent directions in the layer's whitened coordinates: (B, P)."""
    matrices = {name: _matrix(values, name, layer.basis) for name in layer.names}
    return torch.cat([_solved(matrices[name], whitenings[name]) for name in layer.names], dim=1)


def _whitened_change(change: Tensors, layer: _Layer, whitenings: dict[str, _Whitening]) -> torch.Tensor:
    """The network's change in the same coordinates, (P,), multiplied by the root of each parameter's size of gradient.

    Parameters that hardly a row moves change by noise alone, which Adam makes as large as the others' change.
    """
    one = {name: change[name].unsqueeze(0) for name in layer.names}
    scaled = {name: _matrix(one, name, layer.basis) * whitenings[name].size.sqrt() for name in layer.names}
    return torch.cat([_solved(scaled[name], whitenings[name]) for name in layer.names], dim=1)[0]


def _solved(wide: torch.Tensor, whitening: _Whitening) -> torch.Tensor:
    """(B, O, I) times the inverse of the root: (B, O I)."""
    if whitening.root.ndim == 1:
        return (wide / whitening.root).flatten(1)
    flat = wide.reshape(-1, wide.shape[2])
    solved: torch.Tensor = torch.linalg.solve_triangular(whitening.root, flat.T, upper=False)
    return solved.T.reshape(len(wide), -1)


def _groups(path: _Path, layers: Sequence[_Layer], rows: int, most: int, sketched: int) -> Iterator[list[int]]:
    """Layers by place, in groups whose held gradients fit into `most` bytes."""
    group: list[int] = []
    total = 0
    for place, layer in enumerate(layers):
        size = min(sketched, sum(path.change[name].numel() for name in layer.names))
        needed = rows * size * next(iter(path.change.values())).element_size()
        if group and total + needed > most:
            yield group
            group, total = [], 0
        group.append(place)
        total += needed
    if group:
        yield group


@dataclass(frozen=True, eq=False)
class _Features:
    """One layer's whitened descent directions, held (N, min(P, sketched)), and their products with its change,
    towards (N,); squares: |change|^2, numbers: P."""

    held: torch.Tensor
    towards: NDArray[np.float64]
    squares: float
    numbers: int


def _features(
    path: _Path, layers: Sequence[tuple[_Layer, dict[str, _Whitening]]], rows: int, size: int, sketched: int
) -> list[_Features]:
    """Of some layers, for all rows; gradients are computed in blocks of `size` rows."""
    changes = [_whitened_change(path.change, layer, whitening) for layer, whitening in layers]
    draws = [_signs_and_buckets(change, sketched) for change in changes]
    held = [change.new_zeros(rows, min(change.numel(), sketched)) for change in changes]
    towards = np.zeros((len(layers), rows))
    names = [name for layer, _ in layers for name in layer.names]
    for part, descent in path.blocks(np.arange(rows), size, names):
        for place, (layer, whitening) in enumerate(layers):
            flat, draw = _whitened(descent, layer, whitening), draws[place]
            towards[place, part] = (flat @ changes[place]).double().cpu().numpy()
            if draw is None:
                held[place][part] = flat
            else:
                signs, buckets = draw
                held[place][part] = torch.zeros_like(held[place][part]).index_add_(1, buckets, flat * signs)
    return [
        _Features(held[place], towards[place], float(change @ change), change.numel())
        for place, change in enumerate(changes)
    ]


def _signs_and_buckets(change: torch.Tensor, sketched: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """How feature hashing projects numbers like those of `change` to `sketched`; None if there are no more of them."""
    numbers = change.numel()
    if numbers <= sketched:
        return None
    rng = np.random.default_rng([int.from_bytes(b"span"), numbers])
    signs = torch.from_numpy(rng.integers(0, 2, numbers) * 2.0 - 1).to(change)
    return signs, torch.from_numpy(rng.integers(0, sketched, numbers)).to(change.device)


def _moved(tensors: Tensors, like: torch.Tensor) -> Tensors:
    return {
        name: value.detach().to(like.device, like.dtype if value.is_floating_point() else None)
        for name, value in tensors.items()
    }

"""One block of heads: trained one by one by machine code, see `fused`, or side by side, and then what a step is.

All heads share the features and differ in their rows, so one step of M heads is two products of each head with its own
rows (see `products`) and one optimiser update, with the gradient in closed form: (p - target) x'. Each head keeps
its own mini-batches, exactly those it would have alone. Logits are laid out (M, C, batch), with weights
(M, C, W): then both products read and write rows in order, several times faster where C is small.

Where DP-SGD cuts each example's gradient, error x', its norm is |error| |x| and the cut a weight on the error: no
gradient of a single example is ever formed.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from privacy_gate.compute.training.optimizers import STATE, stepper
from privacy_gate.compute.training.private import private_batches
from privacy_gate.compute.training.products import products
from privacy_gate.dossier.optimizers import Sgd
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import Subset, initial_head, shown
from privacy_gate.native.compiler import has_numba

CACHE_LINE = 64
"""Bytes."""


def padded(features: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The features as a stack reads them, (N, W): x, then 1 so that the bias is a weight, then zeros.

    W is the least that makes a row an odd number of cache lines: rows that lie a power of two apart, as
    most backbones' would, compete for the same few places of a cache.
    """
    width = features.shape[1]
    line = CACHE_LINE // dtype.itemsize
    lines = (width + 1 + line - 1) // line
    x = torch.zeros(len(features), (lines | 1) * line, device=device, dtype=dtype)
    x[:, :width] = features
    x[:, width] = 1
    return x


def bytes_per_head(x: torch.Tensor, recipe: Recipe, size: int) -> int:
    """What a head trained on `size` rows touches in a step: parameters, their state, its batch, its logits."""
    width = x.shape[1]
    parameters = recipe.classes * width * (2 + STATE[recipe.optimizer.name])
    batch = min(recipe.batch_size, size) * (width + 2 * recipe.classes)
    return (parameters + batch) * x.element_size()


@torch.no_grad()
def train_block(
    x: torch.Tensor,
    y: torch.Tensor,
    width: int,
    recipe: Recipe,
    block: Sequence[Subset],
    advance: Callable[[int], None],
) -> torch.Tensor:
    """Trains the block's references as the recipe says: weights and biases (M, C, D + 1), in the block's order.

    x (V * N, W) as `padded` makes it of D = width features in each of the recipe's V views, y (V * N,), on the
    device that computes; all subsets make the same number of batches an epoch. `advance` is told how
    many references were trained for one epoch more.
    """
    heads = x.new_zeros(len(block), recipe.classes, x.shape[1])
    if recipe.head.initial == "uniform":
        for head, (index, _) in zip(heads, block, strict=True):
            weight, bias = initial_head(index, recipe.classes, width)
            head[:, :width] = torch.from_numpy(weight)
            head[:, width] = torch.from_numpy(bias)
    if recipe.privacy is None and x.device.type == "cpu" and has_numba():
        _one_by_one(x, y, heads, recipe, block, advance)
    else:
        _side_by_side(x, y, width, heads, recipe, block, advance)
    return heads[:, :, : width + 1]


def _one_by_one(
    x: torch.Tensor,
    y: torch.Tensor,
    heads: torch.Tensor,
    recipe: Recipe,
    block: Sequence[Subset],
    advance: Callable[[int], None],
) -> None:
    """Trains heads (M, C, W) in place, each from its first epoch to its last: what it
    touches stays in its core's cache.
    """
    from privacy_gate.native import head_epochs  # noqa: PLC0415 - an extra, and slow to import

    optimizer, batch, views = recipe.optimizer, recipe.batch_size, len(recipe.views)
    for head, (index, rows) in zip(heads, block, strict=True):
        state = head_epochs.first_state(head)
        for epoch in range(recipe.epochs):
            order = shown(index, epoch, rows, views, len(y) // views)
            lr = optimizer.lr * recipe.schedule.factor(epoch, recipe.epochs)
            own = (
                (optimizer.momentum, float(optimizer.nesterov))
                if isinstance(optimizer, Sgd)
                else (*optimizer.betas, optimizer.eps)
            )
            head_epochs.train_epoch(
                x,
                y,
                order,
                head,
                state,
                batch=batch,
                smoothing=recipe.label_smoothing,
                optimizer=optimizer.name,
                settings=(lr, optimizer.weight_decay, *own),
                before=epoch * -(-len(order) // batch),
            )
            advance(1)


def _side_by_side(
    x: torch.Tensor,
    y: torch.Tensor,
    width: int,
    heads: torch.Tensor,
    recipe: Recipe,
    block: Sequence[Subset],
    advance: Callable[[int], None],
) -> None:
    """Trains heads (M, C, W) in place, all of them in every step."""
    stack = Stack(x, recipe, heads)
    step = stepper(stack.parameters, stack.gradient, recipe.optimizer)
    privacy, shape = recipe.privacy, (recipe.classes, width + 1)
    for epoch in range(recipe.epochs):
        lr = recipe.optimizer.lr * recipe.schedule.factor(epoch, recipe.epochs)
        if privacy is not None:
            for batch in private_batches(block, epoch, recipe, y):
                stack.differentiate(batch.rows, batch.label, batch.present, privacy.clip)
                stack.gradient[:, :, : width + 1] += batch.noise(privacy, shape, stack.gradient)
                stack.gradient /= recipe.batch_size
                step(lr)
        else:
            for rows, truth, share in _batches(block, epoch, recipe.batch_size, y, len(recipe.views)):
                stack.differentiate(rows, truth, share)
                step(lr)
        advance(len(block))


def _batches(
    block: Sequence[Subset], epoch: int, batch: int, y: torch.Tensor, views: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]]:
    """The steps of one epoch: rows and labels (M, B), and each example's share of its batch's mean loss.

    The share is 1/B; in the last batch (M, 1, B): 1/length, 0 where a shorter reference has no row left.
    """
    sizes = np.array([len(rows) for _, rows in block])
    order = np.zeros((len(block), sizes.max()), dtype=np.int64)
    for place, (index, rows) in enumerate(block):
        order[place, : len(rows)] = shown(index, epoch, rows, views, len(y) // views)
    last = (order.shape[1] - 1) // batch * batch
    full = order[:, :last].reshape(len(block), -1, batch).swapaxes(0, 1)
    rows_of_steps = torch.from_numpy(np.ascontiguousarray(full)).to(y.device)
    for step_rows, truth in zip(rows_of_steps, y[rows_of_steps], strict=True):
        yield step_rows, truth, 1 / batch
    left = (sizes - last)[:, None]
    share = np.where(np.arange(order.shape[1] - last) < left, 1 / left, 0.0)
    last_rows = torch.from_numpy(np.ascontiguousarray(order[:, last:])).to(y.device)
    yield last_rows, y[last_rows], torch.from_numpy(share[:, None]).to(y.device)


class Stack:
    """The parameters of M heads, (M, C, W), with their gradient beside them."""

    def __init__(self, x: torch.Tensor, recipe: Recipe, parameters: torch.Tensor) -> None:
        self._products, self._smoothing = products(x), recipe.label_smoothing
        self._norms = None if recipe.privacy is None else x.norm(dim=1)
        self._minus_target = x.new_tensor(self._smoothing - 1)
        self.parameters, self.gradient = parameters, torch.zeros_like(parameters)

    def differentiate(
        self, rows: torch.Tensor, label: torch.Tensor, share: torch.Tensor | float, clip: float | None = None
    ) -> None:
        """Sets the gradient of every head's mean cross-entropy over its batch.

        rows, label (M, B); share (M, 1, B) or a number: what an example weighs in the mean; clip: the norm to
        which each example's gradient, error x', is cut, for recipes with privacy. The target is
        1 - s + s/C for the true class and s/C for the others, s = label smoothing, as in
        torch.nn.functional.cross_entropy.
        """
        error = self._products.logits(self.parameters, rows).softmax(1)
        if self._smoothing:
            error -= self._smoothing / error.shape[1]
        truth = label.unsqueeze(1)
        error.scatter_add_(1, truth, self._minus_target.expand(truth.shape))
        if clip is not None and self._norms is not None:
            norms = error.norm(dim=1, keepdim=True) * self._norms[rows].unsqueeze(1)
            error *= clip / norms.clamp(min=clip)
        error *= share
        self._products.gradient(error, rows, self.gradient)

"""Trains one block of heads: one by one in compiled code (native.head_epochs), or all together in stacked steps.

All heads share the features and differ in their rows. So one stacked step of M heads is two products of each head with
its own rows (see `products`) and one optimiser update, with the gradient in closed form: (p - target) x'. Each head
keeps exactly the mini-batches that it would have alone. Logits have the layout (M, C, batch), and weights (M, C, W):
both products then read and write rows in order, which is several times faster if C is small.

DP-SGD clips each example's gradient, error x'. Its norm is |error| |x|, so clipping is a factor on the error, and
per-example gradients are never formed.
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
    """Features with padding, (N, W): x, then a 1 so that the bias is a weight, then zeros.

    W is the smallest width that makes a row an odd number of cache lines. Rows at a distance of a power of two, the
    width of most backbones' features, would compete for the same few sets of a cache.
    """
    width = features.shape[1]
    line = CACHE_LINE // dtype.itemsize
    lines = (width + 1 + line - 1) // line
    x = torch.zeros(len(features), (lines | 1) * line, device=device, dtype=dtype)
    x[:, :width] = features
    x[:, width] = 1
    return x


def bytes_per_head(x: torch.Tensor, recipe: Recipe, size: int) -> int:
    """Bytes that a head with `size` training rows uses in a step: parameters, optimiser state, batch and logits."""
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

    x (V * N, W): the output of `padded` for D = width features in each of the recipe's V views; y (V * N,); both on the
    device that computes. All subsets must have the same number of batches per epoch. `advance` is called with the
    number of references that were trained for one more epoch.
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
    """Trains heads (M, C, W) in place, each through all its epochs, so that its data stays in the core's cache."""
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
    """Trains heads (M, C, W) in place, all of them together in every step."""
    stack = Stack(x, recipe, heads)
    step = stepper(stack.parameters, stack.gradient, recipe.optimizer)
    privacy, shape = recipe.privacy, (recipe.classes, width + 1)
    for epoch in range(recipe.epochs):
        lr = recipe.optimizer.lr * recipe.schedule.factor(epoch, recipe.epochs)
        if privacy is not None:
            for batch in private_batches(block, epoch, recipe, y):
                stack.differentiate(batch.rows, batch.label, batch.present, privacy.clip)
                # No noise on the padding, whose weights stay 0.
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

    The share is 1/B; in the last batch it is (M, 1, B): 1/length, and 0 for the padding of shorter references.
    """
    sizes = np.array([len(rows) for _, rows in block])
    order = np.zeros((len(block), sizes.max()), dtype=np.int64)
    for place, (index, rows) in enumerate(block):
        order[place, : len(rows)] = shown(index, epoch, rows, views, len(y) // views)
    last = (order.shape[1] - 1) // batch * batch
    # Full batches of all heads, (steps, M, batch), go to the device in one transfer.
    full = order[:, :last].reshape(len(block), -1, batch).swapaxes(0, 1)
    rows_of_steps = torch.from_numpy(np.ascontiguousarray(full)).to(y.device)
    for step_rows, truth in zip(rows_of_steps, y[rows_of_steps], strict=True):
        yield step_rows, truth, 1 / batch
    left = (sizes - last)[:, None]
    share = np.where(np.arange(order.shape[1] - last) < left, 1 / left, 0.0)
    last_rows = torch.from_numpy(np.ascontiguousarray(order[:, last:])).to(y.device)
    yield last_rows, y[last_rows], torch.from_numpy(share[:, None]).to(y.device)


class Stack:
    """The parameters of M heads, (M, C, W), and their gradient, of the same shape."""

    def __init__(self, x: torch.Tensor, recipe: Recipe, parameters: torch.Tensor) -> None:
        self._products, self._smoothing = products(x), recipe.label_smoothing
        self._norms = None if recipe.privacy is None else x.norm(dim=1)
        self._minus_target = x.new_tensor(self._smoothing - 1)
        self.parameters, self.gradient = parameters, torch.zeros_like(parameters)

    def differentiate(
        self, rows: torch.Tensor, label: torch.Tensor, share: torch.Tensor | float, clip: float | None = None
    ) -> None:
        """Sets the gradient of every head's mean cross-entropy over its batch.

        rows, label (M, B); share (M, 1, B) or a number: an example's weight in the mean; clip: the norm to which each
        example's gradient, error x', is clipped, for recipes with privacy. The target is 1 - s + s/C for the true class
        and s/C for the others, with s = label smoothing, as in torch.nn.functional.cross_entropy.
        """
        # error = p - target, (M, C, B), in place of the softmax.
        error = self._products.logits(self.parameters, rows).softmax(1)
        if self._smoothing:
            error -= self._smoothing / error.shape[1]
        truth = label.unsqueeze(1)
        error.scatter_add_(1, truth, self._minus_target.expand(truth.shape))
        if clip is not None and self._norms is not None:
            norms = error.norm(dim=1, keepdim=True) * self._norms[rows].unsqueeze(1)
            error *= clip / norms.clamp(min=clip)  # min(1, clip / norm)
        error *= share
        self._products.gradient(error, rows, self.gradient)

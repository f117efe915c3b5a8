"""One block of heads, trained side by side: what happens in a step.

All heads share the features and differ in their rows, so one step of M heads is one gather, two batched
matrix products and one optimiser update, with the gradient in closed form: (p - target) x'. Each head keeps
its own mini-batches, exactly those it would have alone. Logits are laid out (M, C, batch), with weights
(M, C, D): then both products read and write rows in order, several times faster where C is small.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from privacy_gate.candidate import Recipe
from privacy_gate.compute.optimizers import optimizer, set_learning_rate
from privacy_gate.compute.subsets import Subset, batch_order, initial_head


@torch.no_grad()
def train_block(
    x: torch.Tensor, y: torch.Tensor, recipe: Recipe, block: Sequence[Subset], advance: Callable[[int], None]
) -> "Stack":
    """Trains the block's references as the recipe says, stacked in the order of `block`.

    x (N, D) and y (N,) on the device that computes; all subsets make the same number of batches
    an epoch. `advance` is called with the number of references after every epoch.
    """
    stack = Stack(x, recipe, [index for index, _ in block])
    steps = optimizer(stack.parameters, recipe.optimizer)
    for epoch in range(recipe.epochs):
        set_learning_rate(steps, recipe.optimizer.lr * recipe.schedule.factor(epoch, recipe.epochs))
        for rows, truth, share in _batches(block, epoch, recipe.batch_size, y):
            stack.differentiate(rows, truth, share)
            steps.step()
        advance(len(block))
    return stack


def _batches(
    block: Sequence[Subset], epoch: int, batch: int, y: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]]:
    """The steps of one epoch: rows and labels (M, B), and each example's share of its batch's mean loss.

    The share is 1/B; in the last batch (M, 1, B): 1/length, 0 where a shorter reference has no row left.
    """
    sizes = np.array([len(rows) for _, rows in block])
    order = np.zeros((len(block), sizes.max()), dtype=np.int64)
    for place, (index, rows) in enumerate(block):
        order[place, : len(rows)] = rows[batch_order(index, epoch, len(rows))]
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
    """The parameters of M heads as one flat tensor, with their gradient beside it."""

    def __init__(self, x: torch.Tensor, recipe: Recipe, indices: Sequence[int]) -> None:
        self._x, self._smoothing = x, recipe.label_smoothing
        models, width = len(indices), x.shape[1]
        self._shape = (models, recipe.classes, width)
        self.parameters = x.new_zeros(models * recipe.classes * (width + 1))
        self.parameters.grad = torch.zeros_like(self.parameters)
        self.weight, self.bias = self._views(self.parameters)
        self._weight_gradient, self._bias_gradient = self._views(self.parameters.grad)
        self._minus_target = x.new_tensor(self._smoothing - 1)
        self._gathered = x.new_empty(models * recipe.batch_size, width)
        if recipe.head.initial == "uniform":
            for place, index in enumerate(indices):
                weight, bias = initial_head(index, recipe.classes, width)
                self.weight[place] = torch.from_numpy(weight)
                self.bias[place] = torch.from_numpy(bias)

    def _views(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        models, classes, width = self._shape
        weights = models * classes * width
        return flat[:weights].view(self._shape), flat[weights:].view(models, classes)

    def differentiate(self, rows: torch.Tensor, label: torch.Tensor, share: torch.Tensor | float) -> None:
        """Sets the gradient of every head's mean cross-entropy over its batch.

        rows, label (M, B); share (M, 1, B) or a number: what an example weighs in the mean. The target is
        1 - s + s/C for the true class and s/C for the others, s = label smoothing, as in
        torch.nn.functional.cross_entropy.
        """
        models, classes, width = self._shape
        size = rows.shape[1]
        x = self._gathered[: models * size]
        torch.index_select(self._x, 0, rows.view(-1), out=x)
        x = x.view(models, size, width)
        error = torch.baddbmm(self.bias[:, :, None], self.weight, x.transpose(1, 2)).softmax(1)
        if self._smoothing:
            error -= self._smoothing / classes
        truth = label.unsqueeze(1)
        error.scatter_add_(1, truth, self._minus_target.expand(truth.shape))
        error *= share
        torch.bmm(error, x, out=self._weight_gradient)
        torch.sum(error, 2, out=self._bias_gradient)

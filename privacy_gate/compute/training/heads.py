"""Trains many reference heads at once, and computes their confidences on every row.

A head is softmax(W x + b) on features x (N, D) of a frozen backbone.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.compute.images.backbone import TrainedHead
from privacy_gate.compute.machine.device import Machine, single_threaded_kernels
from privacy_gate.compute.machine.spread import Tally
from privacy_gate.compute.training.stack import bytes_per_head, padded, train_block
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import DatasetError
from privacy_gate.jobs.subsets import Subset
from privacy_gate.progress import Progress, silent

CACHE_BYTES = 5 << 20
"""Memory that a block of references uses in one step on a CPU, in bytes: small enough for a core's share of the last
cache even if other processes use it too, large enough that the overhead of calling torch is small."""

OUTPUT_BYTES = 64 << 20
"""Memory for logits and their copies while confidences are computed, in bytes."""

AnyFeatures = NDArray[np.floating[Any]] | torch.Tensor


def train_heads(
    features: AnyFeatures,
    label: NDArray[np.int64],
    recipe: Recipe,
    subsets: Sequence[Subset],
    machine: Machine,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> Generator[TrainedHead, None, None]:
    """Trains one head per subset, as the recipe says; yields them block by block.

    features (N, D), or (V, N, D) in each of the recipe's V views; label (N,), 0 <= label < C; subsets: rows of each
    reference, which may differ in number.

    A head equals, up to rounding, one that a plain loop over torch.nn.Linear, torch.optim and cross_entropy trains on
    the same batches. So it depends on its index and rows, but not on its block, the threads or the device. On a CPU,
    every thread trains its own block with single-threaded kernels, so that threads never wait for each other, even on
    a shared machine. Memory: a copy of the features on the device, and per thread `machine.block` heads with optimiser
    state and batch. `progress` counts references; these threads call it, one at a time. Raises DatasetError if a label,
    row or feature is invalid.
    """
    device, views, width = machine.torch_device(), len(recipe.views), features.shape[-1]
    _refuse_invalid(np.asarray(label), recipe.classes, subsets, features.shape[-2])
    x = padded(_tensor(features).reshape(-1, width), device, dtype)
    if not torch.isfinite(x).all():
        raise DatasetError("features contain values that are not finite: check the backbone")
    y = torch.as_tensor(np.asarray(label), device=device).repeat(views)
    threads = machine.computing_threads()
    blocks = _blocks(subsets, recipe, x, machine.block, threads)
    return _train(
        x, y, width, recipe, blocks, threads, Tally("train references", len(subsets), progress, steps=recipe.epochs)
    )


def confidences(
    features: AnyFeatures,
    label: NDArray[np.int64],
    heads: Sequence[TrainedHead],
    machine: Machine,
    *,
    memory: int = OUTPUT_BYTES,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Confidences of M heads on N rows: phi (M, N) and residual (M, N), float32.

    phi = log p_y - log(1 - p_y), nats, as in evidence.logit_scaled: z_y - logsumexp of the other logits.
    residual = norm of p - onehot(y) = (1 - p_y) sqrt(1 + |q|^2), with q the softmax of the other logits; this form is
    free of cancellation. Rows are processed in parts whose logits fit into `memory` bytes.
    """
    device = machine.torch_device()
    weight = torch.stack([head.weight for head in heads]).to(device)
    bias = torch.stack([head.bias for head in heads]).to(device)
    models, classes, width = weight.shape
    x = _tensor(features).to(device, weight.dtype)
    y = torch.as_tensor(np.asarray(label), device=device)
    phi = torch.empty(models, len(x), dtype=torch.float32)
    residual = torch.empty_like(phi)
    # Up to three arrays of this size exist at once: the logits, their softmax, and temporaries.
    rows = max(1, memory // (3 * models * classes * weight.element_size()))
    for first in range(0, len(x), rows):
        part = slice(first, first + rows)
        logits = torch.addmm(bias.view(-1, 1), weight.view(-1, width), x[part].T).view(models, classes, -1)
        truth = y[part].expand(models, 1, -1)
        true = logits.gather(1, truth).squeeze(1)
        logits.scatter_(1, truth, -torch.inf)  # excludes the true class from here on
        confidence = true - logits.logsumexp(1)
        others = logits.softmax(1).square_().sum(1)
        phi[:, part] = confidence
        residual[:, part] = torch.sigmoid(-confidence) * torch.sqrt(1 + others)
    return phi.numpy(), residual.numpy()


def head_logits(features: AnyFeatures, head: TrainedHead, machine: Machine) -> NDArray[np.float32]:
    """The logits of one head on every row, (N, C) float32."""
    device = machine.torch_device()
    weight, bias = head.weight.to(device), head.bias.to(device)
    return torch.addmm(bias, _tensor(features).to(device, weight.dtype), weight.T).float().cpu().numpy()


def _tensor(features: AnyFeatures) -> torch.Tensor:
    if isinstance(features, torch.Tensor):
        return features
    return torch.from_numpy(np.require(features, requirements=["C", "W"]))  # torch warns about read-only arrays


def _refuse_invalid(label: NDArray[np.int64], classes: int, subsets: Sequence[Subset], rows: int) -> None:
    if label.shape != (rows,):
        raise DatasetError(f"label has shape {label.shape}, expected ({rows},): one per row of features")
    if rows and not 0 <= label.min() <= label.max() < classes:
        raise DatasetError(
            f"labels run from {label.min()} to {label.max()}, expected 0 to {classes - 1}: the recipe has "
            f"{classes} classes; correct the table or the recipe"
        )
    for index, chosen in subsets:
        if chosen.dtype.kind not in "iu" or not len(chosen) or not 0 <= chosen.min() <= chosen.max() < rows:
            raise DatasetError(f"the rows of reference {index} must be at least one, and integers from 0 to {rows - 1}")


def _blocks(
    subsets: Sequence[Subset], recipe: Recipe, x: torch.Tensor, block: int | None, threads: int
) -> list[Sequence[Subset]]:
    """Splits the references into even blocks, at least one per thread if there are enough references.

    References share a block only if they have equally many steps per epoch, so that the optimiser needs one step count
    for all of them; their last batches may differ in length.
    """
    by_steps: dict[int, list[Subset]] = {}
    for index, rows in subsets:
        by_steps.setdefault(-(-len(rows) // recipe.batch_size), []).append((index, rows))
    blocks: list[Sequence[Subset]] = []
    for group in by_steps.values():
        most = block or _largest_block(recipe, x, max(len(rows) for _, rows in group))
        count = -(-len(group) // most)
        # Round up to a multiple of the threads, so that none idles while others train a last block.
        count = min(len(group), -(-count // threads) * threads)
        edges = [number * len(group) // count for number in range(count + 1)]
        blocks += [group[first:last] for first, last in pairwise(edges)]
    return blocks


def _largest_block(recipe: Recipe, x: torch.Tensor, size: int) -> int:
    """Number of references per block that fit the caches of a CPU, or a quarter of a GPU's free memory."""
    per_head, room = bytes_per_head(x, recipe, size), CACHE_BYTES
    if x.device.type == "cuda":
        per_head += 2 * 8 * size  # int64 order of rows and labels of one epoch
        room = torch.cuda.mem_get_info(x.device)[0] // 4
    return max(1, room // per_head)


def _train(
    x: torch.Tensor,
    y: torch.Tensor,
    width: int,
    recipe: Recipe,
    blocks: list[Sequence[Subset]],
    threads: int,
    tally: Tally,
) -> Generator[TrainedHead, None, None]:
    """Trains the blocks in threads; yields heads in the order of the blocks. Closing it stops the threads."""
    with single_threaded_kernels(x.device), ThreadPoolExecutor(threads) as workers:
        running: deque[Future[torch.Tensor]] = deque(
            workers.submit(train_block, x, y, width, recipe, block, tally.add) for block in blocks
        )
        try:
            for block in blocks:
                for (index, _), head in zip(block, running.popleft().result(), strict=True):
                    yield TrainedHead(index, head[:, :width], head[:, width])
        finally:
            tally.abandon()
            for future in running:
                future.cancel()

"""Folds the BatchNorms of frozen networks into the preceding convolutions: the same function, computed faster."""

import copy
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # private, but torch's own FlopCounterMode relies on it
from torch.utils._pytree import tree_leaves

from privacy_gate.compute.images import vision  # noqa: F401 - prepares torchvision, which timm imports

import timm  # isort: skip - after vision

_LAYERS: Any = timm.layers

CONVOLUTIONS: tuple[type[torch.nn.Module], ...] = (torch.nn.Conv2d, _LAYERS.Conv2dSame)
"""Exactly these types, not their subclasses, which may change the weight in their forward pass (weight
standardisation)."""

NORMS: tuple[type[torch.nn.Module], ...] = (torch.nn.BatchNorm2d, _LAYERS.BatchNormAct2d)
"""Exactly these types, not their subclasses; the second is a BatchNorm followed by an activation."""

AGREEMENT = 1e-3
"""Maximum difference between features of the folded and the plain network on a trial image, relative to the largest
feature. Rounding causes about 1e-5; a wrong pair would cause about 1."""

Pair = tuple[Any, Any]
"""A convolution, and the BatchNorm that is the only reader of its output."""


def fold(model: torch.nn.Module, trial: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """The network in eval mode with BatchNorms folded into convolutions, and its output on images trial (B, 3, S, S).

    Returns `model` itself if there is nothing to fold, or if the folded network disagrees on the trial images. Does not
    modify the model. Errors that the model raises on the images are passed on.
    """
    plain, pairs = _pairs(model, trial)
    if not pairs:
        return model, plain
    folded = copy.deepcopy(model)
    modules, copies = list(model.modules()), list(folded.modules())
    twin = {id(module): duplicate for module, duplicate in zip(modules, copies, strict=True)}
    # Each folded norm is replaced by its activation, or by the identity.
    activations: dict[int, torch.nn.Module] = {}
    for convolution, norm in pairs:
        _multiply(twin[id(convolution)], norm)
        activations[id(twin[id(norm)])] = getattr(twin[id(norm)], "act", torch.nn.Identity())
    for parent in copies:
        for name, child in parent.named_children():
            if id(child) in activations:
                setattr(parent, name, activations[id(child)])
    return (folded if _agree(folded, trial, plain) else model), plain


def _agree(folded: torch.nn.Module, trial: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether the folded network's output on the trial images equals the plain network's within AGREEMENT."""
    try:
        with torch.no_grad():
            output = folded(trial)
    except (AttributeError, RuntimeError, TypeError):  # the network accesses the norms that were removed
        return False
    limit = AGREEMENT * float(plain.abs().max())
    return output.shape == plain.shape and float((output - plain).abs().max()) <= limit  # False for NaN


def _multiply(convolution: Any, norm: Any) -> None:
    """Multiplies the norm into the convolution's weight and bias; in float64, so that each is rounded only once.

    scale * (W x + b - mean) + shift = (scale W) x + (scale (b - mean) + shift).
    """
    mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()
    shift = torch.zeros_like(mean)
    if norm.affine:
        scale, shift = scale * norm.weight.double(), norm.bias.double()
    bias = -mean if convolution.bias is None else convolution.bias.double() - mean
    weight = (convolution.weight.double() * scale.view(-1, 1, 1, 1)).to(convolution.weight)
    convolution.weight = torch.nn.Parameter(weight, requires_grad=False)
    convolution.bias = torch.nn.Parameter((bias * scale + shift).to(weight.dtype), requires_grad=False)


def _pairs(model: torch.nn.Module, trial: torch.Tensor) -> tuple[torch.Tensor, list[Pair]]:
    """The model's output on the images, and the pairs of convolution and BatchNorm, observed while the model runs.

    In a pair, each module runs once, and no other operation reads the convolution's output.
    """
    outputs: dict[int, tuple[Any, torch.Tensor]] = {}  # by id; keeps the tensors alive, so that no id is reused
    runs: Counter[int] = Counter()
    met: list[tuple[Any, Any, torch.Tensor]] = []

    def convolved(module: Any, _: Any, out: torch.Tensor) -> None:
        runs[id(module)] += 1
        outputs[id(out)] = (module, out)

    def normed(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        runs[id(module)] += 1
        if id(inputs[0]) in outputs:
            met.append((outputs[id(inputs[0])][0], module, inputs[0]))

    hooks = [module.register_forward_hook(convolved) for module in model.modules() if type(module) in CONVOLUTIONS]
    hooks += [
        module.register_forward_pre_hook(normed)
        for module in model.modules()
        if type(module) in NORMS and getattr(module, "running_var", None) is not None
    ]
    try:
        with torch.no_grad(), _Readers() as readers:
            out: torch.Tensor = model(trial)
    finally:
        for hook in hooks:
            hook.remove()
    return out, [
        (convolution, norm)
        for convolution, norm, between in met
        if runs[id(convolution)] == runs[id(norm)] == 1 and readers.count[id(between)] == 1
    ]


class _Readers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how many operations read each tensor; keeps all tensors alive, so that no id is reused."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[int] = Counter()
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        self._kept += read
        self.count.update({id(tensor) for tensor in read})
        return func(*args, **(kwargs or {}))

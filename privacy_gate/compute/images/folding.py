"""Frozen networks without their BatchNorms: multiplied into the convolutions before them, the same function sooner."""

import copy
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # what torch's own FlopCounterMode stands on
from torch.utils._pytree import tree_leaves

from privacy_gate.compute.images import vision  # noqa: F401 - readies torchvision, which timm imports

import timm  # isort: skip - after vision

_LAYERS: Any = timm.layers

CONVOLUTIONS: tuple[type[torch.nn.Module], ...] = (torch.nn.Conv2d, _LAYERS.Conv2dSame)
"""Exactly these and no heirs of theirs, which may change the weight on its way (weight standardisation)."""

NORMS: tuple[type[torch.nn.Module], ...] = (torch.nn.BatchNorm2d, _LAYERS.BatchNormAct2d)
"""Exactly these likewise; the second is a BatchNorm and an activation."""

AGREEMENT = 1e-3
"""How far the features of folded and plain network may lie apart on a trial image, of the largest feature. Rounding
makes 1e-5 of it; a mistake about what reads what would make about 1."""

Pair = tuple[Any, Any]
"""A convolution, and the BatchNorm that alone reads what it says."""


def fold(model: torch.nn.Module, trial: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """The network in eval mode with BatchNorms folded into convolutions, up to rounding the same function, or `model`
    itself where there are none or the two do not agree on the images `trial` (B, 3, S, S); and what it says of them.

    The model is left as it is. Raises what it raises for the images.
    """
    plain, pairs = _pairs(model, trial)
    if not pairs:
        return model, plain
    folded = copy.deepcopy(model)
    modules, copies = list(model.modules()), list(folded.modules())
    twin = {id(one): other for one, other in zip(modules, copies, strict=True)}
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
    try:
        with torch.no_grad():
            found = folded(trial)
    except (AttributeError, RuntimeError, TypeError):  # it looks into the norms that are no more
        return False
    limit = AGREEMENT * float(plain.abs().max())
    return found.shape == plain.shape and float((found - plain).abs().max()) <= limit  # NaN: no


def _multiply(convolution: Any, norm: Any) -> None:
    """Puts the norm into the convolution's weight and bias; in float64, so that each is rounded once."""
    mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()
    shift = torch.zeros_like(mean)
    if norm.affine:
        scale, shift = scale * norm.weight.double(), norm.bias.double()
    bias = -mean if convolution.bias is None else convolution.bias.double() - mean
    weight = (convolution.weight.double() * scale.view(-1, 1, 1, 1)).to(convolution.weight)
    convolution.weight = torch.nn.Parameter(weight, requires_grad=False)
    convolution.bias = torch.nn.Parameter((bias * scale + shift).to(weight.dtype), requires_grad=False)


def _pairs(model: torch.nn.Module, trial: torch.Tensor) -> tuple[torch.Tensor, list[Pair]]:
    """What the model says of the images, and which of its convolutions and BatchNorms are pairs: seen while it runs.

    Each runs once, and no other operation reads the convolution's output.
    """
    said: dict[int, tuple[Any, torch.Tensor]] = {}  # tensors are kept, so that no id is given twice
    runs: Counter[int] = Counter()
    met: list[tuple[Any, Any, torch.Tensor]] = []

    def convolved(module: Any, _: Any, out: torch.Tensor) -> None:
        runs[id(module)] += 1
        said[id(out)] = (module, out)

    def normed(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        runs[id(module)] += 1
        if id(inputs[0]) in said:
            met.append((said[id(inputs[0])][0], module, inputs[0]))

    hooks = [one.register_forward_hook(convolved) for one in model.modules() if type(one) in CONVOLUTIONS]
    hooks += [
        one.register_forward_pre_hook(normed)
        for one in model.modules()
        if type(one) in NORMS and getattr(one, "running_var", None) is not None
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
    """Counts which operations read each tensor, and keeps all of them, so that no id is given twice."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[int] = Counter()
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, torch.Tensor)]
        self._kept += read
        self.count.update({id(one) for one in read})
        return func(*args, **(kwargs or {}))

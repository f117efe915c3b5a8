"""Lets torchvision, and so timm, be imported beside a CPU build of torch. Import this before timm.

torchvision's usual wheel is built for CUDA. Next to a CPU-only torch its library of operators cannot be
loaded, and its import then fails for want of two operator names. Declaring them is enough for
transforms and models; non-maximum suppression itself stays unavailable, and nothing here uses it.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators() -> Any:
    """Declares the operators where torchvision's own library cannot be loaded; returns what keeps them alive."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    load: Any = torch.ops.load_library
    for library in Path(found.origin).parent.glob("_C*.so"):
        try:
            load(str(library))
        except OSError:
            break
        return None
    make: Any = torch.library.Library
    operators = make("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + _NMS)
    return operators


OPERATORS = declare_missing_operators()

"""Makes torchvision, and so timm, importable with a CPU build of torch. Import this before timm.

torchvision's usual wheel is built for CUDA. With a CPU-only torch its operator library cannot be loaded, and its import
then fails because two operators are not declared. Declaring them is enough for transforms and models. The operators
themselves (non-maximum suppression) remain unavailable; this project does not use them.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators() -> Any:
    """Declares the operators if torchvision's library cannot be loaded; returns an object that keeps them declared."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    load: Any = torch.ops.load_library
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            load(str(library))
        except OSError:
            break
        return None
    # Any hides attributes that torch does not annotate. "DEF" opens a new namespace of operators.
    make: Any = torch.library.Library
    operators = make("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + _NMS)
    return operators


OPERATORS = declare_missing_operators()

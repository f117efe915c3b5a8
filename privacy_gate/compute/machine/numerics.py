"""Whose arithmetic made a result: a fact that is kept beside it, and no part of its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from privacy_gate.compute.machine.device import Machine
from privacy_gate.native.compiler import has_numba

FLOAT32 = "ieee"
"""What torch calls float32 that keeps all its bits in products and convolutions."""

_BACKENDS: Any = torch.backends  # its modules make up their attributes, which no type checker sees
_OPERATIONS = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)
"""Whatever torch may be told to compute with fewer bits than its operands have."""


def numerics(machine: Machine) -> dict[str, str]:
    """torch's version, how float32 is multiplied, and the kind of device: the GPU's model, or the CPU's widest vectors
    and the version of Numba where it is installed.

    True of what is computed inside `whole_float32`.
    """
    device = machine.torch_device()
    if device.type == "cuda":
        return {"torch": torch.__version__, "float32": FLOAT32, "device": torch.cuda.get_device_name(device)}
    kind = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    found = {"torch": torch.__version__, "float32": FLOAT32, "device": kind}
    return found | {"numba": version("numba")} if has_numba() else found


@contextmanager
def whole_float32() -> Iterator[None]:
    """float32 with all its bits, where torch would compute a GPU's convolutions in TF32, which drops 13 of them.

    What the caller had told torch, by either of its two interfaces, holds again afterwards.
    """
    before = [operation.fp32_precision for operation in _OPERATIONS]
    _by_the_older_interface(convolutions=False, products="highest")
    _by_the_newer_interface([FLOAT32] * len(before))
    try:
        yield
    finally:
        products = "medium" if before[3] == "bf16" else "high" if before[0] == "tf32" else "highest"
        _by_the_older_interface(convolutions="tf32" in before[1:3], products=products)
        _by_the_newer_interface(before)


def _by_the_older_interface(*, convolutions: bool, products: str) -> None:
    """torch compares what both interfaces were told, in some kernels, and refuses to compute where they disagree."""
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _by_the_newer_interface(precisions: list[str]) -> None:
    for operation, precision in zip(_OPERATIONS, precisions, strict=True):
        operation.fp32_precision = precision

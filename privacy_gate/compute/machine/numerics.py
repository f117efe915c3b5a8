"""The arithmetic that computed a result: stored with the result, but not part of its digest."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from privacy_gate.compute.machine.device import Machine
from privacy_gate.native.compiler import has_numba

FLOAT32 = "ieee"
"""torch's name for full float32 precision in matrix products and convolutions."""

_BACKENDS: Any = torch.backends  # its modules create attributes at run time, which type checkers cannot see
_OPERATIONS = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)
"""All operations that torch can be configured to compute with fewer bits than its operands have. The order matters:
`whole_float32` reads them by index."""


def numerics(machine: Machine) -> dict[str, str]:
    """torch's version, the float32 precision, and the kind of device: the GPU's model, or the CPU's widest vector
    instructions and the version of Numba if it is installed.

    Valid for results computed inside `whole_float32`.
    """
    device = machine.torch_device()
    if device.type == "cuda":
        return {"torch": torch.__version__, "float32": FLOAT32, "device": torch.cuda.get_device_name(device)}
    kind = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    facts = {"torch": torch.__version__, "float32": FLOAT32, "device": kind}
    return facts | {"numba": version("numba")} if has_numba() else facts


@contextmanager
def whole_float32() -> Iterator[None]:
    """Full float32 precision. By default, torch computes a GPU's convolutions in TF32, which drops 13 bits.

    Restores the caller's settings afterwards, through whichever of torch's two interfaces they were made.
    """
    before = [operation.fp32_precision for operation in _OPERATIONS]
    _by_the_older_interface(convolutions=False, products="highest")
    _by_the_newer_interface([FLOAT32] * len(before))
    try:
        yield
    finally:
        # Translate the precisions into the older interface's terms: 0 cuda.matmul, 1 and 2 cudnn, 3 mkldnn.matmul.
        products = "medium" if before[3] == "bf16" else "high" if before[0] == "tf32" else "highest"
        _by_the_older_interface(convolutions="tf32" in before[1:3], products=products)
        _by_the_newer_interface(before)


def _by_the_older_interface(*, convolutions: bool, products: str) -> None:
    """Sets the older interface too: some kernels of torch refuse to compute if the two interfaces disagree."""
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _by_the_newer_interface(precisions: list[str]) -> None:
    for operation, precision in zip(_OPERATIONS, precisions, strict=True):
        operation.fp32_precision = precision

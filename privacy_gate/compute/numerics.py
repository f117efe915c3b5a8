"""Whose arithmetic made a result: a fact that is kept beside it, and no part of its name."""

from importlib.metadata import version

import torch

from privacy_gate.compute.machine import Machine
from privacy_gate.native import has_numba


def numerics(machine: Machine) -> dict[str, str]:
    """The version of torch, and the kind of device: the GPU's model, or the CPU's widest vector instructions, and the
    version of Numba where it is installed."""
    device = machine.torch_device()
    if device.type == "cuda":
        return {"torch": torch.__version__, "device": torch.cuda.get_device_name(device)}
    found = {"torch": torch.__version__, "device": f"{device.type} {torch.backends.cpu.get_cpu_capability()}"}
    return found | {"numba": version("numba")} if has_numba() else found

"""Whose arithmetic made a result: a fact that is kept beside it, and no part of its name."""

import torch

from privacy_gate.compute.machine import Machine


def numerics(machine: Machine) -> dict[str, str]:
    """The version of torch, and the kind of device: the GPU's model, or the CPU's widest vector instructions."""
    device = machine.torch_device()
    if device.type == "cuda":
        return {"torch": torch.__version__, "device": torch.cuda.get_device_name(device)}
    return {"torch": torch.__version__, "device": f"{device.type} {torch.backends.cpu.get_cpu_capability()}"}

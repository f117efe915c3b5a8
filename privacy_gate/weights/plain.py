"""Safetensors files. Their library checks the layout and executes nothing."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from privacy_gate.errors import CandidateError
from privacy_gate.weights.layout import Tensors, one_line
from privacy_gate.weights.unpickle import DTYPES


def read_safetensors(path: Path) -> Tensors:
    """The tensors of the file, by name. Raises CandidateError."""
    try:
        tensors = dict(load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CandidateError(f"not a sound safetensors file: {one_line(error)}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CandidateError(f"tensor {name[:80]!r} has type {tensor.dtype}, expected a supported one: use float32")
    return tensors

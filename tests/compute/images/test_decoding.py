"""Images reach backbones bit for bit as timm would transform them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from privacy_gate.compute.images import backbone
from privacy_gate.compute.images.decoding import decode, scaled, transform_of
from privacy_gate.dossier.backbone import Input

timm = backbone.timm  # importable beside a CPU build of torch only after the gate's own imports
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def encoded(seed: int, width: int, height: int, mode: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize(("size", "crop"), [(24, 0.875), (33, 1.0)])
@pytest.mark.parametrize(("mean", "std"), [IMAGENET, ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)])
def test_pixels_are_timm_s_to_the_bit(interpolation: str, size: int, crop: float, mean: tuple, std: tuple) -> None:  # type: ignore[type-arg]
    shape = Input(size=size, mean=mean, std=std, interpolation=interpolation, crop=crop)  # type: ignore[arg-type]
    own = timm.data.create_transform(
        input_size=(3, size, size), is_training=False, mean=mean, std=std, interpolation=interpolation, crop_pct=crop
    )
    files = [encoded(0, 40, 57, "RGB"), encoded(1, 24, 24, "L"), encoded(2, 90, 31, "P"), encoded(3, 33, 33, "RGBA")]
    expected = torch.stack([own(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    found = scaled([decode(file, transform_of(shape)) for file in files], shape)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_every_byte_is_scaled_as_timm_scales_it() -> None:
    shape = Input(size=16, mean=IMAGENET[0], std=IMAGENET[1])
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = Image.fromarray(np.stack([every, every[::-1], every.T], axis=2))
    own = timm.data.create_transform(input_size=(3, 16, 16), is_training=False, mean=shape.mean, std=shape.std)
    to_tensor, normalise = own.transforms[-2:]
    bytes_alone = transform_of(shape).transforms[-1]
    assert torch.equal(scaled([bytes_alone(pixels)], shape)[0], normalise(to_tensor(pixels)))

"""Image files as backbones take them: timm's own evaluation transform, by way of bytes instead of three copies."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from privacy_gate.compute.images import vision  # noqa: F401 - readies torchvision, which timm's transforms import
from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.tables.images import BROKEN, FORMATS
from privacy_gate.dossier.views import View
from privacy_gate.errors import DatasetError

from timm.data.transforms_factory import create_transform  # isort: skip - after vision

MAX_PIXELS = (1 << 30) // 12
"""The largest picture decoded: 1 GiB at four bytes for each of three channels, where PIL too suspects a bomb."""


def transform_of(shape: Input) -> Any:
    """What timm does before it scales: PIL image in, tensor (3, S, S) of bytes out. `scaled` does the rest."""
    return create_transform(
        input_size=(3, shape.size, shape.size),
        is_training=False,
        interpolation=shape.interpolation,
        crop_pct=shape.crop,
        normalize=False,
    )


def scaled(images: Sequence[torch.Tensor], shape: Input) -> torch.Tensor:
    """Images of bytes, each (3, S, S), as the backbone wants them: (B, 3, S, S) float32, channels last.

    (x / 255 - mean) / std, to the bit what torchvision's ToTensor and Normalize make of them; each image in one go
    while the caches hold it, a row of pixels at a time, since three channels are too few to fill a register.
    """
    size = shape.size
    out = torch.empty(len(images), size, size, 3)
    mean, std = (torch.tensor(each, dtype=torch.float32).repeat(size) for each in (shape.mean, shape.std))
    for image, into in zip(images, out.view(len(images), size, 3 * size), strict=True):
        torch.div(image.permute(1, 2, 0).reshape(size, 3 * size), 255, out=into)
        into.sub_(mean).div_(std)
    return out.permute(0, 3, 1, 2)


def decode(payload: bytes, transform: Any) -> torch.Tensor:
    """The image as `transform` makes it. EXIF orientation is not applied, as in timm.

    Raises DatasetError that says why it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(f"larger than {MAX_PIXELS:,} pixels: {image.width:,} x {image.height:,}")
            pixels: torch.Tensor = transform(_rgb(image))
    except UnidentifiedImageError as error:
        raise DatasetError(f"no image of a known format: {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"larger than {MAX_PIXELS:,} pixels") from error
    except BROKEN as error:
        raise DatasetError(f"damaged: {error}") from error
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; 16-bit greys are scaled to 8 bits, which PIL's own conversion would clip."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64) // 257
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def seen(pixels: torch.Tensor, view: View) -> torch.Tensor:
    """Images (B, 3, H, W) in this view, of the same shape: mirrored first, then moved; without its trigger."""
    if view.flip:
        pixels = pixels.flip(3)
    if not view.down and not view.right:
        return pixels
    margin = max(abs(view.down), abs(view.right))
    top, left, (height, width) = margin - view.down, margin - view.right, pixels.shape[2:]
    padded = torch.nn.functional.pad(pixels, [margin] * 4, mode="replicate")
    return padded[:, :, top : top + height, left : left + width]

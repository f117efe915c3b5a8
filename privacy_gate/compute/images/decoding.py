"""Decodes image files for backbones: timm's evaluation transform up to 8-bit pixels, then scaling in one pass."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from privacy_gate.compute.images import vision  # noqa: F401 - prepares torchvision, which timm's transforms import
from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.tables.images import BROKEN, FORMATS
from privacy_gate.dossier.views import View
from privacy_gate.errors import DatasetError

from timm.data.transforms_factory import create_transform  # isort: skip - after vision

MAX_PIXELS = (1 << 30) // 12
"""Largest picture that is decoded: 1 GiB with four bytes for each of three channels. Above the same number of pixels,
PIL warns of a decompression bomb."""


def transform_of(shape: Input) -> Any:
    """timm's transform without its scaling: PIL image to uint8 tensor (3, S, S). `scaled` does the rest."""
    return create_transform(
        input_size=(3, shape.size, shape.size),
        is_training=False,
        interpolation=shape.interpolation,
        crop_pct=shape.crop,
        normalize=False,
    )


def scaled(images: Sequence[torch.Tensor], shape: Input) -> torch.Tensor:
    """uint8 images, each (3, S, S), normalised for the backbone: (B, 3, S, S) float32 in channels-last format.

    (x / 255 - mean) / std, bit for bit equal to torchvision's ToTensor and Normalize. Each image is processed while the
    caches hold it, in vectors of a whole row of pixels, because three channels are too few to fill a vector register.
    """
    size = shape.size
    out = torch.empty(len(images), size, size, 3)
    mean, std = (torch.tensor(value, dtype=torch.float32).repeat(size) for value in (shape.mean, shape.std))
    for image, into in zip(images, out.view(len(images), size, 3 * size), strict=True):
        torch.div(image.permute(1, 2, 0).reshape(size, 3 * size), 255, out=into)
        into.sub_(mean).div_(std)
    return out.permute(0, 3, 1, 2)


def decode(payload: bytes, transform: Any) -> torch.Tensor:
    """The decoded image after `transform`. EXIF orientation is not applied, as in timm.

    Raises DatasetError, with the reason, if it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(f"larger than {MAX_PIXELS:,} pixels: {image.width:,} x {image.height:,}")
            pixels: torch.Tensor = transform(_rgb(image))
    except UnidentifiedImageError as error:
        raise DatasetError(f"not an image in one of the formats {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"larger than {MAX_PIXELS:,} pixels") from error
    except BROKEN as error:
        raise DatasetError(f"damaged: {error}") from error
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to RGB. 16-bit grey is scaled to 8 bits; PIL's own conversion would clip it."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64) // 257  # 65535 / 255
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def apply_view(pixels: torch.Tensor, view: View) -> torch.Tensor:
    """Images (B, 3, H, W) in this view, in the same shape: mirrored first, then shifted. The trigger is not applied."""
    if view.flip:
        pixels = pixels.flip(3)
    if not view.down and not view.right:
        return pixels
    # Shift by cropping from an image padded with its border pixels.
    margin = max(abs(view.down), abs(view.right))
    top, left, (height, width) = margin - view.down, margin - view.right, pixels.shape[2:]
    padded = torch.nn.functional.pad(pixels, [margin] * 4, mode="replicate")
    return padded[:, :, top : top + height, left : left + width]

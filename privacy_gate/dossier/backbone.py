"""The public network that a candidate starts from, and how an image becomes its input."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import InDigest, Positive, Record, Sha256


class PublicWeights(Record):
    """Where the backbone's public weights are (a path or any fsspec URL), and the sha256 of that file.

    licence  their licence, in the producer's words; reported, never judged
    """

    uri: Annotated[str, Field(min_length=1), InDigest.NEVER]
    sha256: Sha256
    licence: Annotated[Annotated[str, Field(min_length=1, max_length=200)] | None, InDigest.NEVER] = None


class Backbone(Record):
    """A timm architecture with its public weights, if it has any. `identity` means that the table holds features."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    weights: PublicWeights | None = None

    @property
    def is_identity(self) -> bool:
        return self.name == "identity"

    @model_validator(mode="after")
    def _weights_match_name(self) -> Self:
        if self.is_identity and self.weights is not None:
            raise ValueError("backbone 'identity' has no weights: remove weights")
        return self


class Input(Record):
    """How an image becomes the backbone's input: timm's evaluation transform.

    size  side of the square input, pixels
    crop  side of the central crop as a share of the resized image
    """

    size: Annotated[int, Field(ge=16, le=2048)]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0

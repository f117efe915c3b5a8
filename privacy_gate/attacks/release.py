"""What leaves the house, and so what an attacker sees: made from a model's outputs once, for every attack alike."""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.documents import Record

Outputs = Literal["label", "top_k", "probabilities", "logits", "weights"]

OUTPUTS: tuple[Outputs, ...] = ("label", "top_k", "probabilities", "logits", "weights")
"""From least to most: who sees one sees all before it."""

FLOAT32 = 2.0**-24
"""Relative rounding error of a float32."""


class Release(Record):
    """The release surface: what whoever uses the model receives from it.

    outputs  weights; or answers: logits, probabilities of all classes, the k largest with their classes, or the label
    digits   decimals to which probabilities are rounded; None: float32 as computed
    k        how many classes `top_k` shows
    context  where the model is used, as the operator declares it
    """

    outputs: Outputs = "probabilities"
    digits: Annotated[int, Field(ge=1, le=7)] | None = None
    k: Annotated[int, Field(ge=1, le=1000)] | None = None
    context: Literal["internal", "api", "open-weights"] = "api"

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if (self.outputs == "top_k") != (self.k is not None):
            raise ValueError("release: k goes with outputs: top_k; write {outputs: top_k, k: 1}, or remove k")
        if self.digits is not None and self.outputs not in ("probabilities", "top_k"):
            raise ValueError(f"release: digits rounds probabilities, and outputs is {self.outputs}: remove digits")
        if self.context == "open-weights" and self.outputs != "weights":
            raise ValueError("release: context open-weights means outputs: weights; correct one of them")
        return self

    @classmethod
    def of_context(cls, context: str) -> Self:
        """The release that `release_context: CONTEXT` of older policies means."""
        outputs = "weights" if context == "open-weights" else "probabilities"
        return cls.model_validate({"outputs": outputs, "context": context})

    def shows(self, outputs: Outputs) -> bool:
        """Whether the attacker sees at least these outputs."""
        return OUTPUTS.index(self.outputs) >= OUTPUTS.index(outputs)

    @property
    def unit(self) -> float:
        """The last decimal's size; 0 if probabilities are not rounded."""
        return 0.0 if self.digits is None else 10.0**-self.digits

    @property
    def settings(self) -> str:
        """As a policy writes it, without what is not set.

        >>> Release(outputs="top_k", k=1).settings
        '{outputs: top_k, k: 1}'
        """
        named = {"outputs": self.outputs, "digits": self.digits, "k": self.k}
        return "{" + ", ".join(f"{key}: {value}" for key, value in named.items() if value is not None) + "}"

    def __str__(self) -> str:
        """In a few words, for tables and sentences.

        >>> str(Release(outputs="probabilities", digits=3)), str(Release(outputs="top_k", k=1))
        ('probabilities, 3 decimals', 'the largest probability')
        """
        named = {
            "label": "the label alone",
            "top_k": "the largest probability" if self.k == 1 else f"the {self.k} largest probabilities",
            "probabilities": "all probabilities",
            "logits": "logits",
            "weights": "weights",
        }[self.outputs]
        if self.digits is None:
            return named
        if self.outputs == "probabilities":
            named = "probabilities"
        return f"{named}, {self.digits} decimal{'s' if self.digits > 1 else ''}"


def released(logits: Floats, release: Release) -> NDArray[np.float64]:
    """The probabilities that an attacker receives for logits (..., C): NaN where the release hides one.

    Raises ValueError for a release that shows no probabilities.
    """
    if not release.shows("top_k"):
        raise ValueError(f"a release of {release} shows no probabilities")
    p = probabilities(logits)
    if release.k is not None and release.k < p.shape[-1]:
        smallest = -np.sort(-p, axis=-1)[..., release.k - 1, None]
        p = np.where(p >= smallest, p, np.nan)
    if release.digits is None:
        return p.astype(np.float32).astype(np.float64)
    return np.round(p, release.digits)


def confidence_of(answers: Floats, label: Ints, release: Release) -> Floats:
    """Logit-scaled confidence of the true class as released answers (..., N, C) tell it, nats; label (N,).

    A probability that rounds to 0 or 1 stands half a unit away from it. A class that `top_k` hides has an equal share
    of what the shown ones leave.
    """
    p = np.take_along_axis(answers, np.broadcast_to(label[:, None], (*answers.shape[:-1], 1)), axis=-1)[..., 0]
    if release.k is not None:
        hidden = np.isnan(answers).sum(axis=-1)
        rest = np.clip(1 - np.nansum(answers, axis=-1), 0, 1) / np.maximum(hidden, 1)
        p = np.where(np.isnan(p), rest, p)
    return logit(p, max(release.unit / 2, FLOAT32))


def rounded_confidence(confidence: Floats, release: Release) -> Floats:
    """Logit-scaled confidence (..., N) as the release's decimals tell it, if the other classes are not known."""
    if release.digits is None:
        return confidence
    p = np.round(1 / (1 + np.exp(-np.asarray(confidence, dtype=np.float64))), release.digits)
    return logit(p, release.unit / 2)


def logit(p: Floats, least: float) -> Floats:
    """log p - log(1 - p), nats, with p kept `least` away from 0 and 1."""
    inside = np.clip(p, least, 1 - least)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def probabilities(logits: Floats) -> NDArray[np.float64]:
    """Softmax over the last axis, float64."""
    wide = np.asarray(logits, dtype=np.float64)
    weights = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def right(logits: Floats, label: Ints) -> Bools:
    """Whether the label that is released is the true one: logits (..., N, C), label (N,) -> (..., N)."""
    return np.asarray(logits.argmax(axis=-1) == label)

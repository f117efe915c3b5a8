"""The version that is promoted now: what a candidate is compared with, where a policy's limits speak of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.candidate import Candidate
from privacy_gate.dossier.recipe import Recipe


@dataclass(frozen=True)
class Champion:
    """The version at the alias that approval moves, as it stood when the candidate was pulled.

    version   as the registry says (untrusted text); None where nothing stood there
    artifact  digest of its files, which lie in `folder`; None where they were not read
    recipe    as its own dossier says
    reason    why the candidate cannot be compared with it; None where it can, or where there is none
    remark    what a reader of the comparison should know
    """

    alias: str
    version: str | None = None
    artifact: str | None = None
    folder: Path | None = None
    recipe: Recipe | None = None
    reason: str | None = None
    remark: str | None = None

    @classmethod
    def of(cls, alias: str, found: Candidate, candidate: Candidate) -> Self:
        """The pulled version `found`, held against the candidate that is to be compared with it."""
        return cls(
            alias=alias,
            version=found.version,
            artifact=found.digest,
            folder=found.folder,
            recipe=found.recipe,
            reason=difference(found, candidate),
            remark=_remark(found, candidate),
        )

    def refused(self, reason: str) -> Self:
        """The same, where it turned out that it cannot be compared."""
        return replace(self, reason=reason)


def difference(champion: Candidate, candidate: Candidate) -> str | None:
    """What keeps the two from being compared on the candidate's rows; None where nothing does.

    How they were trained may differ: that is what is compared. What an answer means may not, nor what an image shows:
    a class would be taken for another, and a change of a pixel or a blur is worth more the smaller the image.
    """
    own, other = candidate.recipe, champion.recipe
    if other.classes != own.classes:
        return f"it tells {other.classes:,} classes and the candidate {own.classes:,}"
    if champion.dossier.data.class_names != candidate.dossier.data.class_names:
        return "its manifest names other classes, or the same in another order"
    if _shown(other.input) != _shown(own.input):
        return "it takes images of another size, crop or interpolation, or embeddings where the candidate takes images"
    return None


def _shown(shape: Input | None) -> tuple[object, ...] | None:
    """What an image shows a model; mean and std are the model's own way to read it."""
    return None if shape is None else (shape.size, shape.interpolation, shape.crop)


def _remark(champion: Candidate, candidate: Candidate) -> str | None:
    if champion.dossier.data.table.sha256 == candidate.dossier.data.table.sha256:
        return None
    return "its dossier names another audit table: it may have been trained on rows that the candidate never saw"

"""The champion: the version promoted now, with which a candidate is compared if the policy's limits refer to it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.candidate import Candidate
from privacy_gate.dossier.recipe import Recipe


@dataclass(frozen=True)
class Champion:
    """The version at the alias that approval moves, as it was when the candidate was pulled.

    version   as the registry states it (untrusted text); None if the alias did not exist
    artifact  digest of its files, which are in `folder`; None if they were not read
    recipe    the recipe in its own dossier
    reason    why the candidate cannot be compared with it; None if it can, or if there is no champion
    remark    a caveat for readers of the comparison
    """

    alias: str
    version: str | None = None
    artifact: str | None = None
    folder: Path | None = None
    recipe: Recipe | None = None
    reason: str | None = None
    remark: str | None = None

    @classmethod
    def of(cls, alias: str, pulled: Candidate, candidate: Candidate) -> Self:
        """The champion from its pulled version, checked for whether the candidate can be compared with it."""
        return cls(
            alias=alias,
            version=pulled.version,
            artifact=pulled.digest,
            folder=pulled.folder,
            recipe=pulled.recipe,
            reason=difference(pulled, candidate),
            remark=_remark(pulled, candidate),
        )

    def refused(self, reason: str) -> Self:
        """The same champion, with a reason why no comparison is possible."""
        return replace(self, reason=reason)


def difference(champion: Candidate, candidate: Candidate) -> str | None:
    """Why the two cannot be compared on the candidate's rows; None if they can.

    Their training may differ, since the comparison is about training. Their classes may not differ, because one class
    would be mistaken for another. The images they receive may not differ either, because a changed pixel or a blur has
    more effect on a smaller image.
    """
    candidate_recipe, champion_recipe = candidate.recipe, champion.recipe
    if champion_recipe.classes != candidate_recipe.classes:
        return f"it has {champion_recipe.classes:,} classes and the candidate has {candidate_recipe.classes:,}"
    if champion.dossier.data.class_names != candidate.dossier.data.class_names:
        return "class_names in its manifest are different, or in a different order"
    if _visible(champion_recipe.input) != _visible(candidate_recipe.input):
        return "its input has another size, crop or interpolation, or only one of the two models reads embeddings"
    return None


def _visible(shape: Input | None) -> tuple[object, ...] | None:
    """The settings that decide which part of an image a model sees, and how sharply.

    They do not include mean and std, which only rescale the pixel values.
    """
    return None if shape is None else (shape.size, shape.interpolation, shape.crop)


def _remark(champion: Candidate, candidate: Candidate) -> str | None:
    # Compared by bytes: the same table may have several URIs.
    if champion.dossier.data.table.sha256 == candidate.dossier.data.table.sha256:
        return None
    return "its dossier names another audit table, so it may have been trained on rows that the candidate never saw"

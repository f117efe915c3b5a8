"""The model version under judgement, and what its producer attached to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from privacy_gate.documents import Record
from privacy_gate.dossier.dataset import DataManifest
from privacy_gate.dossier.recipe import Recipe


class Claim(Record):
    """What the producer says of differential privacy: adding or removing one example changes this much at most.

    mechanism  how it was reached, in the producer's words
    """

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    mechanism: Annotated[str, Field(max_length=500)] = ""


class Dossier(Record):
    """What the producer attaches to a candidate."""

    recipe: Recipe
    data: DataManifest
    claim: Claim | None = None


@dataclass(frozen=True)
class Candidate:
    """A pinned model version whose bytes lie in a private folder.

    uri      as the user wrote it; name, version, alias, run_id, model_id as the registry says
             (untrusted text)
    folder   the downloaded artifact, every file checked and hashed
    digest   sha256 over the sorted (path, size, sha256) of its files
    logged   metrics the training run logged, by name
    rounds   folder of the round log of its federation, and its digest (see roundlog); None where there is none, or
             nobody asked
    """

    uri: str
    name: str
    version: str
    folder: Path
    digest: str
    dossier: Dossier
    alias: str | None = None
    run_id: str | None = None
    model_id: str | None = None
    logged: Mapping[str, float] = field(default_factory=dict)
    rounds: Path | None = None
    rounds_digest: str | None = None

    @property
    def recipe(self) -> Recipe:
        return self.dossier.recipe

"""The model version under judgement, and the dossier that its producer attached to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from privacy_gate.documents import Record
from privacy_gate.dossier.dataset import DataManifest
from privacy_gate.dossier.recipe import Recipe


class Claim(Record):
    """The producer's privacy claim: training is (epsilon, delta)-private under adding or removing one example.

    mechanism  how this was achieved, in the producer's words
    """

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    mechanism: Annotated[str, Field(max_length=500)] = ""


class Dossier(Record):
    """The declaration that the producer attaches to a candidate."""

    recipe: Recipe
    data: DataManifest
    claim: Claim | None = None


@dataclass(frozen=True)
class Candidate:
    """A pinned model version whose files are in a private folder.

    uri      as the user wrote it
    name, version, alias, run_id, model_id  as the registry states them (untrusted text)
    folder   the downloaded artifact, every file checked and hashed
    digest   sha256 over the sorted (path, size, sha256) of its files
    logged   metrics that the training run logged, by name
    rounds, rounds_digest  folder and digest of its federation's round log (see roundlog); None if there is no log or
             the log was not requested
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

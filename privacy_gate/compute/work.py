"""What every kind of job is computed with: its inputs, the machine, and where results go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Arrays
from privacy_gate.compute.images.embed import embed
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.judged import network_images
from privacy_gate.compute.training.networks import Images
from privacy_gate.dossier.backbone import Backbone, Input
from privacy_gate.dossier.dataset import AuditData
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View
from privacy_gate.errors import UnavailableError, UndecidedError
from privacy_gate.jobs.kinds import Embed, Job, embed_jobs
from privacy_gate.progress import Progress, silent

Features = NDArray[np.float32]

_PLAIN = View()


class ResultStore(Protocol):
    """Where results are kept. `get` raises UndecidedError where there is none."""

    def has(self, job: Job) -> bool: ...
    def get(self, job: Job) -> dict[str, NDArray[Any]]: ...
    def put(self, job: Job, arrays: Arrays) -> None: ...


@dataclass(frozen=True)
class Inputs:
    """What jobs read beside their own fields: audit data, and the folders of the candidate's files and round log."""

    data: AuditData
    candidate: Path
    rounds: Path | None = None


@dataclass
class Work:
    """Inputs, machine and store of one run, and what several of its jobs read."""

    inputs: Inputs
    machine: Machine
    results: ResultStore
    progress: Progress = silent
    _images: dict[tuple[Any, ...], Images] = field(default_factory=dict, repr=False)

    def features(self, backbone: Backbone, shape: Input | None, view: View = _PLAIN) -> Features:
        """Features of every row in one view, (N, D): the table's own, or put together from stored parts.

        Parts that another shard has not stored yet are computed here: all of them, where shards share no store. They
        are taken in an order of chance, which changes no part: shards that all wait for the same ones then share them.
        """
        data = self.inputs.data
        if data.embedding is not None:
            return data.embedding
        parts = embed_jobs(backbone, shape, data.digest, data.rows, [view])
        run_embed([parts[turn] for turn in np.random.default_rng().permutation(len(parts))], self)
        return np.concatenate([self.result(part)["features"] for part in parts])

    def result(self, job: Job) -> dict[str, NDArray[Any]]:
        """What was stored a moment ago. Raises UnavailableError where it has been deleted since."""
        try:
            return self.results.get(job)
        except UndecidedError as error:
            raise UnavailableError(
                f"a result of {type(job).__name__} was deleted before it was used; run the same command to go on"
            ) from error

    def views(self, recipe: Recipe) -> Features:
        """Features of every row in each of the recipe's V views, one view after the other: (V, N, D)."""
        views = [self.features(recipe.backbone, recipe.input, view) for view in recipe.views]
        return np.stack(views) if len(views) > 1 else views[0][None]

    def images(self, recipe: Recipe) -> Images:
        """The table's images as the recipe's network takes them; the last ones asked for are kept."""
        wanted = (recipe.input, recipe.views)
        if wanted not in self._images:
            self._images.clear()
            self._images[wanted] = network_images(recipe, self.inputs.data, self.machine, self.progress)
        return self._images[wanted]


def run_embed(jobs: Sequence[Embed], work: Work) -> None:
    """Features of the parts that are not stored yet, nor by others meanwhile."""
    has = work.results.has
    missing = [job for job in jobs if not has(job)]
    for job, features, content in embed(missing, work.inputs.data, work.machine, work.progress, has):
        work.results.put(job, {"features": features, "content": content})

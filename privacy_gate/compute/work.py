"""The context that runners of all kinds of jobs share: inputs, machine, and the store for results."""

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
    """A store of results. `get` raises UndecidedError if there is no result for the job."""

    def has(self, job: Job) -> bool: ...
    def get(self, job: Job) -> dict[str, NDArray[Any]]: ...
    def put(self, job: Job, arrays: Arrays) -> None: ...


@dataclass(frozen=True)
class Inputs:
    """What jobs read in addition to their own fields: audit data, folders of the candidate's files and round log."""

    data: AuditData
    candidate: Path
    rounds: Path | None = None


@dataclass
class Work:
    """Inputs, machine and store of one run, and the features and images that several of its jobs share."""

    inputs: Inputs
    machine: Machine
    results: ResultStore
    progress: Progress = silent
    _images: dict[tuple[Any, ...], Images] = field(default_factory=dict, repr=False)

    def features(self, backbone: Backbone, shape: Input | None, view: View = _PLAIN) -> Features:
        """Features of every row in one view, (N, D): from the table itself, or joined from stored parts.

        Computes the parts that no shard has stored yet; if shards share no store, that is all of them. Parts are
        computed in random order, so that shards that need the same parts divide them; results are unaffected.
        """
        data = self.inputs.data
        if data.embedding is not None:
            return data.embedding
        parts = embed_jobs(backbone, shape, data.digest, data.rows, [view])
        # Without a seed: every shard must have another order.
        run_embed([parts[turn] for turn in np.random.default_rng().permutation(len(parts))], self)
        return np.concatenate([self.result(part)["features"] for part in parts])

    def result(self, job: Job) -> dict[str, NDArray[Any]]:
        """A result that this run has stored or found in the store. Raises UnavailableError if it was deleted since."""
        try:
            return self.results.get(job)
        except UndecidedError as error:
            raise UnavailableError(
                f"a stored result of {type(job).__name__} was deleted before it was used; run the same command to go on"
            ) from error

    def views(self, recipe: Recipe) -> Features:
        """Features of every row in each of the recipe's V views, one view after the other: (V, N, D)."""
        views = [self.features(recipe.backbone, recipe.input, view) for view in recipe.views]
        return np.stack(views) if len(views) > 1 else views[0][None]

    def images(self, recipe: Recipe) -> Images:
        """The table's images in the form that the recipe's network takes; only the last form used stays in memory."""
        key = (recipe.input, recipe.views)
        if key not in self._images:
            # Free the previous images first: two tables of images may not fit in memory.
            self._images.clear()
            self._images[key] = network_images(recipe, self.inputs.data, self.machine, self.progress)
        return self._images[key]


def run_embed(jobs: Sequence[Embed], work: Work) -> None:
    """Computes the features of all parts that are not stored yet; skips parts that other processes store meanwhile."""
    has = work.results.has
    missing = [job for job in jobs if not has(job)]
    for job, features, content in embed(missing, work.inputs.data, work.machine, work.progress, has):
        work.results.put(job, {"features": features, "content": content})

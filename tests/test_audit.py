"""From stored results to a report, and how jobs are shared out."""

import numpy as np
import pytest

from privacy_gate.audit import REFERENCE_BLOCK, Shard
from privacy_gate.candidate import Recipe
from privacy_gate.documents import load
from privacy_gate.errors import ConfigurationError
from privacy_gate.job import Embed, Job, embed_jobs, train_reference

RECIPE = load(
    """{backbone: {name: x, weights: {uri: w, sha256: "%s"}}, input: {size: 32, mean: [0, 0, 0], std: [1, 1, 1]},
    classes: 2, optimizer: {name: adam, lr: 0.1}, epochs: 1, batch_size: 1}"""
    % ("a" * 64),
    Recipe,
    "recipe",
)
JOBS: list[Job] = [
    *embed_jobs(RECIPE.backbone, RECIPE.input, "d" * 64, 1000),
    *(train_reference(RECIPE, "d" * 64, index) for index in range(100)),
]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_all_jobs_once_and_references_go_by_whole_blocks(count: int) -> None:
    parts = [Shard(index, count).take(JOBS) for index in range(1, count + 1)]
    assert sorted(JOBS.index(job) for part in parts for job in part) == list(range(len(JOBS)))
    for part in parts:
        blocks = [job.index // REFERENCE_BLOCK for job in part if not isinstance(job, Embed)]
        for block in set(blocks):
            whole = min(REFERENCE_BLOCK, 100 - block * REFERENCE_BLOCK)
            assert blocks.count(block) == whole


@pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0)])
def test_a_shard_outside_its_count_is_refused(index: int, count: int) -> None:
    with pytest.raises(ConfigurationError, match="1 <= i <= n"):
        Shard(index, count)


def test_embed_jobs_cover_every_row_once() -> None:
    jobs = embed_jobs(RECIPE.backbone, RECIPE.input, "d" * 64, 1000)
    assert np.concatenate([np.arange(job.first, job.last) for job in jobs]).tolist() == list(range(1000))

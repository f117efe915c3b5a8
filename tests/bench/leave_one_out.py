"""LiRA on every model in turn, all the others its references: our one pass against doing it again for each target.

257 models, 100,000 rows by default. phi lies in a memory-mapped file, is read twice, and scores are taken block by
block. The double loop estimates every row's moments anew for each target, as the code released with the first papers
does; target by target is the gate's own attack on one candidate, called for each, all rows at once. Both are run on a
few targets and a part of the rows and scaled up linearly: estimates, and called so. Ratios are of seconds of CPU
time, which a neighbour's load moves least. Peak working memory is what Python and NumPy allocate beyond phi and the
training sets, counted by tracemalloc in a second run.
"""

import argparse
import os
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.leave_one_out import lira_blocks
from privacy_gate.attacks.lira import lira_online
from privacy_gate.dossier.dataset import Split

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=257, help="the candidate and its references (default 257)")
    parser.add_argument("--rows", type=int, default=100_000, help="audited rows (default 100,000)")
    parser.add_argument("--targets", type=int, default=3, help="targets the slow ways take (default 3)")
    parser.add_argument("--part", type=int, default=4_000, help="rows the slow ways take (default 4,000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        phi, included = evidence(arguments.models, arguments.rows, Path(folder) / "phi.npy")
        _, once = timed(lambda: walk(phi, included))
        tracemalloc.start()
        walk(phi, included)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        part = np.array(phi[:, : arguments.part]), included[:, : arguments.part]
    known = next(iter(lira_blocks(*part, variance="per_example")))[1][: arguments.targets]
    print(f"{arguments.models} models, {arguments.rows:,} rows, {phi.nbytes / 2**20:.0f} MiB of float32 phi")
    print(f"one pass {once.wall:15.1f} s, {once.cpu:.1f} s of CPU, peak working memory {peak:.0f} MiB")
    scale = arguments.models / arguments.targets * arguments.rows / arguments.part
    for name, way in (("target by target", one_by_one), ("double loop", double_loop)):
        found, sample = timed(partial(way, *part, arguments.targets))
        worst = float(np.abs(known - found[:, : known.shape[1]]).max())
        print(
            f"{name:16} {sample.wall * scale:7.0f} s, {sample.cpu * scale:.0f} s of CPU, "
            f"{sample.cpu * scale / once.cpu:.0f} times as much: scaled from {sample.cpu:.2f} s; "
            f"scores differ by at most {worst:.0e}"
        )
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"resident {resident:.0f} MiB at most, phi's pages and imports included")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


@dataclass(frozen=True)
class Seconds:
    """Elapsed, and of CPU time."""

    wall: float
    cpu: float


def timed(work: Callable[[], T]) -> tuple[T, Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def evidence(models: int, rows: int, path: Path) -> tuple[Floats, Bools]:
    """Gaussian phi (models, rows) in a mapped file, a member's larger by 1; training sets in complementary pairs."""
    rng = np.random.default_rng(0)
    half = rng.random((models // 2 + 1, rows)) < 0.5
    included = np.stack([half, ~half], axis=1).reshape(-1, rows)[:models]
    phi = np.lib.format.open_memmap(path, "w+", np.float32, (models, rows))
    for model in range(models):
        phi[model] = rng.standard_normal(rows, np.float32) + included[model]
    phi.flush()
    return np.load(path, mmap_mode="r"), included


def walk(phi: Floats, included: Bools) -> None:
    """All scores, one block in memory."""
    for _ in lira_blocks(phi, included):
        pass


def one_by_one(phi: Floats, included: Bools, targets: int) -> Floats:
    """Scores (targets, N): the attack on one candidate, on each of the first models in turn."""
    return np.stack(
        [lira_online(candidate(phi, included, target), variance="per_example") for target in range(targets)]
    )


def candidate(phi: Floats, included: Bools, target: int) -> MembershipEvidence:
    """The evidence of one model as candidate, all others as its references."""
    others, rows = np.arange(len(phi)) != target, phi.shape[1]
    return MembershipEvidence(
        target=phi[target],
        reference=phi[others],
        included=included[others],
        label=np.zeros(rows, dtype=np.int64),
        split=np.where(included[target], Split.MEMBER, Split.HOLDOUT).astype(np.int8),
        logits=np.zeros((rows, 2)),
    )


def double_loop(phi: Floats, included: Bools, targets: int) -> Floats:
    """Scores (targets, N): for each target and row the moments of the other models, in and out."""
    models, rows = phi.shape
    scores = np.empty((targets, rows))
    for target in range(targets):
        others = np.arange(models) != target
        for row in range(rows):
            values, chosen = phi[others, row].astype(np.float64), included[others, row]
            inside, outside = values[chosen], values[~chosen]
            own = float(phi[target, row])
            with_it = (own - inside.mean()) ** 2 / inside.var() + np.log(inside.var())
            without_it = (own - outside.mean()) ** 2 / outside.var() + np.log(outside.var())
            scores[target, row] = (without_it - with_it) / 2
    return scores


if __name__ == "__main__":
    main()

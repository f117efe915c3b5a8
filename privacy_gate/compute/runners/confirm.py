"""The worst attack on heads, tried on the network that the recipe trains."""

from collections.abc import Sequence

import numpy as np

from privacy_gate.compute.runners.federate import run_federate
from privacy_gate.compute.work import Work
from privacy_gate.jobs.kinds import Confirm, Federate, federate, screening


def run_confirm(jobs: Sequence[Confirm], work: Work) -> None:
    """Screens where that is not stored yet, then trains the network under what was worst."""
    for job in jobs:
        screened = {
            name: [federate(screening(job.recipe), job.dataset, name, job.byzantine, seed) for seed in range(job.seeds)]
            for name in job.attacks
        }
        _make([one for alike in screened.values() for one in alike], work)
        left = {name: np.mean([_accuracy(one, work) for one in alike]) for name, alike in screened.items()}
        worst = min(left, key=lambda name: float(left[name]))
        trained = federate(job.recipe, job.dataset, worst, job.byzantine, job.seed)
        _make([trained], work)
        kept = work.result(trained)
        attack = np.array([job.attacks.index(worst)])
        work.results.put(job, {"accuracy": kept["accuracy"], "hit": kept["hit"], "attack": attack})


def _make(jobs: Sequence[Federate], work: Work) -> None:
    run_federate([job for job in jobs if not work.results.has(job)], work)


def _accuracy(job: Federate, work: Work) -> float:
    return float(work.result(job)["accuracy"][0])

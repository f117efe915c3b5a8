"""Finds the worst attack on federated heads, and tries it on the network that the recipe trains."""

from collections.abc import Sequence

import numpy as np

from privacy_gate.compute.runners.federate import run_federate
from privacy_gate.compute.work import Work
from privacy_gate.jobs.kinds import Confirm, Federate, federate, screening


def run_confirm(jobs: Sequence[Confirm], work: Work) -> None:
    """Screens all attacks on heads, unless stored already, then trains the network under the worst attack."""
    for job in jobs:
        screened = {
            name: [federate(screening(job.recipe), job.dataset, name, job.byzantine, seed) for seed in range(job.seeds)]
            for name in job.attacks
        }
        _compute([seeded for seeds in screened.values() for seeded in seeds], work)
        # The worst attack leaves the lowest mean accuracy over seeds.
        accuracy = {name: np.mean([_accuracy(seeded, work) for seeded in seeds]) for name, seeds in screened.items()}
        worst = min(accuracy, key=lambda name: float(accuracy[name]))
        confirmation = federate(job.recipe, job.dataset, worst, job.byzantine, job.seed)
        _compute([confirmation], work)
        result = work.result(confirmation)
        attack = np.array([job.attacks.index(worst)])
        work.results.put(job, {"accuracy": result["accuracy"], "hit": result["hit"], "attack": attack})


def _compute(jobs: Sequence[Federate], work: Work) -> None:
    """Computes and stores those of the jobs that are not stored yet."""
    run_federate([job for job in jobs if not work.results.has(job)], work)


def _accuracy(job: Federate, work: Work) -> float:
    return float(work.result(job)["accuracy"][0])

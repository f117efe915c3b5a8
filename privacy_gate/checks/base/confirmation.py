"""Attacks on a federation that trains a network: heads screen all attacks, networks confirm the worst of them."""

from dataclasses import dataclass

from privacy_gate.checks.base.check import Results
from privacy_gate.checks.base.federations import MEAN, Federations
from privacy_gate.jobs.kinds import Confirm, Federate
from privacy_gate.metrics.robustness import byzantine_drop
from privacy_gate.verdict.judgement import Measurement, not_measured

BLIND = ("alie", "alie_search", "min_max", "min_sum")
"""Attacks that a convex loss, such as a head's, withstands under any rule: heads cannot screen them."""


@dataclass(frozen=True)
class Confirmation:
    """Federations of the recipe's networks, under the attack that is worst for heads and under those in BLIND.

    unmet  the reason why they cannot be attacked so; None if they can
    """

    federations: Federations
    attacks: tuple[str, ...]
    byzantine: int
    unmet: str | None = None

    def jobs(self) -> list[Federate | Confirm]:
        """Every job that trains a network."""
        if self.unmet:
            return list(dict.fromkeys([*self._plain(), *self._own()]))
        blind = [job for jobs in self._blind().values() for job in jobs]
        jobs: list[Federate | Confirm] = [*self._plain(), *self._own(), *self._worst(), *blind]
        return list(dict.fromkeys(jobs))

    def drop(self, results: Results, confidence: float) -> Measurement:
        """byzantine_drop of the recipe's rule."""
        if self.unmet:
            return not_measured("byzantine_drop", self.unmet)
        study = self.federations
        attacked = {name: study.hits(jobs, results) for name, jobs in self._blind().items()}
        # The worst attack is known only after screening, so its job names all attacks and stores which it was.
        attacked[self.worst(results)] = study.hits(self._worst(), results)
        return byzantine_drop(study.hits(self._plain(), results), attacked, confidence, blind=study.blind)

    def tax(self, results: Results, confidence: float) -> Measurement:
        """robustness_tax of the recipe's rule."""
        return self.federations.loss("robustness_tax", self._plain(), self._own(), results, confidence)

    def summary(self, results: Results) -> str:
        """A note on which metrics come from networks and which from heads."""
        if self.unmet:
            return "robustness: robustness_tax is from networks trained as the recipe says; all else is from heads"
        tried = dict.fromkeys([self.worst(results), *self._blind()])
        return (
            f"robustness: byzantine_drop and robustness_tax are from networks trained as the recipe says, under "
            f"{', '.join(tried)}. Of {len(self.attacks)} attacks, {self.worst(results)} is the worst for heads on the "
            "frozen backbone; attacks that heads withstand better were not tried on networks. The breakdown point and "
            "the other rules are from such heads"
        )

    def worst(self, results: Results) -> str:
        """The attack that harms heads most."""
        return self.attacks[int(results(self._worst()[0])["attack"][0])]

    def _plain(self) -> list[Federate]:
        return self.federations.jobs(MEAN)

    def _own(self) -> list[Federate]:
        return self.federations.jobs()

    def _worst(self) -> list[Confirm]:
        return [
            Confirm(job.recipe, job.dataset, self.attacks, self.byzantine, job.seed, self.federations.seeds)
            for job in self._own()
        ]

    def _blind(self) -> dict[str, list[Federate]]:
        """The federations under each attack in BLIND, by attack."""
        # Only those that the policy asks for; the worst of the screened attacks is added by `_worst`.
        blind = [name for name in self.attacks if name in BLIND]
        return {name: self.federations.jobs(None, (name, self.byzantine)) for name in blind}

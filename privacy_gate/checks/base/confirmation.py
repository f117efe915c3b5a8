"""What attacks do to a federation that trains a network: heads screen all of them, networks confirm the worst."""

from dataclasses import dataclass

from privacy_gate.checks.base.check import Results
from privacy_gate.checks.base.federations import MEAN, Federations
from privacy_gate.jobs.kinds import Confirm, Federate
from privacy_gate.metrics.robustness import byzantine_drop
from privacy_gate.verdict.judgement import Measurement, not_measured

BLIND = ("alie", "alie_search", "min_max", "min_sum")
"""Attacks that a convex loss, as a head's is, bears whatever the rule: heads cannot screen them."""


@dataclass(frozen=True)
class Confirmation:
    """Federations of the recipe as it is, attacked by what is worst for heads and by those that heads are blind to.

    unmet  why they cannot be attacked so; None where they can
    """

    federations: Federations
    attacks: tuple[str, ...]
    byzantine: int
    unmet: str | None = None

    def jobs(self) -> list[Federate | Confirm]:
        """Every training of a network."""
        if self.unmet:
            return list(dict.fromkeys([*self._plain(), *self._own()]))
        blind = [job for jobs in self._blind().values() for job in jobs]
        found: list[Federate | Confirm] = [*self._plain(), *self._own(), *self._worst(), *blind]
        return list(dict.fromkeys(found))

    def drop(self, results: Results, confidence: float) -> Measurement:
        """byzantine_drop of the recipe's rule."""
        if self.unmet:
            return not_measured("byzantine_drop", self.unmet)
        study = self.federations
        attacked = {name: study.hits(jobs, results) for name, jobs in self._blind().items()}
        attacked[self.worst(results)] = study.hits(self._worst(), results)
        return byzantine_drop(study.hits(self._plain(), results), attacked, confidence, blind=study.blind)

    def tax(self, results: Results, confidence: float) -> Measurement:
        """robustness_tax of the recipe's rule."""
        return self.federations.loss("robustness_tax", self._plain(), self._own(), results, confidence)

    def told(self, results: Results) -> str:
        """Which figures are of what."""
        if self.unmet:
            return "robustness: robustness_tax is of networks trained as the recipe says; all else is of heads"
        tried = dict.fromkeys([self.worst(results), *self._blind()])
        return (
            f"robustness: byzantine_drop and robustness_tax are of networks trained as the recipe says, under "
            f"{', '.join(tried)}: {self.worst(results)} is the worst of {len(self.attacks)} attacks for heads on the "
            "frozen backbone, and what heads bear better was not tried on networks; the breakdown point and the other "
            "rules are of such heads"
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
        """By attack."""
        blind = [name for name in self.attacks if name in BLIND]
        return {name: self.federations.jobs(None, (name, self.byzantine)) for name in blind}

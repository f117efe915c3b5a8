"""What every attack is: a function of evidence, what it needs, and what it assumes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence


@dataclass(frozen=True)
class Attack:
    """One way to tell members from others by what a model says about them.

    score    evidence -> (N,) float64, larger = more likely a member; a function of the candidate's
             own output and of what the references and the population say. NaN only in population
             rows, where the attack cannot score rows that no reference was trained on.
    source   paper and equation
    assumes  what must be true for the score to mean what it says
    cost     what it adds to an audit that has the evidence
    references, inside, population, reference_logits, features, trace  what it needs: at least so many
             reference models; so many of them, on average, trained on an audited row; so many population
             rows; the logits of reference 0; the backbone's features; the losses of every epoch
    refuse   why it would mean nothing on this evidence, where that must be computed
    """

    name: str
    score: Callable[[MembershipEvidence], Floats]
    source: str
    assumes: str
    cost: str
    references: int = 0
    inside: int = 0
    population: int = 0
    reference_logits: bool = False
    features: bool = False
    trace: bool = False
    refuse: Callable[[MembershipEvidence], str | None] | None = None

    @property
    def needs(self) -> str:
        """What it needs besides the candidate's output, in words."""
        parts = [
            f"{self.references} references" if self.references else "",
            f"rows in {self.inside} of them" if self.inside else "",
            f"{self.population} population rows" if self.population else "",
            "logits of a reference" if self.reference_logits else "",
            "adaptation head" if self.features else "",
            "a loss trace" if self.trace else "",
            "a converged head" if self.refuse else "",
        ]
        return ", ".join(part for part in parts if part) or "nothing"

    def unmet(self, evidence: MembershipEvidence) -> str | None:
        """Why the attack cannot be measured on this evidence; None where it can."""
        references, population = len(evidence.reference), int(evidence.population.sum())
        if references < self.references:
            return f"needs >= {self.references} references, found {references}"
        if self.inside:
            inside = float(np.count_nonzero(evidence.included) / np.count_nonzero(evidence.pool))
            if inside < self.inside:
                return f"needs rows in >= {self.inside} references' training sets on average, found {inside:.2g}"
        if population < self.population:
            return f"needs >= {self.population} population rows, found {population}"
        if self.reference_logits and evidence.reference_logits is None:
            return "needs the logits of a reference, found none"
        if self.features and evidence.features is None:
            return "needs the frozen backbone's features: adaptation head"
        if self.trace and evidence.trace is None:
            return "needs the losses of every epoch: log them and name columns: {trace: ...} in the data manifest"
        return self.refuse(evidence) if self.refuse else None

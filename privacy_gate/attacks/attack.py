"""What every attack is: a function of evidence, what it needs, and what it assumes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.release import Outputs


@dataclass(frozen=True)
class Attack:
    """One way to tell members from others by what a model reveals about them.

    score    evidence -> (N,) float64, larger = more likely a member; a function of what the release shows of the
             candidate and of what the references and the population say. NaN only in population rows, if the attack
             cannot score rows that no reference was trained on.
    source   paper and equation
    assumes  what must be true for the score to mean what it says
    cost     what it adds to an audit that has the evidence
    view     the least that the release must show; of a network the weights attacks need its weights
    pool     whether the attacker knows the pool of candidates for membership, members and others together
    references, inside, population, reference_logits, features, trace, weights, steady  what it needs: at least so many
             reference models; so many of them, on average, trained on an audited row; so many population
             rows; the logits of reference 0; the backbone's features; the losses of every epoch; a head, or a
             network's gradient span; labels of changed images
    refuse   why it would mean nothing on this evidence, if that must be computed
    """

    name: str
    score: Callable[[MembershipEvidence], Floats]
    source: str
    assumes: str
    cost: str
    view: Outputs = "top_k"
    pool: bool = True
    references: int = 0
    inside: int = 0
    population: int = 0
    reference_logits: bool = False
    features: bool = False
    trace: bool = False
    weights: bool = False
    steady: bool = False
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
            "a head, or a network's weights" if self.weights and not self.features else "",
            "labels of changed images" if self.steady else "",
            "a loss trace" if self.trace else "",
            "a converged head" if self.refuse else "",
        ]
        return ", ".join(part for part in parts if part) or "nothing"

    def unmet(self, evidence: MembershipEvidence) -> str | None:
        """Why the attack cannot be measured on this evidence; None if it can."""
        return self._unseen(evidence) or self._few(evidence) or self._lacking(evidence)

    def _unseen(self, evidence: MembershipEvidence) -> str | None:
        if not evidence.release.shows(self.view):
            shown = f"the release shows {evidence.release}"
            return f"needs a release of at least {NAMED[self.view]}: {shown} (release: outputs)"
        if self.references and evidence.hidden:
            return evidence.hidden
        return None

    def _few(self, evidence: MembershipEvidence) -> str | None:
        references, population = len(evidence.reference), int(evidence.population.sum())
        if references < self.references:
            return f"needs >= {self.references} references, found {references}"
        if self.inside:
            inside = float(np.count_nonzero(evidence.included) / np.count_nonzero(evidence.pool))
            if inside < self.inside:
                return f"needs rows in >= {self.inside} references' training sets on average, found {inside:.2g}"
        if population < self.population:
            return f"needs >= {self.population} population rows, found {population}"
        return None

    def _lacking(self, evidence: MembershipEvidence) -> str | None:
        if self.reference_logits and evidence.reference_logits is None:
            return "needs the logits of a reference, found none"
        if self.features and evidence.features is None:
            return "needs the frozen backbone's features: adaptation head"
        if self.trace and evidence.trace is None:
            return "needs the losses of every epoch: log them and name columns: {trace: ...} in the data manifest"
        if self.weights and (reason := self._no_weights(evidence)):
            return reason
        if self.steady and evidence.steady is None:
            return "needs labels of changed images, which are made for adaptation head alone, from images"
        if self.view == "label" and evidence.right is None:
            return "needs the candidate's labels, found none"
        if self.view == "label" and self.references and not self.steady and evidence.reference_right is None:
            return "needs the references' labels, found none"
        return self.refuse(evidence) if self.refuse else None

    def _no_weights(self, evidence: MembershipEvidence) -> str | None:
        of_head = evidence.head is not None and evidence.features is not None
        if not of_head and evidence.span is None:
            if evidence.features is None and not evidence.release.shows("weights"):
                return "needs a network's weights: the release shows answers alone, from which only a head is recovered"
            return "needs the weights of a head, or the gradient span of a network: none was kept"
        kept = evidence.reference_heads if of_head else evidence.reference_span
        if self.references and kept is None:
            return "needs the references' weights, which this store does not hold: prepare again"
        return None


NAMED = {
    "label": "labels",
    "top_k": "the largest probabilities",
    "probabilities": "all probabilities",
    "logits": "logits",
    "weights": "weights",
}
"""Outputs in words; see release.OUTPUTS for their order."""

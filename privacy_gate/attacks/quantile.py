"""What a model would say of a row it never saw, predicted from the row itself: quantile regression."""

import numpy as np

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.errors import EvidenceError

PENALTIES = np.logspace(-4, 6, 31)
"""Ridge penalties tried, in units of the mean square of a standardised feature over the rows."""

SMALLEST = 1e-6
"""Share of the residuals' spread below which a residual counts as this: its logarithm is regressed on."""


def quantile(evidence: MembershipEvidence) -> Floats:
    """The hinge z_y - max z_y' in deviations from what a row like it is expected to have, (N,): Bertran et al. 2023
    (arXiv 2307.03694), with a normal distribution of linear location and log-linear scale.

    Both regressors see the frozen features and the class, and are fitted on population rows alone: on the
    holdout, as SACRO-ML fits them, they would know the very scores they set the threshold for. Population rows'
    own scores leave the row out. All quantiles of a row are one score further or nearer, so one score serves all fpr.
    Raises EvidenceError without features, or with fewer than three population rows.
    """
    if evidence.features is None:
        raise EvidenceError("the quantile attack needs the backbone's features, found none")
    population = evidence.population
    if np.count_nonzero(population) < 3:
        raise EvidenceError("the quantile attack needs population rows, found fewer than three")
    classes = np.eye(evidence.logits.shape[1])[evidence.label]
    design = np.concatenate([evidence.features.astype(np.float64), classes], axis=1)
    design -= design[population].mean(axis=0)
    design /= np.maximum(design[population].std(axis=0), 1e-12 + 1e-6 * np.abs(design[population]).max(axis=0))
    hinge = hinges(evidence)
    ridge = Ridge(design, population)
    expected = ridge.predict(hinge)
    apart = hinge - expected
    spread = float(np.sqrt(np.mean(apart[population] ** 2))) or 1.0
    size = np.log(np.maximum(np.abs(apart), SMALLEST * spread))
    # Far from the population a linear prediction has no bounds: no row is given a smaller scale than any row has shown.
    scale = np.exp(np.clip(ridge.predict(size), size[population].min(), size[population].max()))
    return np.asarray(apart / scale)


def hinges(evidence: MembershipEvidence) -> Floats:
    """z_y - max of the other logits, (N,) nats; larger = surer and right."""
    others = evidence.logits.astype(np.float64)
    rows = np.arange(len(others))
    own = others[rows, evidence.label].copy()
    others[rows, evidence.label] = -np.inf
    return np.asarray(own - others.max(axis=1))


class Ridge:
    """Ridge regression on the `fitted` rows (N,) of design (N, F), whose fitted rows have mean 0.

    The penalty is the one with the smallest leave-one-out error (PRESS), in closed form; one decomposition serves
    every penalty and every value regressed.
    """

    def __init__(self, design: Floats, fitted: Bools) -> None:
        self._design, self._fitted = design, fitted
        self._left, self._singular, self._right = np.linalg.svd(design[fitted], full_matrices=False)
        self._squares = self._left**2

    def predict(self, value: Floats) -> Floats:
        """Predictions (N,) of value (N,), which is read in the fitted rows; each of theirs leaves the row out."""
        known = value[self._fitted]
        centre = float(known.mean())
        inner = self._left.T @ (known - centre)
        penalties = PENALTIES * len(known)
        errors = [self._left_out(known - centre, inner, penalty) for penalty in penalties]
        best = int(np.argmin([(error**2).sum() for error in errors]))
        weights = self._right.T @ (inner * self._singular / (self._singular**2 + penalties[best]))
        predicted = self._design @ weights + centre
        predicted[self._fitted] = known - errors[best]
        return np.asarray(predicted)

    def _left_out(self, centred: Floats, inner: Floats, penalty: float) -> Floats:
        """Error on each fitted row of the regression without it; its leverage includes the mean's own share."""
        shrink = self._singular**2 / (self._singular**2 + penalty)
        leverage = np.minimum(self._squares @ shrink + 1 / len(centred), 1 - 1e-9)
        return np.asarray((centred - self._left @ (shrink * inner)) / (1 - leverage))

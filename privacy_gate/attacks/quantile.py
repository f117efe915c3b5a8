"""What a model would say of a row it never saw, predicted from the row itself: quantile regression."""

import numpy as np

from privacy_gate.errors import EvidenceError
from privacy_gate.evidence import Bools, Floats, MembershipEvidence

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
    expected = _ridge(design, hinge, population)
    apart = hinge - expected
    spread = float(np.sqrt(np.mean(apart[population] ** 2))) or 1.0
    size = np.log(np.maximum(np.abs(apart), SMALLEST * spread))
    scale = np.exp(_ridge(design, size, population))
    return np.asarray(apart / scale)


def hinges(evidence: MembershipEvidence) -> Floats:
    """z_y - max of the other logits, (N,) nats; larger = surer and right."""
    others = evidence.logits.astype(np.float64)
    rows = np.arange(len(others))
    own = others[rows, evidence.label].copy()
    others[rows, evidence.label] = -np.inf
    return np.asarray(own - others.max(axis=1))


def _ridge(design: Floats, value: Floats, fitted: Bools) -> Floats:
    """Predictions (N,) of value (N,) by ridge regression on the `fitted` rows of design (N, F).

    The penalty is the one with the smallest leave-one-out error (PRESS), in closed form by one decomposition; the
    fitted rows' own predictions leave them out.
    """
    x, centre = design[fitted], float(value[fitted].mean())
    y = value[fitted] - centre
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    inner, best = left.T @ y, (np.inf, 0.0)
    for penalty in PENALTIES * len(x):
        shrink = singular**2 / (singular**2 + penalty)
        error = (y - left @ (shrink * inner)) / (1 - _leverage(left, shrink))
        best = min(best, (float((error**2).sum()), float(penalty)))
    shrink = singular**2 / (singular**2 + best[1])
    weights = right.T @ (inner * singular / (singular**2 + best[1]))
    predicted = design @ weights + centre
    error = (y - left @ (shrink * inner)) / (1 - _leverage(left, shrink))
    predicted[fitted] = value[fitted] - error
    return np.asarray(predicted)


def _leverage(left: Floats, shrink: Floats) -> Floats:
    """Of each fitted row, the mean's own share included; below 1."""
    return np.minimum(left**2 @ shrink + 1 / len(left), 1 - 1e-9)

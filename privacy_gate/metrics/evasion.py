"""How a model answers images that an adversary changed."""

import numpy as np

from privacy_gate.arrays import Bools, Ints
from privacy_gate.metrics.accuracy import accuracy
from privacy_gate.verdict.judgement import Measurement, not_measured
from privacy_gate.verdict.metric import SHARE, Metric

ROBUST_ACCURACY = Metric(
    "robust_accuracy",
    title="accuracy under the worst small change of the image",
    unit="share",
    range=SHARE,
    worse="lower",
    resolves="At least 20 holdout images; 36 for a limit of 0.9.",
    means="How often the model is still right if someone changes a person's image invisibly to deceive it.",
    remedy="Train adversarially, or filter inputs before they reach the model.",
)
UNIVERSAL_TRANSFER = Metric(
    "universal_transfer",
    title="answers changed by one universal change, crafted on the public backbone",
    unit="share",
    range=SHARE,
    worse="higher",
    resolves="At least 20 holdout images apart from those that the change is crafted on.",
    means="How often an attacker who never saw the model changes its answer with one pattern for all images.",
    remedy="Fine-tune more of the backbone, or train with such patterns.",
)
METRICS = (
    ROBUST_ACCURACY,
    UNIVERSAL_TRANSFER,
)

MASKED = {"guessed": 0.02, "wide": 0.1, "flat": 0.1}
"""Shares of the originally right rows above which gradients count as masked: rows that random changes fool and
gradients do not; rows that withstand changes which nothing withstands; rows without a gradient."""

WEAK = 0.3
"""A universal change must change this share of its own probe's answers, else it is not tried on another model."""

_SIGNS = {
    "guessed": "random changes fool {share:.0%} of the rows that gradients do not",
    "wide": "{share:.0%} of the rows withstand changes of a quarter of the range, although nothing can",
    "flat": "{share:.0%} of the rows have no gradient",
}


def robust_accuracy(
    right: Bools, standing: Bools, guessed: Bools, wide: Bools, flat: Bools, confidence: float
) -> Measurement:
    """Share of rows (R,) that are right, and still right under every attack; arrays as in job.Evade.

    Not measured if gradients are masked: the attacks then failed for another reason than robustness (Athalye et al.
    2018, arXiv 1802.00420). A row that a random change fools does not count as robust.
    """
    rows = int(right.sum())
    if rows:
        # Each sign is counted among rows that are right to begin with; others say nothing about gradients.
        shares = {"guessed": (guessed & standing).sum(), "wide": (wide & right).sum(), "flat": (flat & right).sum()}
        for sign, count in shares.items():
            if count / rows > MASKED[sign]:
                reason = f"gradients are masked: {_SIGNS[sign].format(share=count / rows)}; no attack is conclusive"
                return not_measured("robust_accuracy", reason)
    return accuracy(standing & ~guessed, confidence, ROBUST_ACCURACY)


def universal_transfer(plain: Ints, shifted: Ints, crafted: float, confidence: float) -> Measurement:
    """Share of rows (T,) whose answer a universal change alters; crafted: the same share for its own probe.

    Interval: Clopper-Pearson. Not measured if the change is too weak to fool its own probe.
    """
    # Written so that NaN is refused too.
    if not crafted >= WEAK:
        reason = f"the universal change alters {crafted:.0%} of its own probe's answers, needs {WEAK:.0%}: raise steps"
        return not_measured("universal_transfer", reason)
    return accuracy(np.asarray(plain != shifted), confidence, UNIVERSAL_TRANSFER)

"""The power law in the examples per class: how the leak falls as classes grow, and what that advises."""

import math

from privacy_gate.verdict import Remedy

SLOPES = {0.1: -0.509, 0.01: -0.554, 0.001: -0.628}
"""d log10(tpr - fpr) / d log10(S) at each fpr: arXiv 2402.06674, ViT-B head, LiRA."""

FARTHEST = 10.0
"""Beyond this factor the law is extrapolated further than its fit can carry."""


def shots_needed(tpr: float, fpr: float, shots: float, limit: float) -> float | None:
    """Examples per class at which tpr at `fpr` would fall to `limit`, if S `shots` gave `tpr`.

    tpr - fpr is proportional to S^slope. None where the limit is not above fpr, the level of
    guessing, or where there is nothing to lower.

    >>> round(shots_needed(tpr=0.21, fpr=0.01, shots=10, limit=0.11))
    35
    """
    if limit <= fpr or tpr <= limit:
        return None
    return float(shots * ((limit - fpr) / (tpr - fpr)) ** (1 / SLOPES[fpr]))


def remedy(tpr: float, fpr: float, shots: float, limit: float) -> Remedy:
    """What the power law advises a team whose limit on tpr at `fpr` is violated."""
    basis = (
        f"power law in the examples per class, slope {SLOPES[fpr]} at fpr {fpr:g} (arXiv 2402.06674), from {shots:g}"
    )
    needed = shots_needed(tpr, fpr, shots, limit)
    if needed is None:
        return Remedy(
            action=f"choose a limit above {fpr:g}: that is what guessing reaches at this false positive rate",
            basis="definition of the rate",
        )
    rounded = _round_up(needed)
    if needed / shots > FARTHEST:
        return Remedy(
            action=f"train on many more examples per class (the law says about {rounded:,}) and for fewer epochs, "
            "or with stronger regularisation",
            basis=f"{basis}; {needed / shots:.0f} times more examples is beyond what the law was fitted for: "
            "an order of magnitude, not a number",
        )
    return Remedy(action=f"train on about {rounded:,} examples per class instead of {shots:g}", basis=basis)


def _round_up(value: float) -> int:
    """Up to two significant digits.

    >>> _round_up(1234.5)
    1300
    """
    step = int(10 ** max(0, math.floor(math.log10(value)) - 1))
    return math.ceil(value / step) * step

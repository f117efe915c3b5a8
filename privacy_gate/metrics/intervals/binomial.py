"""What k successes in n trials say about a probability."""

from scipy.special import betaincinv


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a probability: Clopper & Pearson 1934. Covers at least as often as it says.

    In closed form: SciPy's `binomtest` searches for the ends, to 1e-12, and is hundreds of times slower. That is too
    coarse for the 1e12 rows which `fewest` may try.

    >>> low, high = clopper_pearson(0, 10, 0.95)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, trials - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, trials - successes, 1 - tail)) if successes < trials else 1.0
    return low, high

"""The published figures on digits for seven rules and ten attacks, and the conclusions from them."""

import itertools
from types import ModuleType

import numpy as np
import pytest

from privacy_gate.arrays import Floats
from privacy_gate.simulation.partitions import Partition, partition
from privacy_gate.simulation.simulator import Study, simulate

MEAN = "uniform_mean"
NNM = "nnm + trimmed_mean"

# Columns: IID, without attack and under the worst attack of two byzantine clients; alpha .5, without attack and under
# the worst attack of one and of two; alpha .1, the same. Means of three seeds.
KNOWN = {
    MEAN: (0.951, 0.098, 0.944, 0.107, 0.101, 0.938, 0.099, 0.100),
    "median": (0.946, 0.937, 0.909, 0.833, 0.787, 0.705, 0.520, 0.289),
    "trimmed_mean": (0.949, 0.935, 0.934, 0.897, 0.795, 0.775, 0.695, 0.376),
    "geometric_median": (0.951, 0.935, 0.942, 0.920, 0.885, 0.895, 0.840, 0.599),
    "multi_krum": (0.943, 0.927, 0.933, 0.912, 0.851, 0.819, 0.878, 0.735),
    "centered_clipping": (0.949, 0.929, 0.943, 0.921, 0.893, 0.917, 0.873, 0.775),
    NNM: (0.947, 0.932, 0.935, 0.913, 0.834, 0.818, 0.873, 0.749),
}
SEEDS = 12

Accuracy = dict[tuple[str, Partition, int, str | None], Floats]


@pytest.fixture(scope="module")
def accuracy(matrix: ModuleType) -> Accuracy:
    """Accuracies of SEEDS seeds, each with its own split, by rule, partition, byzantine clients and attack."""
    found: dict[tuple[str, Partition, int, str | None], list[float]] = {}
    for seed in range(SEEDS):
        cells = matrix.cells([partition("iid"), matrix.uneven(0.5), matrix.uneven(0.1)], [seed])
        train, test = matrix.digits(seed=seed)
        study = Study(train, test, "matrix", threads=2)
        for cell, outcome in zip(cells, simulate(study, cells), strict=True):
            found.setdefault((str(cell.rule), cell.partition, cell.byzantine, cell.adversary), []).append(
                outcome.accuracy
            )
    return {key: np.array(values) for key, values in found.items()}


def worst(accuracy: Accuracy, name: str, held: Partition, f: int) -> tuple[Floats, str | None]:
    """The accuracies under the attack with the lowest mean, and its name; f = 0: without attack."""
    chosen = {key[3]: value for key, value in accuracy.items() if key[:3] == (name, held, f)}
    attack = min(chosen, key=lambda each: float(chosen[each].mean()))
    return chosen[attack], attack


def miss(three: Floats, others: Floats) -> float:
    """Root mean square distance of means of three seeds (R, 8) from those of others (R, 8, S), in standard errors."""
    error = np.maximum(others.std(axis=-1, ddof=1), 0.005) * np.sqrt(1 / 3 + 1 / others.shape[-1])
    return float(np.sqrt(np.mean(((others.mean(axis=-1) - three) / error) ** 2)))


@pytest.mark.slow
def test_the_reference_matrix_is_met_as_well_as_three_of_our_seeds_meet_the_others(
    accuracy: Accuracy, matrix: ModuleType
) -> None:
    """Rules share splits and partitions of their seeds, so deviations are correlated, and variances are unequal.

    So the normal distribution gives no valid threshold; the deviations of our own seeds, three at a time, do.
    """
    iid, mild, strong = partition("iid"), matrix.uneven(0.5), matrix.uneven(0.1)
    settings = [(iid, 0), (iid, 2), *itertools.product([mild, strong], [0, 1, 2])]
    ours = np.array([[worst(accuracy, name, held, f)[0] for held, f in settings] for name in KNOWN])
    triples = [np.isin(np.arange(SEEDS), chosen) for chosen in itertools.combinations(range(SEEDS), 3)]
    own = [miss(ours[..., chosen].mean(axis=-1), ours[..., ~chosen]) for chosen in triples]
    assert miss(np.array(list(KNOWN.values())), ours) < np.quantile(own, 0.95) < 2


@pytest.mark.slow
def test_two_byzantine_clients_out_of_ten_break_the_mean_and_iid_hides_the_effect_of_skew(
    accuracy: Accuracy, matrix: ModuleType
) -> None:
    iid, skewed = partition("iid"), matrix.uneven(0.1)
    for held in (iid, matrix.uneven(0.5), skewed):
        assert worst(accuracy, MEAN, held, 2)[0].mean() < 0.15
    robust = [name for name in KNOWN if name != MEAN]
    assert min(worst(accuracy, name, iid, 2)[0].mean() for name in robust) > 0.91
    assert max(worst(accuracy, name, skewed, 2)[0].mean() for name in robust) < 0.85


@pytest.mark.slow
def test_under_skew_a_median_costs_more_accuracy_than_the_attack_it_prevents(
    accuracy: Accuracy, matrix: ModuleType
) -> None:
    skewed = matrix.uneven(0.1)
    tax = worst(accuracy, MEAN, skewed, 0)[0] - worst(accuracy, "median", skewed, 0)[0]
    assert tax.mean() > 0.10
    assert (
        worst(accuracy, MEAN, partition("iid"), 0)[0].mean() - worst(accuracy, "median", partition("iid"), 0)[0].mean()
        < 0.02
    )


@pytest.mark.slow
def test_no_single_attack_is_the_worst_for_every_rule(accuracy: Accuracy, matrix: ModuleType) -> None:
    named = {
        name: {worst(accuracy, name, held, 2)[1] for held in (partition("iid"), matrix.uneven(0.5), matrix.uneven(0.1))}
        for name in KNOWN
    }
    assert "ipm_10" in named[MEAN] & named["median"] & named["trimmed_mean"]
    assert "sign_flip" in named["multi_krum"]
    assert len(set().union(*named.values())) >= 3
    assert not set.intersection(*named.values())

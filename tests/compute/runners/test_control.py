"""The planted leak is memorised, and every attack finds it, whatever the scale of features."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from privacy_gate.arrays import Arrays, Floats
from privacy_gate.attacks import ATTACKS, strongest
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.release import Release
from privacy_gate.attacks.view import view_of
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.runners.control import FEWEST, MOST, PARTS, SIDES, TWINS, train_control
from privacy_gate.compute.training.heads import confidences, train_heads
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.dataset import Split
from privacy_gate.dossier.optimizers import Adam
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import EvidenceError
from privacy_gate.jobs.subsets import included
from privacy_gate.metrics.controls.plausibility import plausibility
from privacy_gate.metrics.controls.self_tests import control_evidence, positive_control

MACHINE = Machine(device="cpu", threads=1)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 images of digits as 64 features, in random order; labels."""
    pixels, label = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(label))
    return (pixels[order] / 16).astype(np.float32), label[order].astype(np.int64)


def split_of(seed: int, members: int = 700, holdout: int = 700, population: int = 397) -> np.ndarray:
    parts = np.repeat([Split.MEMBER, Split.HOLDOUT, Split.POPULATION], [members, holdout, population])
    return np.random.default_rng(seed).permutation(parts).astype(np.int8)


def scores(evidence: MembershipEvidence) -> dict[str, Floats]:
    return {name: attack.score(evidence) for name, attack in ATTACKS.items() if attack.unmet(evidence) is None}


def caught(arrays: Arrays) -> bool:
    evidence = control_evidence(arrays)
    found = scores(evidence)
    # The control has no loss traces, no head trained to convergence, and no changed images; and heads only if asked.
    without_heads = {name for name, attack in ATTACKS.items() if attack.weights} | {"label_lira"}
    untried = {"loss_trace", "self_influence", "consistency"} | (set() if "head" in arrays else without_heads)
    assert set(found) == set(ATTACKS) - untried
    return positive_control(evidence, found).held


@pytest.mark.parametrize("width", [16, 64])
def test_every_attack_finds_memorised_rows(width: int) -> None:
    features = digits()[0]
    if width < 64:
        features = features @ np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)
    assert all(caught(train_control(features, split_of(seed), MACHINE)) for seed in range(3))


@pytest.mark.parametrize("width", [16, 64, 300])
def test_every_attack_on_weights_finds_memorised_rows_in_heads_by_gradient_descent(width: int) -> None:
    features = digits()[0]
    if width != 64:
        features = features @ np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)
    for seed in range(3):
        arrays = train_control(features, split_of(seed), MACHINE, heads=True)
        assert arrays["head"].shape == (TWINS, SIDES, width + 1)
        assert caught(arrays)


@pytest.mark.parametrize(
    "release",
    [
        Release(),
        Release(outputs="logits"),
        Release(outputs="weights"),
        Release(outputs="top_k", k=1),
        Release(outputs="label"),
    ],
    ids=str,
)
def test_the_strongest_attacks_that_a_release_allows_find_the_leak_in_its_view(release: Release) -> None:
    evidence = view_of(control_evidence(train_control(digits()[0], split_of(0), MACHINE, heads=True)), release)
    found = scores(evidence)
    assert set(found) >= set(strongest(release, "head")) - {"consistency"}  # the control has no changed images
    assert positive_control(evidence, found).held


def test_without_heads_the_control_is_what_it_was() -> None:
    arrays = train_control(digits()[0], split_of(0), MACHINE)
    assert set(arrays) == {"rows", "features", "label", "included", "confidence", "residual", "logits"}
    assert control_evidence(arrays).reference_heads is None
    with_heads = train_control(digits()[0], split_of(0), MACHINE, heads=True)
    for name in ("rows", "features", "label", "included"):  # the planted rows, labels and training sets are the same
        np.testing.assert_array_equal(arrays[name], with_heads[name])


@pytest.mark.slow
def test_every_attack_finds_the_leak_in_fifty_out_of_fifty_audits() -> None:
    features = digits()[0]
    for heads in (False, True):
        assert all(caught(train_control(features, split_of(seed), MACHINE, heads=heads)) for seed in range(50))


def test_heads_that_learnt_other_rows_do_not_pass_as_the_planted_leak() -> None:
    arrays = dict(train_control(digits()[0], split_of(0), MACHINE))
    arrays["included"] = arrays["included"].copy()
    arrays["included"][0] = arrays["included"][1]  # as if rows and training sets were mismatched
    assert not caught(arrays)


def test_twins_train_on_audited_rows_and_never_on_the_population() -> None:
    split = split_of(1)
    arrays = train_control(digits()[0], split, MACHINE)
    audited, size = split[arrays["rows"]] != Split.POPULATION, MOST
    assert arrays["included"].shape == (TWINS, PARTS * size + 300)
    assert np.count_nonzero(audited) == PARTS * size
    assert not arrays["included"][:, ~audited].any()
    assert (arrays["included"].sum(axis=1) == size).all()
    assert (arrays["included"][1:, audited].sum(axis=0) >= 4).all()
    assert len(np.unique(arrays["rows"])) == len(arrays["rows"])


def test_the_features_scale_and_origin_do_not_matter() -> None:
    features, split = digits()[0], split_of(2)
    plain, moved = (train_control(x.astype(np.float32), split, MACHINE) for x in (features, features * 32 - 2))
    np.testing.assert_allclose(moved["confidence"], plain["confidence"], rtol=1e-2, atol=2e-2)


def test_a_pool_too_small_to_plant_a_leak_is_refused() -> None:
    features = digits()[0][:40]
    with pytest.raises(EvidenceError, match=f"which needs {PARTS * FEWEST}"):
        train_control(features, split_of(0, 20, 20, 0), MACHINE)


def recipe(**changes: float) -> Recipe:
    settings = {"epochs": 60, "batch_size": 16, "label_smoothing": 0.0, "weight_decay": 0.0, **changes}
    optimizer = Adam(name="adam", lr=1e-2, weight_decay=settings.pop("weight_decay"))
    settings |= {"epochs": int(settings["epochs"]), "batch_size": int(settings["batch_size"])}
    return Recipe(backbone=Backbone(name="identity"), classes=10, optimizer=optimizer, **settings)


POOL, MEMBERS = 200, 100


def behaviour_of(sets: np.ndarray, first: int, **changes: float) -> Floats:
    """phi (len(sets), POOL) of heads trained on subsets of digits; sets (models, 1797) bool."""
    features, label = digits()
    subsets = [(first + place, np.flatnonzero(chosen)) for place, chosen in enumerate(sets)]
    heads = sorted(train_heads(features, label, recipe(**changes), subsets, MACHINE), key=lambda head: head.index)
    return confidences(features[:POOL], label[:POOL], heads, MACHINE)[0]


def doubted(phi: Floats, declared: np.ndarray, references: Floats, sets: np.ndarray) -> float:
    """Share of candidates, one per row, whose dossier the control rejects."""
    failures = 0
    for target, member in zip(phi, declared, strict=True):
        evidence = MembershipEvidence(
            target=target,
            reference=references,
            included=sets[:, :POOL],
            label=digits()[1][:POOL],
            split=np.where(member[:POOL], Split.MEMBER, Split.HOLDOUT).astype(np.int8),
            logits=np.zeros((POOL, 10)),
        )
        failures += not all(control.held for control in plausibility(evidence))
    return failures / len(phi)


@pytest.mark.slow
def test_true_dossiers_are_plausible_and_false_ones_are_rejected() -> None:
    rows = len(digits()[1])
    pool = np.arange(rows) < POOL
    sets = np.stack([included(index, pool, MEMBERS) for index in range(64)])
    references = behaviour_of(sets, 0)
    rng = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        return np.stack([np.isin(np.arange(rows), rng.permutation(POOL)[:MEMBERS]) for _ in range(count)])

    honest, elsewhere = draw(200), np.tile(np.arange(rows) >= rows - MEMBERS, (10, 1))
    assert doubted(behaviour_of(honest, 1000), honest, references, sets) <= 0.01
    few = honest[:10]
    half, tenth, both = few.copy(), few.copy(), few | pool
    for own, partly, swapped in zip(few, half, tenth, strict=True):
        members, others = rng.permutation(np.flatnonzero(own)), rng.permutation(np.flatnonzero(pool & ~own))
        partly[members[:50]], partly[rows - 50 :] = False, True
        swapped[members[:10]], swapped[others[:10]] = False, True
    assert doubted(behaviour_of(elsewhere, 2000), few, references, sets) == 1.0  # none was trained on
    assert doubted(behaviour_of(half, 2000), few, references, sets) == 1.0  # half were not trained on
    assert doubted(behaviour_of(both, 2000), few, references, sets) == 1.0  # the holdout was also trained on
    assert doubted(behaviour_of(few, 2000), pool & ~few, references, sets) == 1.0  # members and holdout swapped
    assert doubted(behaviour_of(tenth, 2000), few, references, sets) >= 0.4  # a tenth swapped
    for changes in ({"epochs": 600}, {"weight_decay": 1e-2}, {"label_smoothing": 0.1}, {"batch_size": 32}):
        assert doubted(behaviour_of(few, 2000, **changes), few, references, sets) == 1.0, changes

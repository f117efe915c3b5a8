"""Evidence whose answer is known: planted leaks, none, and the logits that released code was run on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.attacks.evidence import MembershipEvidence, logit_scaled
from privacy_gate.attacks.heads import with_ones
from privacy_gate.attacks.release import Release, probabilities
from privacy_gate.dossier.dataset import Split

CHANGED = 4
"""Changed images of each row."""

DATA = Path(__file__).parents[1] / "data"
Plant = Callable[..., MembershipEvidence]


def logits_of(phi: Floats, label: Ints, classes: int, rng: np.random.Generator) -> Floats:
    """Logits (N, C) whose logit-scaled confidence is phi."""
    logits = rng.normal(size=(len(phi), classes))
    rows = np.arange(len(phi))
    logits[rows, label] = -np.inf
    logits[rows, label] = phi + np.log(np.exp(logits).sum(axis=1))
    return logits


def planted(
    seed: int,
    *,
    leak: float = 0.0,
    trained: bool = True,
    references: int = 32,
    inclusion: float = 0.5,
    pool: int = 600,
    population: int = 200,
    classes: int = 3,
    shift: float = 0.0,
) -> MembershipEvidence:
    """phi is the row's own difficulty, plus noise of each model, plus `leak` if the model was trained on the row.

    trained: the candidate saw its members; shift: added to every phi. The gradient span is noise plus `leak`; a label
    is right if phi exceeds `shift`, and labels of CHANGED images are right more often the larger phi.
    """
    rng = np.random.default_rng(seed)
    rows = pool + population
    split = np.full(rows, Split.POPULATION, dtype=np.int8)
    split[:pool] = rng.permutation(np.arange(pool) % 2)
    included = np.zeros((references, rows), dtype=bool)
    included[:, :pool] = rng.random((references, pool)) < inclusion
    order = rng.random((references, pool)).argsort(axis=0)  # every row in some and out of some
    np.put_along_axis(included[:, :pool], order[:4], np.array([True, False, True, False])[:references, None][:4], 0)
    difficulty = rng.normal(size=rows) * 2 + shift
    reference = difficulty + rng.normal(size=(references, rows)) + leak * included
    seen = (split == Split.MEMBER) & trained
    target = difficulty + rng.normal(size=rows) + leak * seen
    label = rng.integers(0, classes, rows)
    other = np.random.default_rng([seed, 1])
    span, steady = (np.empty((1 + references, rows)) for _ in range(2))
    for model, mask in enumerate([seen, *included]):
        span[model] = other.normal(size=rows) + leak * mask
        likely = 1 / (1 + np.exp(shift - difficulty - leak * mask))
        steady[model] = other.binomial(CHANGED, likely) / CHANGED
    return MembershipEvidence(
        target=target,
        reference=reference,
        included=included,
        label=label,
        split=split,
        logits=logits_of(target, label, classes, rng),
        reference_logits=logits_of(reference[0], label, classes, rng),
        features=rng.normal(size=(rows, 6)) + difficulty[:, None] / 2,
        trace=traces(target - shift, difficulty, rng),
        ridge=0.01,
        release=Release(outputs="weights"),
        span=span[0],
        reference_span=span[1:],
        right=target > shift,
        reference_right=reference > shift,
        steady=steady[0],
        reference_steady=steady[1:],
    )


def traces(target: Floats, start: Floats, rng: np.random.Generator) -> Floats:
    """Losses over nine epochs (N, 9) that go from the level of the row's difficulty to the candidate's final loss."""
    way = np.linspace(0, 1, 9)
    noise = 0.3 * rng.normal(size=(len(target), 9))
    return start[:, None] - (target - start)[:, None] * way + noise


def grown(
    seed: int,
    *,
    trained: bool = True,
    references: int = 20,
    pool: int = 300,
    population: int = 120,
    width: int = 200,
    classes: int = 4,
    epochs: int = 15,
    twice: int = 0,
) -> MembershipEvidence:
    """Heads that minibatch SGD really trained from zeros, the candidate's on half of the pool: their weights released.

    trained: the candidate saw its members, else the population in their place; twice: so many features are there twice.
    """
    rng = np.random.default_rng([seed, 2])
    rows, half = pool + population, pool // 2
    split = np.full(rows, Split.POPULATION, dtype=np.int8)
    split[:pool] = rng.permutation(np.arange(pool) % 2)
    sets = np.zeros((1 + references, rows), dtype=bool)
    sets[0] = split == (Split.MEMBER if trained else Split.POPULATION)
    for first in range(1, references, 2):  # by pairs, so that every row is in half of the training sets
        order = rng.permutation(pool)
        sets[first, order[:half]] = sets[first + 1, order[half:]] = True
    label = rng.integers(0, classes, rows)
    spread = 1 / np.sqrt(1 + np.arange(width))
    features = rng.normal(size=(rows, width)) @ (rng.normal(size=(width, width)) * spread) / np.sqrt(width)
    features += 0.1 * rng.normal(size=(classes, width))[label]
    features /= np.sqrt(np.mean(features**2))
    features[:, width - twice :] = features[:, :twice]
    heads = descend(features, label, sets, classes, epochs, rng)
    logits = with_ones(features) @ heads.transpose(0, 2, 1)
    phi, hit = logit_scaled(logits, label), logits.argmax(axis=2) == label
    return MembershipEvidence(
        target=phi[0],
        reference=phi[1:],
        included=sets[1:],
        label=label,
        split=split,
        logits=logits[0],
        reference_logits=logits[1],
        features=features,
        release=Release(outputs="weights"),
        head=heads[0],
        reference_heads=heads[1:],
        right=hit[0],
        reference_right=hit[1:],
    )


def descend(x: Floats, label: Ints, sets: Bools, classes: int, epochs: int, rng: np.random.Generator) -> Floats:
    """Heads (M, C, D + 1) after minibatch SGD from zeros, each on its own rows (M, N)."""
    inside, truth = with_ones(x), np.eye(classes)[label]
    heads = np.zeros((len(sets), classes, inside.shape[1]))
    rate = 3.0 / inside.shape[1]
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(x)), 10):
            p = probabilities(inside[batch] @ heads.transpose(0, 2, 1))
            error = (p - truth[batch]) * sets[:, batch, None]
            heads -= rate / 4 * error.transpose(0, 2, 1) @ inside[batch]
    return heads


def pair_share(member: Floats, holdout: Floats) -> float:
    """AUC by counting every pair."""
    return float(np.mean((member[:, None] > holdout) + 0.5 * (member[:, None] == holdout)))


@dataclass(frozen=True)
class Oracle:
    """64 references on digits, and the scores that released code gave them; rows of the pool."""

    evidence: MembershipEvidence
    online: dict[int, Floats]
    offline: Floats
    member: Bools

    def figures(self, scores: Floats) -> tuple[float, float]:
        """AUC and TPR at 1 % FPR."""
        member, holdout = scores[: len(self.member)][self.member], scores[: len(self.member)][~self.member]
        return pair_share(member, holdout), float(np.mean(member > np.sort(holdout)[-(len(holdout) // 100 + 1)]))


@pytest.fixture(scope="session")
def plant() -> Plant:
    return planted


@pytest.fixture(scope="session")
def grow() -> Plant:
    return grown


@pytest.fixture(scope="session")
def innocent() -> list[MembershipEvidence]:
    """100 audits of candidates that never saw their members, by references that leak."""
    return [planted(seed, leak=2.0, trained=False, references=16, pool=2000, population=100) for seed in range(100)]


@pytest.fixture(scope="session")
def auc() -> Callable[[Floats, Floats], float]:
    return pair_share


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    stored = np.load(DATA / "lira_oracle.npz")
    member, keep, label = stored["member"], stored["keep"], stored["y"].astype(np.int64)
    split = np.full(len(label), Split.POPULATION, dtype=np.int8)
    split[: len(member)] = np.where(member, Split.MEMBER, Split.HOLDOUT)
    included = np.zeros(stored["reference"].shape, dtype=bool)
    included[:, : len(member)] = keep
    evidence = MembershipEvidence(
        target=logit_scaled(stored["target"], label),
        reference=stored["reference"],
        included=included,
        label=label,
        split=split,
        logits=stored["target"],
        reference_logits=stored["reference_logits"],
    )
    online = {models: stored[f"google_{models}_online"] for models in (16, 64)}
    return Oracle(evidence, online, stored["google_64_offline"], member)

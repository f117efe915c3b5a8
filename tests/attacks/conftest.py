"""Evidence whose answer is known: planted leaks, none, and the logits that released code was run on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.attacks.evidence import MembershipEvidence, logit_scaled
from privacy_gate.dossier.dataset import Split

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

    trained: the candidate saw its members; shift: added to every phi.
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
    target = difficulty + rng.normal(size=rows) + leak * ((split == Split.MEMBER) & trained)
    label = rng.integers(0, classes, rows)
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
    )


def traces(target: Floats, start: Floats, rng: np.random.Generator) -> Floats:
    """Losses over nine epochs (N, 9) that go from the level of the row's difficulty to the candidate's final loss."""
    way = np.linspace(0, 1, 9)
    noise = 0.3 * rng.normal(size=(len(target), 9))
    return start[:, None] - (target - start)[:, None] * way + noise


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

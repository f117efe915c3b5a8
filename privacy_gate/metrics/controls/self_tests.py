"""Tests of the audit itself: could it be fooled, and could it have seen a leak?

plausibility.py tests whether the candidate matches its dossier.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence, logit_scaled
from privacy_gate.attacks.heads import Training, with_ones
from privacy_gate.attacks.release import right
from privacy_gate.dossier.dataset import Split
from privacy_gate.errors import EvidenceError
from privacy_gate.metrics.membership import auc, tpr_at_fpr
from privacy_gate.metrics.rates import needed_holdout
from privacy_gate.verdict.judgement import Control

LEVEL = 1e-3
"""Probability with which a control fails an audit that is in order."""

LEAST_ROWS = 30
"""Population and holdout rows from which rank statistics are close to normal as far out as LEVEL."""

LEAST_EXPECTED = 5
"""Expected rows of a class below which the chi-square approximation fails: rarer classes are pooled."""

TOP_SHARE, TOP_LEAST = 0.01, 10
"""The most accused rows: this share of all, but at least this number."""

CAUGHT_AUC, CAUGHT_TPR = 0.6, 0.2
"""Every attack must significantly exceed these on planted memorisation; chance is .5, and .1 at an fpr of .1."""

CAUGHT_CONFIDENCE = 0.99


def comparable(label: NDArray[np.int64], split: NDArray[np.int8], group: NDArray[np.str_] | None = None) -> Control:
    """Members and holdout come from the same distribution: no difference in their classes or groups.

    label, split, group (N,). Otherwise attacks would measure the difference instead of membership. Fails at LEVEL over
    both tests together (Bonferroni).
    """
    mixes = {"classes": same_mix(label, split)}
    if group is not None:
        mixes["groups"] = same_mix(group, split)
    least = LEVEL / len(mixes)
    held = all(p >= least for p in mixes.values())
    detail = ", ".join(f"{name} mixed alike among members and holdout: p = {p:.2g}" for name, p in mixes.items())
    detail += f" (fails below {least:.2g})"
    if not held:
        detail += ": attacks would measure this difference; draw members and holdout from one population at random"
    return Control(name="comparable", held=held, detail=detail)


def same_mix(values: NDArray[np.int64] | NDArray[np.str_], split: NDArray[np.int8]) -> float:
    """p-value of the chi-square test that values (N,) have the same distribution among members and holdout."""
    names, place = np.unique(values, return_inverse=True)
    table = np.stack(
        [np.bincount(place[split == part], minlength=len(names)) for part in (Split.MEMBER, Split.HOLDOUT)]
    )
    # Pool the rare values into one column: chi-square needs LEAST_EXPECTED rows in each cell.
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / max(table.sum(), 1)
    rare = expected.min(axis=0) < LEAST_EXPECTED
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.any(axis=1).all():
        return 1.0
    return float(stats.chi2_contingency(table).pvalue)


def distinct(content: NDArray[np.uint8], split: NDArray[np.int8]) -> Control:
    """No example is both a member and a holdout example.

    content (N, 32): sha256 of the content of each row; split (N,). Raises EvidenceError on another shape.
    """
    if content.shape != (len(split), 32):
        raise EvidenceError(f"content has shape {content.shape}, expected ({len(split)}, 32): a sha256 for each row")
    members, holdout = ({row.tobytes() for row in content[split == part]} for part in (Split.MEMBER, Split.HOLDOUT))
    twice = len(members & holdout)
    detail = f"{twice} of {len(holdout):,} different holdout examples are members too, byte for byte"
    if twice:
        detail += ": each is scored as both; remove it from one of the two"
    return Control(name="distinct", held=twice == 0, detail=detail)


def negative_control(evidence: MembershipEvidence, scores: Mapping[str, Floats]) -> list[Control]:
    """Population rows, on which no model was trained, score like the holdout.

    scores: by attack, (N,), larger = more likely a member. Two tests for each attack that scores population rows:
    population against holdout by ranks (Mann-Whitney, two-sided), and the share of the population among the most
    accused (hypergeometric, exact). The second is one-sided: an attack may have more references for population rows,
    know them better, and accuse fewer of them. Fails at LEVEL over all tests together (Bonferroni). Empty if there are
    too few rows, or no such attack.
    """
    population, holdout = evidence.population, evidence.holdout
    if min(np.count_nonzero(population), np.count_nonzero(holdout)) < LEAST_ROWS:
        return []
    tests = {
        name: _against_chance(values[population], values[holdout])
        for name, values in scores.items()
        if np.isfinite(values[population | holdout]).all()
    }
    if not tests:
        return []
    # Two tests per attack share LEVEL; the smallest p-value of all decides.
    least = LEVEL / (2 * len(tests))
    name, (chance, area, top) = min(tests.items(), key=lambda item: item[1][0])
    held = chance >= least
    detail = (
        f"{np.count_nonzero(population):,} population rows against {np.count_nonzero(holdout):,} holdout rows, "
        f"{len(tests)} {'attacks' if len(tests) > 1 else 'attack'}; furthest from chance: {name} with AUC {area:.3f}, "
        f"{top:.0%} population among the most accused, p = {chance:.2g} (fails below {least:.2g})"
    )
    if not held:
        detail += ": population and holdout are not drawn alike, or the model was trained on one of them"
    return [Control(name="negative control", held=held, detail=detail)]


def _against_chance(population: Floats, holdout: Floats) -> tuple[float, float, float]:
    """Smaller p-value of the two tests, AUC of population against holdout, population's share of the most accused."""
    ranks = stats.mannwhitneyu(population, holdout, alternative="two-sided", method="asymptotic")
    area = float(ranks.statistic) / (len(population) * len(holdout))
    both = np.sort(np.concatenate([population, holdout]))
    accused = max(math.ceil(TOP_SHARE * len(both)), TOP_LEAST)
    threshold = both[-accused]
    # Ties at the threshold all count, so `drawn` may be larger than `accused`.
    drawn, hits = np.count_nonzero(both >= threshold), np.count_nonzero(population >= threshold)
    above = float(stats.hypergeom.sf(hits - 1, len(both), len(population), drawn))
    return min(float(ranks.pvalue), above), area, float(hits / drawn)


def control_evidence(arrays: Mapping[str, NDArray[np.generic]]) -> MembershipEvidence:
    """The planted leak as evidence; every attack runs on it as on the candidate.

    arrays: the result of compute.control.train_control; model 0 is the target, the others are its references.
    """
    included, label = arrays["included"].astype(bool), arrays["label"].astype(np.int64)
    confidence, logits = arrays["confidence"].astype(np.float64), arrays["logits"].astype(np.float64)
    # Rows that no model trained on are population; of the others, those outside model 0 are its holdout.
    split = np.where(included.any(axis=0), Split.HOLDOUT, Split.POPULATION)
    heads = arrays["head"].astype(np.float64) if "head" in arrays else None
    features = arrays["features"].astype(np.float64)
    return MembershipEvidence(
        target=logit_scaled(logits[0], label),
        reference=confidence[1:],
        included=included[1:],
        label=label,
        split=np.where(included[0], Split.MEMBER, split).astype(np.int8),
        logits=logits[0],
        reference_logits=logits[1],
        residual=arrays["residual"][1:].astype(np.float64),
        features=features,
        head=None if heads is None else heads[0],
        reference_heads=None if heads is None else heads[1:],
        training=Training(),
        right=right(logits[0], label),
        reference_right=None if heads is None else right(with_ones(features) @ heads[1:].transpose(0, 2, 1), label),
    )


def positive_control(evidence: MembershipEvidence, scores: Mapping[str, Floats]) -> Control:
    """Every attack detects a leak that certainly exists: a model that memorised random labels.

    evidence: from `control_evidence`; scores: by attack on that evidence, (N,). An attack detects the leak if the low
    ends of its AUC and, if the rows resolve it, of its TPR at an fpr of .1 are well above chance. Fails if any attack
    misses the leak, and if none could be run.
    """
    member, holdout = evidence.member, evidence.holdout
    resolved = np.count_nonzero(holdout) >= needed_holdout(0.1)
    lines, held = [], bool(scores)
    for name, values in scores.items():
        area = auc(values[member], values[holdout], CAUGHT_CONFIDENCE)
        caught = area.low is not None and area.low > CAUGHT_AUC
        if resolved:
            rate = tpr_at_fpr(values[member], values[holdout], 0.1, CAUGHT_CONFIDENCE)
            caught = caught and rate.low is not None and rate.low > CAUGHT_TPR
        held = held and caught
        lines.append(f"{name} AUC {area.value:.3f} (>= {area.low:.3f}){'' if caught else ', not caught'}")
    detail = f"{np.count_nonzero(member)} examples with random labels, learnt by heart: " + ", ".join(
        lines or ["no attack"]
    )
    if not held:
        detail += ": this audit could not have seen a leak, whatever it measured on the candidate"
    return Control(name="positive control", held=held, detail=detail)

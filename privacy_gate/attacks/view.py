"""The attacker's view: evidence as the models made it, cut once to what the release shows."""

from dataclasses import replace

import numpy as np

from privacy_gate.arrays import Floats
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.heads import centred, with_ones
from privacy_gate.attacks.recovery import recover, recover_rounded
from privacy_gate.attacks.release import Release, confidence_of, released, rounded_confidence

BLOCK_VALUES = 2**24
"""Logits of references made at a time, 128 MB in float64."""


def view_of(evidence: MembershipEvidence, release: Release) -> MembershipEvidence:
    """The evidence that an attacker has who receives this release: what it hides is gone, for candidate and references.

    The attacker trains references, so their weights and all their answers are known to him; but he compares like with
    like, and so cuts theirs as the candidate's are cut.
    """
    bare = replace(evidence, release=release)
    if release.outputs == "label":
        return replace(bare, head=None, reference_heads=None, span=None, reference_span=None)
    if release.outputs == "weights":
        return bare
    bare = replace(bare, span=None, reference_span=None)
    if release.outputs == "top_k":
        return replace(_largest(bare, release), head=None, reference_heads=None)
    seen = _rounded(bare, release) if release.digits is not None else bare
    return _recovered(seen, release)


def _rounded(evidence: MembershipEvidence, release: Release) -> MembershipEvidence:
    def logs(logits: Floats) -> Floats:
        return np.log(np.maximum(released(logits, release), release.unit / 4))

    return replace(
        evidence,
        target=rounded_confidence(evidence.target, release),
        reference=rounded_confidence(evidence.reference, release),
        logits=logs(evidence.logits),
        reference_logits=None if evidence.reference_logits is None else logs(evidence.reference_logits),
    )


def _largest(evidence: MembershipEvidence, release: Release) -> MembershipEvidence:
    """Answers of the k largest classes; of references only heads tell their other classes."""
    if evidence.reference_heads is None or evidence.features is None:
        if len(evidence.reference):
            return replace(
                evidence, hidden="the references' other classes are not kept: only heads tell what top_k would show"
            )
        reference = evidence.reference
    else:
        x = with_ones(evidence.features)
        step = max(1, BLOCK_VALUES // (len(x) * evidence.logits.shape[1]))
        reference = np.concatenate(
            [
                confidence_of(
                    released(x @ evidence.reference_heads[first : first + step].transpose(0, 2, 1), release),
                    evidence.label,
                    release,
                )
                for first in range(0, len(evidence.reference_heads), step)
            ]
        )
    target = confidence_of(released(evidence.logits, release), evidence.label, release)
    return replace(evidence, target=target, reference=reference)


def _recovered(evidence: MembershipEvidence, release: Release) -> MembershipEvidence:
    """With the candidate's head as its answers tell it, in place of the true one."""
    if evidence.features is None or evidence.head is None:
        return replace(evidence, head=None, reference_heads=None)
    x = with_ones(evidence.features)
    own = x @ evidence.head.T.astype(np.float64)
    if release.digits is None or evidence.reference_heads is None:
        found = recover(x, released(own, release), release.unit)
        return replace(evidence, head=found.head, residual_of_head=found.residual)
    heads = centred(np.concatenate([evidence.head[None], evidence.reference_heads]).astype(np.float64))
    as_told = recover_rounded(x, heads, release)
    size = max(float(np.linalg.norm(x @ heads[0].T)), 1e-300)
    error = float(np.linalg.norm(x @ (as_told[0] - heads[0]).T)) / size
    return replace(evidence, head=as_told[0], reference_heads=as_told[1:], residual_of_head=error)

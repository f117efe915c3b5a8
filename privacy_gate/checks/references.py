"""The evidence that checks on membership share: the candidate and its references, from stored results."""

import numpy as np

from privacy_gate.checks.check import Results, Subject
from privacy_gate.evidence import MembershipEvidence, membership_evidence
from privacy_gate.job import Job, Score, embed_jobs, train_reference


def reference_jobs(subject: Subject, references: int) -> list[Job]:
    """Features, the candidate's logits, and so many references."""
    data = subject.data
    return [
        *embed_jobs(subject.recipe, data.digest, data.rows),
        Score(subject.artifact, subject.recipe, data.digest),
        *(train_reference(subject.recipe, data.digest, index) for index in range(references)),
    ]


def gather(subject: Subject, references: int, results: Results) -> MembershipEvidence:
    """The evidence from the results of `reference_jobs`. Raises EvidenceError, or StoreError where one is missing."""
    data = subject.data
    stored = [results(train_reference(subject.recipe, data.digest, index)) for index in range(references)]
    return membership_evidence(
        data,
        logits=results(Score(subject.artifact, subject.recipe, data.digest))["logits"],
        reference=np.stack([arrays["confidence"] for arrays in stored]),
        included=np.stack([arrays["included"] for arrays in stored]),
        reference_logits=stored[0]["logits"],
        residual=np.stack([arrays["residual"] for arrays in stored]),
    )

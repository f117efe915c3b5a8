"""The evidence that checks on membership share: the candidate and its references, from stored results."""

import hashlib
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.checks.base.check import Results, Subject, distinct_names
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View
from privacy_gate.jobs.kinds import Job, Score, TrainControl, embed_jobs, train_reference

AttackName = Annotated[str, AfterValidator(lambda name: distinct_names((name,), ATTACKS, "attack")[0])]
"""One of ATTACKS."""

AttackNames = Annotated[
    tuple[str, ...], Field(min_length=1), AfterValidator(lambda names: distinct_names(names, ATTACKS, "attack"))
]
"""Some of ATTACKS, each once."""

PLAIN = View()
"""A row as it stands."""


def feature_jobs(subject: Subject) -> list[Job]:
    """Features of every row in every view of the recipe; as it stands where more than a head is trained.

    Those serve the positive control alone.
    """
    recipe, data = subject.recipe, subject.data
    views = recipe.views if recipe.adaptation == "head" else recipe.views[:1]
    return [*embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows, views)]


def reference_jobs(subject: Subject, references: int) -> list[Job]:
    """Features, the candidate's logits, and so many references."""
    data = subject.data
    return [
        *feature_jobs(subject),
        Score(subject.artifact, subject.recipe, data.digest),
        *(train_reference(subject.recipe, data.digest, index) for index in range(references)),
    ]


def control_job(subject: Subject) -> TrainControl:
    """The positive control on the subject's features."""
    return TrainControl(subject.recipe.backbone, subject.recipe.input, subject.data.digest)


def contents(subject: Subject, results: Results) -> NDArray[np.uint8]:
    """sha256 of what every row shows, (N, 32): its encoded image, or its embedding's bytes."""
    data = subject.data
    if data.embedding is not None:
        hashes = (hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest() for row in data.embedding)
        return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)
    jobs = embed_jobs(subject.recipe.backbone, subject.recipe.input, data.digest, data.rows)
    return np.concatenate([results(job)["content"] for job in jobs])


def features(subject: Subject, results: Results, view: View = PLAIN) -> Floats:
    """Features of every row as it stands, or in another view, (N, D)."""
    recipe, data = subject.recipe, subject.data
    if data.embedding is not None:
        return data.embedding
    jobs = embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows, [view])
    return np.concatenate([results(job)["features"] for job in jobs])


def ridge(recipe: Recipe) -> float | None:
    """L2 coefficient of the recipe's training loss; None where the loss has another form. See MembershipEvidence."""
    changed = (recipe.label_smoothing, recipe.augmentation, recipe.privacy, recipe.federation)
    plain = recipe.adaptation == "head" and not any(changed)
    if not plain or recipe.optimizer.name == "adamw":
        return None
    return recipe.optimizer.weight_decay


def gather(subject: Subject, references: int, results: Results) -> MembershipEvidence:
    """The evidence from the results of `reference_jobs`. Raises UndecidedError where one is missing or unsound."""
    data = subject.data
    stored = [results(train_reference(subject.recipe, data.digest, index)) for index in range(references)]
    candidate = results(Score(subject.artifact, subject.recipe, data.digest))
    return MembershipEvidence(
        target=candidate["confidence"],
        reference=np.stack([arrays["confidence"] for arrays in stored]),
        included=np.stack([arrays["included"] for arrays in stored]),
        label=data.label,
        split=data.split,
        logits=candidate["logits"],
        reference_logits=stored[0]["logits"],
        residual=np.stack([arrays["residual"] for arrays in stored]),
        features=features(subject, results) if subject.recipe.adaptation == "head" else None,
        trace=data.trace,
        ridge=ridge(subject.recipe),
    )


def _unaccounted(recipe: Recipe, noise: float) -> str:
    if noise == 0:
        return "it adds no noise"
    if recipe.adaptation == "command":
        return "a program carries it out"
    return "Opacus was not where references were trained: pip install 'privacy-gate[dp]', and prepare a fresh --store"


def accounted(subject: Subject, results: Results) -> tuple[str, ...]:
    """What an accountant says of the recipe's own DP-SGD, or its federation's privacy, as a note; nothing without."""
    federation = subject.recipe.federation
    clients = federation.privacy if federation else None
    privacy = clients or subject.recipe.privacy
    if privacy is None:
        return ()
    what = "federation's privacy of clients" if clients else "DP-SGD"
    stored = results(train_reference(subject.recipe, subject.data.digest, 0))
    if "epsilon" not in stored:
        return (f"the recipe's {what} was not accounted for: {_unaccounted(subject.recipe, privacy.noise_multiplier)}",)
    found = f"epsilon {float(stored['epsilon'][0]):.3g} at delta {privacy.delta:g}"
    sampled = ", as if each client were drawn into a round by itself (Poisson sampling)" if clients else ""
    noisy = ", and all clients that are asked add their noise" if clients and clients.noise_by == "clients" else ""
    by = f"by Opacus' Renyi accountant{sampled}, if it was carried out as stated{noisy}"
    return (f"the recipe's {what} has {found}, {by}",)

"""The evidence that checks on membership share: the candidate and its references, from stored results."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from privacy_gate.arrays import Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.heads import Training, with_ones
from privacy_gate.attacks.release import Release, right
from privacy_gate.checks.base.check import Results, Subject, distinct_names
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.views import View
from privacy_gate.jobs.kinds import Job, Keeps, Score, TrainControl, TrainReference, embed_jobs, train_reference

AttackName = Annotated[str, AfterValidator(lambda name: distinct_names((name,), ATTACKS, "attack")[0])]
"""One of ATTACKS."""

AttackNames = Annotated[
    tuple[str, ...], Field(min_length=1), AfterValidator(lambda names: distinct_names(names, ATTACKS, "attack"))
]
"""Some of ATTACKS, each once."""

PLAIN = View()
"""A row as it stands."""


CHANGED_SHARE = 12
"""Changed images are moved by one part in so many of the input's side."""


def changed_views(recipe: Recipe) -> tuple[View, ...]:
    """Images moved up, down, left and right, which show whether a label stays right: see attacks.labels.consistency."""
    step = max(1, recipe.side // CHANGED_SHARE)
    return tuple(View(down=down, right=right) for down, right in ((-step, 0), (step, 0), (0, -step), (0, step)))


def feature_jobs(subject: Subject, *, changed: bool = False) -> list[Job]:
    """Features of every row in every view of the recipe; in the plain view alone if more than a head is trained.

    Then they serve the positive control alone. changed: also of images changed as attacks on labels change them.
    """
    recipe, data = subject.recipe, subject.data
    views = recipe.views if recipe.adaptation == "head" else recipe.views[:1]
    if changed and recipe.adaptation == "head":
        views = tuple(dict.fromkeys([*views, *changed_views(recipe)]))
    return [*embed_jobs(recipe.backbone, recipe.input, data.digest, data.rows, views)]


def keeps_of(recipe: Recipe, release: Release, attacks: Iterable[str]) -> Keeps:
    """What must be kept of the weights of the candidate and its references for these attacks, by name.

    Heads also tell what a release of the largest probabilities, or labels of changed images, would show.
    """
    listed = [ATTACKS[name] for name in attacks]
    by_weights = any(attack.weights for attack in listed) and release.shows("probabilities")
    if recipe.adaptation == "head":
        cut = release.outputs == "top_k" or any(attack.steady for attack in listed)
        return ("head",) if by_weights or cut else ()
    of_network = by_weights and release.shows("weights") and recipe.adaptation != "command"
    return ("span",) if of_network else ()


def reference_jobs(subject: Subject, references: int) -> list[Job]:
    """Features, the candidate's logits, and so many references."""
    return [
        *feature_jobs(subject),
        score_job(subject),
        *(reference_job(subject, index) for index in range(references)),
    ]


def score_job(subject: Subject) -> Score:
    """The candidate's answers, and what is kept of its weights."""
    return Score(subject.artifact, subject.recipe, subject.data.digest, subject.keeps)


def reference_job(subject: Subject, index: int) -> TrainReference:
    """Reference `index` on the whole pool, and what is kept of its weights."""
    return train_reference(subject.recipe, subject.data.digest, index, keeps=subject.keeps)


def control_job(subject: Subject) -> TrainControl:
    """The positive control on the subject's features; with its heads, if attacks on heads are to be tried on it."""
    kept: Keeps = ("head",) if "head" in subject.keeps else ()
    return TrainControl(subject.recipe.backbone, subject.recipe.input, subject.data.digest, kept)


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
    stored = [results(reference_job(subject, index)) for index in range(references)]
    candidate = results(score_job(subject))
    # Without what was asked for, attacks that need it are not measured, with the reason.
    held = [name for name in subject.keeps if stored and all(name in arrays for arrays in stored)]
    kept = {name: np.stack([arrays[name] for arrays in stored]) for name in held}
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
        head=candidate.get("head"),
        reference_heads=kept.get("head"),
        training=training_of(subject.recipe),
        span=candidate.get("span"),
        reference_span=kept.get("span"),
        right=right(candidate["logits"], data.label),
        reference_right=np.stack([arrays["correct"] for arrays in stored]) if "correct" in stored[0] else None,
    )


def training_of(recipe: Recipe) -> Training:
    """What an attacker who knows the recipe knows about how its heads move."""
    return Training(
        adaptive=recipe.optimizer.name in ("adam", "adamw"),
        random_start=recipe.head.initial != "zeros",
        label_smoothing=recipe.label_smoothing,
    )


def with_changed(subject: Subject, evidence: MembershipEvidence, results: Results) -> MembershipEvidence:
    """The evidence with labels of changed images: of heads, whose features in `changed_views` are stored."""
    if evidence.head is None or evidence.reference_heads is None or subject.data.embedding is not None:
        return evidence
    heads = np.concatenate([evidence.head[None], evidence.reference_heads]).astype(np.float32)
    share = np.zeros((len(heads), len(evidence.label)))
    views = changed_views(subject.recipe)
    for view in views:
        x = with_ones(features(subject, results, view)).astype(np.float32)
        for index, head in enumerate(heads):
            share[index] += right(x @ head.T, evidence.label) / len(views)
    return replace(evidence, steady=share[0], reference_steady=share[1:])


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
    stored = results(reference_job(subject, 0))
    if "epsilon" not in stored:
        return (f"the recipe's {what} was not accounted for: {_unaccounted(subject.recipe, privacy.noise_multiplier)}",)
    found = f"epsilon {float(stored['epsilon'][0]):.3g} at delta {privacy.delta:g}"
    sampled = ", as if each client were drawn into a round by itself (Poisson sampling)" if clients else ""
    noisy = ", and all clients that are asked add their noise" if clients and clients.noise_by == "clients" else ""
    by = f"by Opacus' Renyi accountant{sampled}, if it was carried out as stated{noisy}"
    return (f"the recipe's {what} has {found}, {by}",)

"""Validated arrays that attacks judge.

Axis letters, here and everywhere:
    M  reference models          N  rows of the audit table      D  features of the backbone
    C  classes                   K  clients                      G  groups
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privacy_gate.arrays import Bools, Floats, Ints
from privacy_gate.attacks.heads import Training
from privacy_gate.attacks.release import Release
from privacy_gate.dossier.dataset import Split
from privacy_gate.errors import EvidenceError


def logit_scaled(logits: Floats, label: Ints) -> Floats:
    """Logit-scaled confidence phi = log p_y - log sum_{y' != y} p_y', nats; larger = surer.

    logits (..., N, C), label (N,) -> (..., N). Carlini et al. 2022 (arXiv 2112.03570), section
    IV-C, in the form that does not cancel: z_y - logsumexp of the other logits.

    >>> float(logit_scaled(np.array([[2.0, 0.0]]), np.array([0]))[0])
    2.0
    """
    wide = np.asarray(logits, dtype=np.float64)
    others = wide.copy()
    index = np.broadcast_to(np.asarray(label)[:, None], (*wide.shape[:-1], 1))
    true = np.take_along_axis(wide, index, axis=-1)[..., 0]
    np.put_along_axis(others, index, -np.inf, axis=-1)
    top = others.max(axis=-1)
    rest = top + np.log(np.exp(others - top[..., None]).sum(axis=-1))
    return np.asarray(true - rest)


def log_probability(confidence: Floats) -> Floats:
    """log p_y, nats, from the logit-scaled confidence phi: -softplus(-phi); any shape."""
    return -np.logaddexp(0.0, -np.asarray(confidence, dtype=np.float64))


@dataclass(frozen=True)
class MembershipEvidence:
    """Everything a membership attack may look at, rows as in the audit table.

    target       (N,)    phi of the candidate: logit-scaled confidence, nats; larger = surer
    reference    (M, N)  phi of each reference model
    included     (M, N)  True where the row was in that reference's training set
    label        (N,)    true class, 0 <= label < C
    split        (N,)    Split.MEMBER, Split.HOLDOUT or Split.POPULATION
    logits       (N, C)  the candidate's logits, nats up to a constant per row
    reference_logits (N, C)  those of reference 0; None without references
    residual     (M, N)  norm of p - onehot(y) of each reference; None where not kept
    features     (N, D)  of the frozen backbone; None where more than a head was trained
    trace        (N, E)  loss after each of E epochs of the candidate's training, nats; None where not logged
    ridge        L2 coefficient r of the training loss, mean over members + r/2 |(W, b)|^2; None where it has
                 another form
    release      what the attacker sees; the arrays above are those of the models themselves until `view.view_of`
    head         (C, D + 1) of the candidate, bias last, as the attacker knows it; None if only a network has one
    residual_of_head  error of a recovered head's logits in units of their spread; 0 if the head is released
    reference_heads   (M, C, D + 1) of the references; None where not kept
    training     what the recipe says about how heads moved
    span, reference_span  (N,) and (M, N): the gradient span of a network's weights; None where not kept
    right, reference_right  (N,) and (M, N) bool: whether the predicted label is the true one
    steady, reference_steady  (N,) and (M, N): share of a row's changed images whose label is right; None if not asked
    hidden       why the references' answers cannot be cut to what the release shows; None if they can

    Raises EvidenceError on a wrong shape, a value that is not finite, no member or no holdout
    row, a population row inside a training set, or an audited row that is in all or in none of
    the training sets.
    """

    target: Floats
    reference: Floats
    included: Bools
    label: Ints
    split: NDArray[np.int8]
    logits: Floats
    reference_logits: Floats | None = None
    residual: Floats | None = None
    features: Floats | None = None
    trace: Floats | None = None
    ridge: float | None = None
    release: Release = field(default_factory=Release)
    head: Floats | None = None
    residual_of_head: float = 0.0
    reference_heads: Floats | None = None
    training: Training = field(default_factory=Training)
    span: Floats | None = None
    reference_span: Floats | None = None
    right: Bools | None = None
    reference_right: Bools | None = None
    steady: Floats | None = None
    reference_steady: Floats | None = None
    hidden: str | None = None
    memo: dict[str, Floats] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Statistics that several attacks share, by name; made once. `replace` starts with an empty one."""

    def __post_init__(self) -> None:
        rows, models = len(self.target), len(self.reference)
        expected: dict[str, tuple[int, ...]] = {
            "target": (rows,),
            "reference": (models, rows),
            "included": (models, rows),
            "label": (rows,),
            "split": (rows,),
            "logits": (rows, self.logits.shape[-1]),
            "reference_logits": (rows, self.logits.shape[-1]),
            "residual": (models, rows),
            "features": (rows, *(() if self.features is None else self.features.shape[1:2])),
            "trace": (rows, *(() if self.trace is None else self.trace.shape[1:2])),
            "head": self._head_shape(),
            "reference_heads": (models, *self._head_shape()),
            "span": (rows,),
            "reference_span": (models, rows),
            "right": (rows,),
            "reference_right": (models, rows),
            "steady": (rows,),
            "reference_steady": (models, rows),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != shape:
                raise EvidenceError(f"{name} has shape {array.shape}, expected {shape}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = int((~np.isfinite(array)).sum())
                raise EvidenceError(f"{name} has {bad} values that are not finite numbers, expected none")
        self._refuse_empty_or_never()

    def _head_shape(self) -> tuple[int, int]:
        return self.logits.shape[-1], 0 if self.features is None else self.features.shape[1] + 1

    def _refuse_empty_or_never(self) -> None:
        for name, split in (("member", Split.MEMBER), ("holdout", Split.HOLDOUT)):
            if not (self.split == split).any():
                raise EvidenceError(f"no {name} rows, expected at least 1")
        if not len(self.reference):
            return
        if self.included[:, ~self.pool].any():
            raise EvidenceError("population rows are inside a reference's training set, expected none")
        times = self.included[:, self.pool].sum(axis=0)
        never_in, never_out = int((times == 0).sum()), int((times == len(self.reference)).sum())
        if never_in or never_out:
            raise EvidenceError(
                f"of {times.size} audited rows {never_in} are in no reference's training set and {never_out} in "
                f"all of them, expected 0 and 0: use more than {len(self.reference)} references"
            )

    @property
    def pool(self) -> Bools:
        """(N,) True for the audited rows: members and holdout."""
        return np.asarray(self.split != Split.POPULATION)

    @property
    def member(self) -> Bools:
        """(N,) True for the rows the candidate was trained on."""
        return np.asarray(self.split == Split.MEMBER)

    @property
    def holdout(self) -> Bools:
        """(N,) True for the audited rows the candidate was not trained on."""
        return np.asarray(self.split == Split.HOLDOUT)

    @property
    def population(self) -> Bools:
        """(N,) True for the rows that only calibrate attacks."""
        return np.asarray(self.split == Split.POPULATION)

"""Data that checks add to their figures, for charts and lists in the report.

`RuleTable` is an exhibit too, but it contains judgements and is therefore in `judgement.py`.
"""

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import Record

Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]


class Roc(Record):
    """Receiver operating characteristic of one attack, thinned for drawing; fpr and tpr are in ascending order."""

    kind: Literal["roc"] = "roc"
    attack: str
    fpr: tuple[Rate, ...]
    tpr: tuple[Rate, ...]

    @model_validator(mode="after")
    def _a_curve(self) -> Self:
        if len(self.fpr) != len(self.tpr):
            raise ValueError(f"roc of {self.attack}: {len(self.fpr)} fpr, {len(self.tpr)} tpr, expected equally many")
        # A curve that goes back would be drawn as loops.
        if list(self.fpr) != sorted(self.fpr) or list(self.tpr) != sorted(self.tpr):
            raise ValueError(f"roc of {self.attack}: expected fpr and tpr to ascend")
        return self


class Histogram(Record):
    """How many scores of one attack lie between each pair of edges; there is one more edge than counts."""

    kind: Literal["histogram"] = "histogram"
    attack: str
    edges: Annotated[tuple[float, ...], Field(min_length=2)]
    member: tuple[Count, ...]
    holdout: tuple[Count, ...]

    @model_validator(mode="after")
    def _bins(self) -> Self:
        if not len(self.edges) - 1 == len(self.member) == len(self.holdout):
            raise ValueError(f"histogram of {self.attack}: expected one more edge than counts of either group")
        # A bin without width has no place to be drawn in.
        if any(left >= right for left, right in itertools.pairwise(self.edges)):
            raise ValueError(f"histogram of {self.attack}: expected edges to ascend")
        return self


class LawPlot(Record):
    """A power law at one fpr, log10(excess) = intercept + slope log10(shots), and its points.

    shots   examples per class
    excess  measured tpr - fpr at each number of examples
    """

    kind: Literal["law"] = "law"
    fpr: Rate
    # Both axes are logarithmic: 0 and negative values cannot be drawn.
    shots: Annotated[tuple[Above0, ...], Field(min_length=1)]
    excess: tuple[Above0, ...]
    slope: float
    intercept: float

    @model_validator(mode="after")
    def _points(self) -> Self:
        if len(self.shots) != len(self.excess):
            raise ValueError(f"power law at fpr {self.fpr:g}: expected as many shots as excesses")
        return self


class VulnerableRow(Record):
    """One audited row, named by its hash from `dataset.hashed_ids`, and how exposed it is.

    vulnerability  (mu_in - mu_out) / sigma, shrunk towards the mean of all rows to correct for sampling noise
    tpr            share of attacks that identify it at the table's fpr if it was trained on
    memorisation   mean p_y over the models trained on it, minus the mean over the other models
    gradient       norm of its loss gradient at the end of training; None if not measured
    """

    # Only a hash, never the id itself: a report must not contain a training record or its name.
    name: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    label: Count
    split: Literal["member", "holdout"]
    vulnerability: float
    tpr: Rate
    memorisation: Annotated[float, Field(ge=-1, le=1)]
    gradient: Annotated[float, Field(ge=0)] | None = None


class VulnerableRows(Record):
    """The most exposed of `audited` rows, most exposed first."""

    kind: Literal["vulnerable_rows"] = "vulnerable_rows"
    fpr: Rate
    audited: Count
    rows: Annotated[tuple[VulnerableRow, ...], Field(min_length=1)]


class GradientScatter(Record):
    """Gradient norm at the end of training and vulnerability of some of the audited rows, without their names."""

    kind: Literal["gradient_scatter"] = "gradient_scatter"
    gradient: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
    vulnerability: tuple[float, ...]
    audited: Count

    @model_validator(mode="after")
    def _points(self) -> Self:
        if len(self.gradient) != len(self.vulnerability):
            raise ValueError("gradient scatter: expected as many gradients as vulnerabilities")
        return self


class ByzantineLine(Record):
    """Accuracy of one aggregation rule under the worst attack, for each number of byzantine clients from 0 on."""

    rule: str
    byzantine: tuple[Count, ...]
    accuracy: tuple[Rate, ...]

    @model_validator(mode="after")
    def _points(self) -> Self:
        if len(self.byzantine) != len(self.accuracy) or list(self.byzantine) != sorted(set(self.byzantine)):
            raise ValueError(f"{self.rule}: expected an accuracy for each ascending number of byzantine clients")
        return self


class ByzantinePlot(Record):
    """Effect of hostile clients on a federation of `clients`: one line per rule, the recipe's own rule first."""

    kind: Literal["byzantine"] = "byzantine"
    clients: Count
    lines: Annotated[tuple[ByzantineLine, ...], Field(min_length=1)]

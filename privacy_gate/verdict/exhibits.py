"""What checks show beside their figures, to be drawn or listed. `verdict.RuleTable`, which judges, stands there."""

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import Record

Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]


class Roc(Record):
    """Receiver operating characteristic of one attack, thinned for drawing; fpr and tpr ascend."""

    kind: Literal["roc"] = "roc"
    attack: str
    fpr: tuple[Rate, ...]
    tpr: tuple[Rate, ...]

    @model_validator(mode="after")
    def _a_curve(self) -> Self:
        if len(self.fpr) != len(self.tpr):
            raise ValueError(f"roc of {self.attack}: {len(self.fpr)} fpr, {len(self.tpr)} tpr, expected equally many")
        if list(self.fpr) != sorted(self.fpr) or list(self.tpr) != sorted(self.tpr):
            raise ValueError(f"roc of {self.attack}: expected fpr and tpr to ascend")
        return self


class Histogram(Record):
    """Counts of one attack's scores between edges (one more edge than counts)."""

    kind: Literal["histogram"] = "histogram"
    attack: str
    edges: Annotated[tuple[float, ...], Field(min_length=2)]
    member: tuple[Count, ...]
    holdout: tuple[Count, ...]

    @model_validator(mode="after")
    def _bins(self) -> Self:
        if not len(self.edges) - 1 == len(self.member) == len(self.holdout):
            raise ValueError(f"histogram of {self.attack}: expected one more edge than counts of either group")
        if any(left >= right for left, right in itertools.pairwise(self.edges)):
            raise ValueError(f"histogram of {self.attack}: expected edges to ascend")
        return self


class LawPlot(Record):
    """A power law at one fpr, log10(excess) = intercept + slope log10(shots), and its points.

    shots   examples per class
    excess  tpr - fpr measured there
    """

    kind: Literal["law"] = "law"
    fpr: Rate
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
    """One audited row, by the name that `dataset.hashed_ids` gives it, and how exposed it is.

    vulnerability  (mu_in - mu_out) / sigma, drawn towards the other rows' as far as it may be chance
    tpr            share of attacks that find it at the table's fpr, were it trained on
    memorisation   mean p_y over models trained on it, less that over the others
    gradient       norm of its loss gradient at the end of training; None where not measured
    """

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
    """Gradient norm at the end of training and vulnerability of some of the audited rows, unnamed."""

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
    """One rule's accuracy under the worst attack, by the number of byzantine clients, from 0 on."""

    rule: str
    byzantine: tuple[Count, ...]
    accuracy: tuple[Rate, ...]

    @model_validator(mode="after")
    def _points(self) -> Self:
        if len(self.byzantine) != len(self.accuracy) or list(self.byzantine) != sorted(set(self.byzantine)):
            raise ValueError(f"{self.rule}: expected an accuracy for each ascending number of byzantine clients")
        return self


class ByzantinePlot(Record):
    """What hostile clients, out of so many, do to a federation, a line for each rule; the recipe's own first."""

    kind: Literal["byzantine"] = "byzantine"
    clients: Count
    lines: Annotated[tuple[ByzantineLine, ...], Field(min_length=1)]

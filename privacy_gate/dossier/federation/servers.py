"""How a server applies the aggregated update."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import InDigest, Positive, Record
from privacy_gate.dossier.federation.parameters import refuse_misplaced

SERVER_PARAMETERS = {"momentum": ("avgm", "adam", "yogi"), "decay": ("adam", "yogi"), "tau": ("adam", "yogi")}
"""Server optimizers that have a parameter, by parameter."""


class ServerOptimizer(Record):
    """How the server applies the aggregated update: avg adds it; avgm, adam and yogi follow Reddi et al. 2021.

    tau  term that adam and yogi add to the square root in the denominator; default: 0.001
    """

    name: Literal["avg", "avgm", "adam", "yogi"] = "avg"
    lr: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[Positive | None, InDigest.IF_CHANGED] = None

    @model_validator(mode="after")
    def _parameters_belong(self) -> Self:
        # Compared with the defaults, because a recipe that was read and written again states every parameter.
        changed = [name for name in SERVER_PARAMETERS if getattr(self, name) != type(self).model_fields[name].default]
        refuse_misplaced(self.name, dict.fromkeys(changed), SERVER_PARAMETERS)
        return self

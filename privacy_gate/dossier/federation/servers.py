"""What a server does with the joined update."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import InDigest, Positive, Record
from privacy_gate.dossier.federation.parameters import refuse_misplaced

SERVER_PARAMETERS = {"momentum": ("avgm", "adam", "yogi"), "decay": ("adam", "yogi"), "tau": ("adam", "yogi")}
"""Likewise of server optimisers."""


class ServerOptimizer(Record):
    """What the server does with the joined update: avg adds it; avgm, adam and yogi are Reddi et al. 2021's.

    tau  what adam and yogi add to the square root they divide by: 0.001 unless set
    """

    name: Literal["avg", "avgm", "adam", "yogi"] = "avg"
    lr: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[Positive | None, InDigest.IF_CHANGED] = None

    @model_validator(mode="after")
    def _parameters_belong(self) -> Self:
        # A value that is the default's changes nothing, and a recipe that was read and written again holds all of them.
        changed = [name for name in SERVER_PARAMETERS if getattr(self, name) != type(self).model_fields[name].default]
        refuse_misplaced(self.name, dict.fromkeys(changed), SERVER_PARAMETERS)
        return self

"""Checks: which jobs a limit needs, and what their results measure. A new check is one name here."""

from typing import Annotated

from pydantic import Field

from privacy_gate.checks.backdoor import Backdoor
from privacy_gate.checks.corruption import Corruption
from privacy_gate.checks.disparity import Disparity
from privacy_gate.checks.dp_claim import DpClaim
from privacy_gate.checks.evasion import Evasion
from privacy_gate.checks.fairness import Fairness
from privacy_gate.checks.inversion import Inversion
from privacy_gate.checks.membership import Membership
from privacy_gate.checks.power_law import PowerLaw
from privacy_gate.checks.recipe import RecipeLeak
from privacy_gate.checks.robustness import Robustness
from privacy_gate.checks.stress import SystemStress
from privacy_gate.checks.trajectory import TrajectoryMia
from privacy_gate.checks.utility import Utility
from privacy_gate.checks.vulnerability import Vulnerability

AnyCheck = Annotated[
    Backdoor
    | Corruption
    | Disparity
    | DpClaim
    | Evasion
    | Fairness
    | Inversion
    | Membership
    | PowerLaw
    | RecipeLeak
    | Robustness
    | SystemStress
    | TrajectoryMia
    | Utility
    | Vulnerability,
    Field(discriminator="check"),
]

"""Checks: which jobs a limit needs, and how their results are measured.

To add one, write a file here with a subclass of Check, which declares everything that reports and verdicts need to know
about it, and add the class to AnyCheck. For a new kind of job, see jobs.kinds.Job.
"""

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field

from privacy_gate.checks.backdoor import Backdoor
from privacy_gate.checks.base.check import Check
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
"""Any of the checks, as policies write them."""

_KINDS: tuple[type[Check], ...] = get_args(get_args(AnyCheck)[0])

CHECKS: Mapping[str, type[Check]] = {kind.model_fields["check"].default: kind for kind in _KINDS}
"""Every check by its name in policies."""

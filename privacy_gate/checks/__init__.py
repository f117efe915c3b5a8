"""Checks: which jobs a limit needs, and what their results measure. A new check is one name here."""

from typing import Annotated

from pydantic import Field

from privacy_gate.checks.membership import Membership
from privacy_gate.checks.power_law import PowerLaw
from privacy_gate.checks.recipe import RecipeLeak
from privacy_gate.checks.utility import Utility

AnyCheck = Annotated[Membership | PowerLaw | RecipeLeak | Utility, Field(discriminator="check")]

"""The numbers of updates that rules and attacks need in a round. Checked before training starts, so without torch.

n: updates received in a round; f: the number of byzantine updates that a rule tolerates (the recipe's `tolerates`).
"""

import math
from collections.abc import Mapping, Sequence

from privacy_gate.dossier.federation.attendance import Attendance

NEEDS: dict[str, tuple[int, int]] = {
    "mean": (0, 1),
    "uniform_mean": (0, 1),
    "capped_mean": (0, 1),
    "median": (2, 1),
    "trimmed_mean": (2, 1),
    "krum": (2, 3),  # Blanchard et al. 2017
    "multi_krum": (2, 3),
    "bulyan": (4, 3),  # El Mhamdi et al. 2018
    "geometric_median": (2, 1),
    "centered_clipping": (2, 1),
    "minimum_diameter": (2, 1),
    "meamed": (2, 1),
    "norm_clipping": (2, 1),
    "fltrust": (0, 1),
    "q_fedavg": (0, 1),
    "nnm": (2, 1),
    "bucketing": (0, 1),
    "clip": (0, 1),
    "arc": (2, 1),
}
"""(a, b) by name of a rule or of a step before it, which needs n >= a f + b updates."""

SUBSETS = 5000
"""Most subsets of updates that minimum_diameter compares; the number grows as n over f."""

BUCKET = 2
"""Updates per bucket, if the recipe does not set `size`."""

Steps = Sequence[tuple[str, Mapping[str, float]]]
"""The steps that a server applies to the updates, in order: name and parameters."""


def unmet(
    steps: Steps, tolerates: int, attendance: Attendance, attack: tuple[str, int] | None = None, *, root: bool = True
) -> str | None:
    """Why a federation cannot be trained with these settings; None if it can.

    tolerates  the f that the steps are given
    attack     name of an attack and number of attacking clients; None: no attack
    root       whether the server has rows of its own

    >>> unmet([("median", {})], 2, Attendance(clients=10))
    >>> print(unmet([("bucketing", {}), ("krum", {})], 2, Attendance(clients=10)))
    krum with tolerates: 2 needs at least 7 updates a round, found 5: lower tolerates, or let more clients take part
    """
    name, byzantine = attack or ("", 0)
    if byzantine >= attendance.clients:
        return f"{byzantine} of {attendance.clients} clients cannot attack: lower byzantine, so that one is honest"
    if not root and any(rule == "fltrust" for rule, _ in steps):
        return "fltrust needs rows of the server's own: add population rows to the table, or choose another aggregator"
    # A stress that rounds to nothing would be reported as harmless.
    if reason := unmet_by_stress(attendance):
        return reason
    honest, bad = attendance.participants(byzantine)
    if reason := unmet_by_steps(steps, tolerates, honest + bad):
        return reason
    return unmet_by_attack(name, honest + bad, bad) if attack else None


def unmet_by_steps(steps: Steps, f: int, n: int) -> str | None:
    """Why the steps cannot be applied to n updates, one after the other; None if they can."""
    for name, parameters in steps:
        size = int(parameters.get("size", BUCKET))
        if reason := unmet_by_step(name, f, n, size):
            return reason
        n = math.ceil(n / size) if name == "bucketing" else n  # the next step receives one update per bucket
    return None


def unmet_by_step(name: str, f: int, n: int, size: int = BUCKET) -> str | None:
    """Why one rule, or a step before it, cannot be applied to n updates; None if it can. size: updates per bucket."""
    per_byzantine, base = (0, size) if name == "bucketing" else NEEDS[name]
    needed = per_byzantine * f + base
    if name == "bucketing" and size < 2:
        return f"bucketing has size {size}, expected at least 2"
    if f < 0:
        return f"{name} has tolerates: {f}, expected at least 0"
    if n < needed:
        return (
            f"{name} with tolerates: {f} needs at least {needed} updates a round, found {n}: "
            "lower tolerates, or let more clients take part"
        )
    if name == "minimum_diameter" and math.comb(n, f) > SUBSETS:
        return f"{name} would compare more than {SUBSETS} subsets of {n} updates: use krum or nnm instead"
    return None


def unmet_by_rows(rows: int, clients: int, minimum: int) -> str | None:
    """Why the rows do not suffice for this many clients; None if they do. minimum: rows that each client needs."""
    if rows >= clients * minimum:
        return None
    return f"{rows:,} rows cannot give {clients:,} clients {minimum} each: use fewer clients or a smaller minimum"


def unmet_by_stress(attendance: Attendance) -> str | None:
    """Why gone, absent or stale rounds to zero clients; None if each that is set affects a client."""
    reachable, asked, present = attendance.reachable(0), sum(attendance.asked(0)), sum(attendance.participants(0))
    clients = f"with {attendance.clients} clients, {asked} asked in a round, affects no client"
    if attendance.gone and reachable == attendance.clients:
        return f"gone: {attendance.gone:g} {clients}: raise gone, or use more clients"
    if attendance.absent and present == asked:
        return f"absent: {attendance.absent:g} {clients}: raise absent, or ask more clients"
    if attendance.stale and not attendance.late(0, 1):
        return f"stale: {attendance.stale:g} {clients}: raise stale, or ask more clients"
    return None


def unmet_by_attack(name: str, n: int, f: int) -> str | None:
    """Why f of a round's n clients cannot attack; None if they can.

    With f = 0 there is no attack, so a rule must not pass for having survived it. If half of the clients attack, no
    rule can tell which half is honest.
    """
    if f < 1:
        return f"{name}: none of the {n} clients in a round is byzantine: raise participation or byzantine"
    if 2 * f >= n:
        return f"{name}: {f} of the {n} clients in a round attack, expected a minority: lower byzantine, or add clients"
    return None

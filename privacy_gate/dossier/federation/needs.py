"""What rules and attacks need of a round, asked before anything is trained: so torch is not imported here.

Axis letters here: n updates received in a round, of which a rule is told that at most f are byzantine.
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
    "krum": (2, 3),
    "multi_krum": (2, 3),
    "bulyan": (4, 3),
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
"""By rule, and by what may stand before one, a and b: it needs n >= a f + b."""

SUBSETS = 5000
"""Subsets of clients that the minimum diameter is looked for among, at most."""

BUCKET = 2
"""Updates of one bucket, unless said otherwise."""

Steps = Sequence[tuple[str, Mapping[str, float]]]
"""What a server does to the updates, in order: by name, with parameters."""


def unmet(
    steps: Steps, told: int, attendance: Attendance, attack: tuple[str, int] | None = None, *, root: bool = True
) -> str | None:
    """Why a federation cannot be trained so, in words; None where it can.

    told    the f of which the steps are told
    attack  by name, and how many of all clients attack; None: nobody
    root    whether the server has rows of its own

    >>> unmet([("median", {})], 2, Attendance(clients=10))
    >>> print(unmet([("bucketing", {}), ("krum", {})], 2, Attendance(clients=10)))
    krum told of 2 byzantine clients needs at least 7 updates a round, found 5: tell it of fewer, or ask more clients
    """
    name, byzantine = attack or ("", 0)
    if byzantine >= attendance.clients:
        return f"{byzantine} of {attendance.clients} clients cannot attack: let fewer, so that one at least is honest"
    if not root and any(each == "fltrust" for each, _ in steps):
        return "fltrust needs rows of the server's own: give some as population, or choose another rule"
    if reason := unmet_by_stress(attendance):
        return reason
    honest, bad = attendance.participants(byzantine)
    return unmet_by_steps(steps, told, honest + bad) or (unmet_by_attack(name, honest + bad, bad) if attack else None)


def unmet_by_steps(steps: Steps, f: int, n: int) -> str | None:
    """Why the steps cannot join n updates, one after the other; None where they can."""
    for name, parameters in steps:
        size = int(parameters.get("size", BUCKET))
        if reason := unmet_by_step(name, f, n, size):
            return reason
        n = math.ceil(n / size) if name == "bucketing" else n
    return None


def unmet_by_step(name: str, f: int, n: int, size: int = BUCKET) -> str | None:
    """Why one rule, or what stands before it, cannot take n updates; None where it can. size: of a bucket."""
    each, more = (0, size) if name == "bucketing" else NEEDS[name]
    if name == "bucketing" and size < 2:
        return f"bucketing puts {size} updates in a bucket, expected at least 2"
    if f < 0:
        return f"{name} is told of {f} byzantine clients, expected at least 0"
    if n < each * f + more:
        return (
            f"{name} told of {f} byzantine clients needs at least {each * f + more} updates a round, found {n}: "
            "tell it of fewer, or ask more clients"
        )
    if name == "minimum_diameter" and math.comb(n, f) > SUBSETS:
        return f"{name} would compare more than {SUBSETS} subsets of {n} updates: use krum or nnm instead"
    return None


def unmet_by_rows(rows: int, clients: int, minimum: int) -> str | None:
    """Why so many clients cannot share these rows; None where they can. minimum: fewest that a client holds."""
    if rows >= clients * minimum:
        return None
    return f"{rows:,} rows cannot give {clients:,} clients {minimum} each: use fewer clients or a smaller minimum"


def unmet_by_stress(attendance: Attendance) -> str | None:
    """Why what is asked to go wrong never would, with so few clients; None where it does."""
    there, asked, answer = attendance.reachable(0), sum(attendance.asked(0)), sum(attendance.participants(0))
    of = f"of {attendance.clients} clients, {asked} of them asked in a round"
    if attendance.gone and there == attendance.clients:
        return f"a share of {attendance.gone:g} {of}, is nobody who could be gone: raise gone, or take more clients"
    if attendance.absent and answer == asked:
        return f"a share of {attendance.absent:g} {of}, is nobody who could be absent: raise absent, or ask more"
    if attendance.stale and not attendance.late(0, 1):
        return f"a share of {attendance.stale:g} {of}, is nobody who could be late: raise stale, or ask more"
    return None


def unmet_by_attack(name: str, n: int, f: int) -> str | None:
    """Why f of a round's n clients cannot attack so; None where they can.

    An attack by nobody is none: what it leaves unharmed has not been tried. Where half of a round attacks, no rule
    knows who is honest.
    """
    if f < 1:
        return f"{name}: of the {n} clients of a round none is byzantine: ask more clients, or let more attack"
    if 2 * f >= n:
        return f"{name}: {f} of the {n} clients of a round attack, no minority: ask more clients, or let fewer attack"
    return None

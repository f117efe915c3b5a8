"""What a federation's rounds tell whoever reads them (arXiv 2402.01857: unauthorized disclosure, confidentiality
propagation)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privacy_gate.arrays import Ints
from privacy_gate.checks.base.check import NO_FEDERATION, Results, Subject, WhereDeclared
from privacy_gate.checks.base.references import feature_jobs
from privacy_gate.dossier.dataset import Split
from privacy_gate.jobs.kinds import Job, Trajectory
from privacy_gate.metrics.parties.disparity import accusations
from privacy_gate.metrics.parties.groups import disparate_mia
from privacy_gate.metrics.rates import needed_holdout
from privacy_gate.metrics.trajectory import FPR, source_inference_advantage, trajectory_tpr
from privacy_gate.simulation.leaks.trajectory import FEWEST_CLIENTS, FEWEST_ROUNDS, SIGNALS, guessed, own
from privacy_gate.verdict.judgement import CheckResult, Limit, Measurement, not_measured

TrajectoryMetric = Literal["trajectory_tpr", "source_inference_advantage", "client_mia_gap", "client_mia_gap_p_value"]

FAR = 0.1
"""How far the log may end from the candidate, in lengths of the candidate's head: one round of late training is less,
another model is more. A rule other than the mean joins the last round otherwise, by less than that round's length."""


class TrajectoryMia(WhereDeclared):
    """Membership and source inference from the round log; no reference models are needed.

    Every client that holds members must be in FEWEST_ROUNDS rounds of FEWEST_CLIENTS clients at least: of the members
    of one seldom read nothing is known.

    trajectory_tpr: members identified from their own client's updates, at a false positive rate of 1 %.
    source_inference_advantage: how much oftener a member's client is named than by naming the largest.
    client_mia_gap: how much more of one client's members are found than of another's, at one threshold.

    permutations  of clients among members, for the last one's p-value
    required      see WhereDeclared
    """

    title: ClassVar[str] = "What the federation's rounds reveal"
    attack_class: ClassVar[str | None] = "membership from a federation's rounds"
    left_open: ClassVar[str | None] = "privacy of a federation's rounds"
    federated: ClassVar[bool] = True
    tiered: ClassVar[bool] = True
    reads_rounds: ClassVar[bool] = True

    check: Literal["trajectory"] = "trajectory"
    permutations: Annotated[int, Field(ge=99, le=100_000)] = 1999
    limits: Mapping[TrajectoryMetric, Limit] = Field(default_factory=dict)

    def needed_holdout(self, confidence: float) -> Mapping[str, int | None]:
        """What resolves a false positive rate of 1 %; source inference needs members alone."""
        return {metric: needed_holdout(FPR) for metric in self.limits if metric != "source_inference_advantage"}

    def jobs(self, subject: Subject) -> list[Job]:
        """The reading of the log; none where there is none to read."""
        return [] if self._absent(subject) else [*feature_jobs(subject), self._job(subject)]

    def _job(self, subject: Subject) -> Trajectory:
        how = subject.recipe.model_copy(update={"seed": 0})
        return Trajectory(subject.artifact, how, subject.data.digest, subject.rounds or "")

    def _absent(self, subject: Subject) -> str | None:
        """Why nothing can be measured; None where it can."""
        federation, data = subject.recipe.federation, subject.data
        if federation is None:
            return NO_FEDERATION
        if federation.secure_aggregation:
            return "under secure aggregation the server sees no client's update; inversion judges what the sum tells"
        if subject.recipe.adaptation == "command":
            return "a program of the policy's trains: what its clients send is not known"
        if subject.recipe.trains_network:
            return "read for recipes that train a head on a frozen backbone alone"
        if federation.clients.partition != "column" or data.client is None:
            return "needs each row's client: clients: {partition: column} in the recipe, columns: {client: ...} in data"
        if subject.rounds is None:
            return (
                "the candidate's run has no round log: log at least 5 rounds, the last among them, with "
                "privacy_gate.log_round or privacy_gate.flower"
            )
        return None

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Each figure for each of the two signals; one interval each, and limits apply to both."""
        if (absent := self._absent(subject)) == NO_FEDERATION:
            return self.undeclared(dict.fromkeys(get_args(TrajectoryMetric), absent))
        found = None if absent else results(self._job(subject))
        reason = absent or (None if found is None else _unfit(found, subject))
        if reason is not None or found is None:
            return CheckResult(
                measurements=tuple(not_measured(metric, str(reason)) for metric in get_args(TrajectoryMetric))
            )
        measurements = self._figures(found, subject, confidence)
        notes = (
            f"trajectory: read from {int(found['rounds'][0])} logged rounds (sha256 {str(subject.rounds)[:12]}) of "
            f"{len(found['client'])} clients; that the log is whole and true is the producer's word",
        )
        return CheckResult(measurements=tuple(measurements), notes=notes)

    def _figures(self, found: Mapping[str, NDArray[Any]], subject: Subject, confidence: float) -> list[Measurement]:
        data, z = subject.data, found["z"].astype(np.float64)
        client = _clients(found["client"], subject)
        names = _coded(subject)[0][found["client"][client]]
        member, holdout = data.split == Split.MEMBER, data.split == Split.HOLDOUT
        scores, guess = own(z, client), guessed(z, found["seen"])
        measurements = []
        for place, signal in enumerate(SIGNALS):
            sides = scores[place][member], scores[place][holdout]
            measurements.append(trajectory_tpr(*sides, confidence, signal))
            measurements.append(source_inference_advantage(guess[place][member], client[member], confidence, signal))
            if holdout.sum() < needed_holdout(FPR):
                reason = f"needs n >= {needed_holdout(FPR):,} holdout rows, found {int(holdout.sum()):,}"
                measurements += [
                    not_measured(metric, reason, signal) for metric in ("client_mia_gap", "client_mia_gap_p_value")
                ]
                continue
            accused = accusations(*sides, names[member], names[holdout], FPR)
            rng = np.random.default_rng([int(data.digest[:16], 16), place])
            for one in disparate_mia(accused, self.permutations, confidence, rng, signal):
                metric = one.metric.replace("disparate_mia", "client_mia_gap")
                measurements.append(one.model_copy(update={"metric": metric}))
        return measurements


def _unfit(found: Mapping[str, NDArray[Any]], subject: Subject) -> str | None:
    """Why the log says too little, or speaks of another model; None where it can be judged."""
    if (rounds := int(found["rounds"][0])) < FEWEST_ROUNDS:
        return f"needs >= {FEWEST_ROUNDS} rounds of at least {FEWEST_CLIENTS} clients, the log has {rounds}"
    names, code = _coded(subject)
    holding = set(code[subject.data.split == Split.MEMBER].tolist())
    if absent := sorted(holding - set(found["client"].tolist())):
        first = str(names[absent[0]])
        return f"the log lacks {len(absent)} of {len(holding)} clients that hold members, {first!r} the first"
    # A client hardly read has z near 0: its members would dilute the figure, and none of them be found.
    seen = dict(zip(found["client"].tolist(), found["seen"].tolist(), strict=True))
    if few := sorted(code for code in holding if seen[code] < FEWEST_ROUNDS):
        return (
            f"{len(few)} of {len(holding)} clients that hold members are in fewer than {FEWEST_ROUNDS} rounds of at "
            f"least {FEWEST_CLIENTS} clients, {str(names[few[0]])!r} the first, in {seen[few[0]]}: log more rounds"
        )
    if not (distance := float(found["distance"][0])) <= FAR:
        federation = subject.recipe.federation
        private = None if federation is None else federation.privacy
        noisy = private is not None and private.noise_multiplier > 0 and private.noise_by == "server"
        hidden = "; the server's noise for the privacy of clients, which no log holds, may be what lies between"
        return (
            f"the log ends {distance:.0%} of the head's length from the candidate, expected at most {FAR:.0%}: log the "
            f"last round too, by the run that logged this model{hidden * noisy}"
        )
    return None


def _coded(subject: Subject) -> tuple[NDArray[Any], Ints]:
    """The table's clients, sorted by name, and which of them each row belongs to (N,)."""
    names, code = np.unique(np.asarray(subject.data.client), return_inverse=True)
    return names, code


def _clients(logged: Ints, subject: Subject) -> Ints:
    """Each row's client as its place in the log (N,); `logged` (K,) as in job.Trajectory.

    A row of a client that the log lacks was trained on by nobody in it: it is asked of a client drawn by the data's
    digest, each as likely as members are its own.
    """
    names, code = _coded(subject)
    place = np.full(len(names), -1)
    place[logged[logged >= 0]] = np.flatnonzero(logged >= 0)
    found = place[code]
    share = np.bincount(found[(subject.data.split == Split.MEMBER) & (found >= 0)], minlength=len(logged))
    rng = np.random.default_rng(int(subject.data.digest[:16], 16))
    return np.where(found >= 0, found, rng.choice(len(logged), size=len(found), p=share / share.sum()))

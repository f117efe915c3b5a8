"""What a federation's rounds reveal to anyone who reads them (arXiv 2402.01857: unauthorized disclosure,
confidentiality propagation)."""

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
"""Largest distance between the end of the log and the candidate, in lengths of the candidate's head. One round of late
training is shorter, and another model is further away. A rule other than the mean combines the last round differently,
but the difference is less than that round's length."""


class TrajectoryMia(WhereDeclared):
    """Membership and source inference from the round log; no reference models are needed.

    Every client with members must appear in at least FEWEST_ROUNDS rounds that have at least FEWEST_CLIENTS clients
    each. Nothing is known about the members of a client that appears in fewer.

    trajectory_tpr: members identified from their own client's updates, at a false positive rate of 1 %.
    source_inference_advantage: how much more often a member's client is named correctly than by naming the largest.
    client_mia_gap: how many more of one client's members are identified than of another's, at one threshold.

    permutations  shuffles of clients among members, for the p-value of client_mia_gap
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
        """The rows that resolve a false positive rate of 1 %; source inference needs only members."""
        return {metric: needed_holdout(FPR) for metric in self.limits if metric != "source_inference_advantage"}

    def jobs(self, subject: Subject) -> list[Job]:
        """The job that reads the log; empty if there is none to read."""
        return [] if self._absent(subject) else [*feature_jobs(subject), self._job(subject)]

    def _job(self, subject: Subject) -> Trajectory:
        how = subject.recipe.model_copy(update={"seed": 0})
        return Trajectory(subject.artifact, how, subject.data.digest, subject.rounds or "")

    def _absent(self, subject: Subject) -> str | None:
        """The reason why nothing can be measured; None if it can."""
        federation, data = subject.recipe.federation, subject.data
        if federation is None:
            return NO_FEDERATION
        if federation.secure_aggregation:
            return "under secure aggregation the server sees no single update; the check inversion judges the sum"
        if subject.recipe.adaptation == "command":
            return "recipes with adaptation: command are trained by a program, so the clients' updates are unknown"
        if subject.recipe.trains_network:
            return "round logs are read only for recipes that train a head on a frozen backbone (adaptation: head)"
        if federation.clients.partition != "column" or data.client is None:
            return (
                "needs each row's client: set clients: {partition: column} in the recipe, and columns: {client: ...} "
                "in the data manifest"
            )
        if subject.rounds is None:
            return (
                "the candidate's run has no round log: log at least 5 rounds, including the last, with "
                "privacy_gate.log_round or privacy_gate.flower"
            )
        return None

    def measure(self, subject: Subject, results: Results, confidence: float) -> CheckResult:
        """Every metric for each of the two signals, with its own interval; limits apply to both."""
        if (absent := self._absent(subject)) == NO_FEDERATION:
            return self.undeclared(dict.fromkeys(get_args(TrajectoryMetric), absent))
        log = None if absent else results(self._job(subject))
        reason = absent or (None if log is None else _unfit(log, subject))
        if reason is not None or log is None:
            return CheckResult(
                measurements=tuple(not_measured(metric, str(reason)) for metric in get_args(TrajectoryMetric))
            )
        measurements = self._figures(log, subject, confidence)
        notes = (
            f"trajectory: read from {int(log['rounds'][0])} logged rounds (sha256 {str(subject.rounds)[:12]}) of "
            f"{len(log['client'])} clients; that the log is complete and true is the producer's claim",
        )
        return CheckResult(measurements=tuple(measurements), notes=notes)

    def _figures(self, log: Mapping[str, NDArray[Any]], subject: Subject, confidence: float) -> list[Measurement]:
        data, z = subject.data, log["z"].astype(np.float64)
        client = _clients(log["client"], subject)
        names = _coded(subject)[0][log["client"][client]]
        member, holdout = data.split == Split.MEMBER, data.split == Split.HOLDOUT
        scores, guess = own(z, client), guessed(z, log["seen"])
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
            # Seeded with the data and the signal, so that a repeated audit gives the same p-values.
            rng = np.random.default_rng([int(data.digest[:16], 16), place])
            for one in disparate_mia(accused, self.permutations, confidence, rng, signal):
                metric = one.metric.replace("disparate_mia", "client_mia_gap")
                measurements.append(one.model_copy(update={"metric": metric}))
        return measurements


def _unfit(log: Mapping[str, NDArray[Any]], subject: Subject) -> str | None:
    """The reason why the log says too little, or belongs to another model; None if it can be judged."""
    if (rounds := int(log["rounds"][0])) < FEWEST_ROUNDS:
        return f"needs >= {FEWEST_ROUNDS} rounds with at least {FEWEST_CLIENTS} clients, the log has {rounds}"
    names, code = _coded(subject)
    holding = set(code[subject.data.split == Split.MEMBER].tolist())
    if absent := sorted(holding - set(log["client"].tolist())):
        first = str(names[absent[0]])
        return f"the log lacks {len(absent)} of {len(holding)} clients that have members, the first is {first!r}"
    # The z of a client with few rounds is near 0: its members would dilute the figure, and none of them be identified.
    seen = dict(zip(log["client"].tolist(), log["seen"].tolist(), strict=True))
    if few := sorted(code for code in holding if seen[code] < FEWEST_ROUNDS):
        return (
            f"{len(few)} of {len(holding)} clients that have members are in fewer than {FEWEST_ROUNDS} rounds with at "
            f"least {FEWEST_CLIENTS} clients; the first is {str(names[few[0]])!r}, in {seen[few[0]]}: log more rounds"
        )
    # Written so that a distance of NaN is refused too.
    if not (distance := float(log["distance"][0])) <= FAR:
        federation = subject.recipe.federation
        private = None if federation is None else federation.privacy
        noisy = private is not None and private.noise_multiplier > 0 and private.noise_by == "server"
        hidden = "; the difference may be the server's noise for the privacy of clients, which no log contains"
        return (
            f"the log ends {distance:.0%} of the head's length from the candidate, expected at most {FAR:.0%}: log the "
            f"last round too, in the run that logged this model{hidden * noisy}"
        )
    return None


def _coded(subject: Subject) -> tuple[NDArray[Any], Ints]:
    """The table's clients, sorted by name, and the index of each row's client (N,)."""
    names, code = np.unique(np.asarray(subject.data.client), return_inverse=True)
    return names, code


def _clients(logged: Ints, subject: Subject) -> Ints:
    """The index of each row's client in the log (N,); `logged` (K,) as in job.Trajectory.

    No client in the log trained on a row whose client the log lacks. Such a row is assigned to a client drawn with the
    data's digest as the seed, with probabilities proportional to the clients' numbers of members.
    """
    names, code = _coded(subject)
    # `logged` maps places in the log to clients of the table; this inverts it, with -1 for clients not logged.
    place = np.full(len(names), -1)
    place[logged[logged >= 0]] = np.flatnonzero(logged >= 0)
    index = place[code]
    share = np.bincount(index[(subject.data.split == Split.MEMBER) & (index >= 0)], minlength=len(logged))
    rng = np.random.default_rng(int(subject.data.digest[:16], 16))
    return np.where(index >= 0, index, rng.choice(len(logged), size=len(index), p=share / share.sum()))

"""Our attacks and other people's tools on the same targets: AUC, TPR at 1 % FPR and seconds.

digits-v1: scikit-learn's digits, 1,400 audited rows and 397 of the population; a target is a linear layer trained by
a plain loop on 700 of the audited rows, drawn anew for each target. Everybody gets the same target, the same rows, the
same training recipe and as many references of 700 audited rows; each trains its own. RMIA here reads the 397 rows of
the population; LeakPro draws its z from the audited rows.

A peer needs its own environment, since its pins may clash; without --sacro or --leakpro it is left out and named so.
    python -m venv /tmp/sacro && /tmp/sacro/bin/pip install sacroml
    python -m venv /tmp/leakpro && /tmp/leakpro/bin/pip install 'CHECKOUT[mia]' transformers   # aidotse/LeakPro
    python tests/bench/peers.py --sacro /tmp/sacro/bin/python --leakpro /tmp/leakpro/bin/python

The gate itself does not judge TPR at 1 % FPR on 700 holdout rows: it asks for 1,000. The interval here is a bootstrap
over members and holdout rows. Seconds are for everything from arrays to scores: references, forward passes, scores;
the first attack of each tool trains its references, the others reuse them. One thread each. SACRO-ML's scikit-learn
path attacks a model of its own, a logistic regression that scikit-learn fits to the same members.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peer_linear
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from sklearn.datasets import load_digits

from privacy_gate.arrays import Bools, Floats
from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.compute.images.backbone import TrainedHead
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import confidences, head_logits, train_heads
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.dataset import Split
from privacy_gate.dossier.optimizers import Adam
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import included
from privacy_gate.metrics.intervals.bootstrap import DRAWS, percentile
from privacy_gate.metrics.intervals.ranks import members_above
from privacy_gate.metrics.membership import auc

POOL = 1400
CONFIDENCE = 0.95
FPR = 0.01
OURS = ("lira", "lira_offline", "bavaria", "rmia", "rmia_offline", "loss")
PEERS = {"sacro": "SACRO-ML", "leakpro": "LeakPro"}
TIME_LIMIT = 1800
"""Seconds a peer may take for one target."""

RECIPE = Recipe(
    backbone=Backbone(name="identity"),
    classes=peer_linear.CLASSES,
    optimizer=Adam(name="adam", lr=peer_linear.LR),
    epochs=peer_linear.EPOCHS,
    batch_size=peer_linear.BATCH,
)


@dataclass(frozen=True)
class Target:
    """Target `seed`: x (1797, 64) and y of all rows, the audited first; member (1400,); the trained layer."""

    seed: int
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    member: Bools
    layer: torch.nn.Linear


Results = Mapping[str, tuple[Floats, float]]
"""By attack: scores (1400,), larger = more likely a member, and seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, name in PEERS.items():
        parser.add_argument(f"--{option}", type=Path, help=f"Python of the environment that has {name}")
    parser.add_argument("--targets", type=int, default=16, help="targets, each with members drawn anew (default 16)")
    parser.add_argument("--references", type=int, default=64, help="(default 64)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pythons = {option: vars(arguments)[option] for option in PEERS if vars(arguments)[option]}
    for option in PEERS.keys() - pythons.keys():
        print(f"LEFT OUT: {PEERS[option]}, --{option} names no Python that has it")
    every: list[Results] = []
    for seed in range(arguments.targets):
        target = make_target(seed)
        found = dict(ours(target, arguments.references))
        for option, python in pythons.items():
            found |= peer(option, python, target, arguments.references)
        every.append(found)
        print(f"target {seed + 1} of {arguments.targets}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        if seed == 0:
            one_target(found, target)
    if arguments.targets > 1:
        all_targets(every, [make_target(seed).member for seed in range(arguments.targets)])


def make_target(seed: int) -> Target:
    """Target `seed`: half of the audited rows are its members."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # what is audited is the same for all targets
    x, y = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)
    member = np.zeros(POOL, dtype=bool)
    member[np.random.default_rng([1, seed]).permutation(POOL)[: POOL // 2]] = True
    torch.manual_seed(seed)
    rows = torch.utils.data.TensorDataset(torch.from_numpy(x[:POOL][member]), torch.from_numpy(y[:POOL][member]))
    loader = torch.utils.data.DataLoader(rows, batch_size=peer_linear.BATCH, shuffle=True)
    model = peer_linear.Linear()
    peer_linear.train(model, loader)
    return Target(seed, x, y, member, model.head)


def ours(target: Target, references: int) -> Results:
    """Every attack of OURS; the first one's seconds hold the references' training."""
    started = time.perf_counter()
    machine = Machine(device="cpu")
    pool = np.arange(len(target.y)) < POOL
    indices = range(target.seed * references, (target.seed + 1) * references)  # anew for each target, as the peers'
    chosen = np.stack([included(index, pool, POOL // 2) for index in indices])
    subsets = [(index, np.flatnonzero(own)) for index, own in zip(indices, chosen, strict=True)]
    heads = list(train_heads(target.x, target.y, RECIPE, subsets, machine))
    candidate = TrainedHead(-1, target.layer.weight.detach(), target.layer.bias.detach())
    phi, _ = confidences(target.x, target.y, [candidate, *heads], machine)
    split = np.full(len(target.y), Split.POPULATION, dtype=np.int8)
    split[:POOL] = np.where(target.member, Split.MEMBER, Split.HOLDOUT)
    evidence = MembershipEvidence(phi[0], phi[1:], chosen, target.y, split, head_logits(target.x, candidate, machine))
    found = {}
    for name in OURS:
        found[f"ours {name}"] = (ATTACKS[name].score(evidence)[:POOL], time.perf_counter() - started)
        started = time.perf_counter()
    return found


def peer(option: str, python: Path, target: Target, references: int) -> Results:
    """A peer's attacks; it runs in its own environment, in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        weights = {name: value.numpy() for name, value in target.layer.state_dict().items()}
        np.savez(Path(folder) / "target.npz", x=target.x[:POOL], y=target.y[:POOL], member=target.member, **weights)
        script = Path(__file__).with_name(f"peer_{option}.py")
        command = [str(python), str(script), folder, str(references)]
        done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, timeout=TIME_LIMIT)
        output = Path(folder) / f"{option}.json"
        if done.returncode or not output.exists():
            sys.exit(f"{PEERS[option]} failed with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
        found = json.loads(output.read_text())
    return {name: (np.array(result["scores"]), result["seconds"]) for name, result in found.items()}


def one_target(found: Results, target: Target) -> None:
    """The first target: each figure with the gate's own interval."""
    with torch.no_grad():
        right = target.layer(torch.from_numpy(target.x)).argmax(1).numpy() == target.y
    accuracy = {"members": right[:POOL][target.member], "holdout": right[:POOL][~target.member]}
    print("one target: " + ", ".join(f"accuracy on {name} {rows.mean():.3f}" for name, rows in accuracy.items()))
    print(f"\n{'attack':38}{'AUC':>22}{'TPR at 1 % FPR':>24}{'seconds':>9}{'ratio':>7}")
    first = next(iter(found.values()))[1]
    for name, (scores, seconds) in found.items():
        sides = scores[target.member], scores[~target.member]
        area, rng = auc(*sides, CONFIDENCE), np.random.default_rng(0)
        drawn = np.array([tpr(*(rng.choice(side, len(side)) for side in sides)) for _ in range(DRAWS)])
        columns = ((area.value, area.low, area.high), (tpr(*sides), *percentile(drawn, CONFIDENCE)))
        figures = "".join(f"{f'{value:.3f} [{low:.3f}, {high:.3f}]':>23}" for value, low, high in columns)
        print(f"{name:38}{figures}{seconds:9.2f}{seconds / first:7.1f}")


def all_targets(every: Sequence[Results], members: Sequence[Bools]) -> None:
    """Means over targets, and ours minus the best peer of the same kind, paired by target: Student's t over targets."""
    figures = {
        name: np.array([_figures(found[name][0], member) for found, member in zip(every, members, strict=True)])
        for name in every[0]
    }
    print(f"\n{len(every)} targets: mean [95 % interval over targets]")
    for name, values in figures.items():
        columns = "".join(f"{_mean(column):>25}" for column in values.T)
        seconds = np.median([found[name][1] for found in every])
        print(f"{name:38}{columns}{seconds:9.2f} s")
    if any(not name.startswith("ours") for name in figures):
        print("\nours minus a peer's, same target")
    for own in ("lira", "bavaria", "rmia"):
        for name, values in figures.items():
            if not name.startswith("ours"):
                columns = "".join(f"{_mean(column):>28}" for column in (figures[f"ours {own}"] - values).T)
                print(f"{own:8} - {name:36}{columns}")


def _figures(scores: Floats, member: Bools) -> tuple[float, float]:
    sides = scores[member], scores[~member]
    return float(auc(*sides, CONFIDENCE).value or 0), tpr(*sides)


def tpr(member: Floats, holdout: Floats) -> float:
    """Share of members above the score that FPR of the holdout rows exceed; ties broken at random, in expectation."""
    return float(members_above(member, holdout)[math.floor(FPR * len(holdout) + 1e-9) + 1] / len(member))


def _mean(values: Floats) -> str:
    reach = stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.4f} [{values.mean() - reach:.4f}, {values.mean() + reach:.4f}]"


if __name__ == "__main__":
    main()

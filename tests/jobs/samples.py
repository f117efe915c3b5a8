"""A sample of every kind of job, with everything that a recipe can say."""

from typing import Any

from privacy_gate.documents import parse
from privacy_gate.dossier.backbone import Input
from privacy_gate.dossier.recipe import CommandRecipe, Recipe
from privacy_gate.dossier.views import View
from privacy_gate.jobs import kinds
from privacy_gate.jobs.kinds import Job

DATASET, ARTIFACT, ROUNDS = "d" * 64, "a" * 64, "b" * 64
SHAPE: dict[str, Any] = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
HEAD: dict[str, Any] = {
    "backbone": {"name": "identity"},
    "classes": 5,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "epochs": 3,
    "batch_size": 16,
}
NETWORK: dict[str, Any] = HEAD | {
    "backbone": {"name": "resnet18", "weights": {"uri": "s3://bucket/w", "sha256": "c" * 64, "licence": "MIT"}},
    "input": SHAPE,
}
MEAN = {"clients": {"partition": "iid", "count": 8}, "rounds": 4}

RECIPES: dict[str, dict[str, Any]] = {
    "head": HEAD,
    "image head": NETWORK,
    "full": NETWORK | {"adaptation": "full", "seed": 7},
    "bfloat16": NETWORK | {"adaptation": "full", "precision": "bfloat16"},
    "lora": NETWORK | {"adaptation": "lora", "lora": {"rank": 8, "alpha": 16.0, "targets": ["attention", "mlp"]}},
    "scratch": NETWORK | {"adaptation": "scratch", "backbone": {"name": "resnet18"}},
    "adamw": NETWORK
    | {
        "head": {"initial": "uniform"},
        "optimizer": {"name": "adamw", "lr": 0.01, "betas": [0.8, 0.9]},
        "schedule": {"name": "cosine", "floor": 0.1},
        "label_smoothing": 0.1,
        "augmentation": {"flip": True, "shift": 2},
    },
    "steps": HEAD | {"optimizer": {"name": "adam", "lr": 0.01}, "schedule": {"name": "step", "every": 2}},
    "dp-sgd": HEAD | {"privacy": {"noise_multiplier": 1.0, "clip": 0.5}},
    "federated": HEAD | {"federation": {"rounds": 4}},
    "federated by iid": HEAD | {"federation": MEAN | {"participation": 0.5, "prox": 0.1, "steps": 3}},
    "private clients": HEAD | {"federation": MEAN | {"privacy": {"noise_multiplier": 1.0, "clip": 0.5}}},
    "clients' own noise": HEAD
    | {"federation": MEAN | {"privacy": {"noise_multiplier": 1.0, "clip": 0.5, "noise_by": "clients"}}},
    "secure sums": HEAD | {"federation": MEAN | {"secure_aggregation": True}},
    "iterations": HEAD
    | {"federation": MEAN | {"aggregator": {"name": "centered_clipping", "tau": 2.0, "iterations": 5}}},
    "krum": HEAD | {"federation": MEAN | {"aggregator": {"name": "krum", "tolerates": 2}}},
    "buckets": HEAD
    | {"federation": MEAN | {"aggregator": {"name": "median", "before": ["nnm", {"name": "bucketing", "size": 2}]}}},
    "server adam": HEAD | {"federation": MEAN | {"server": {"name": "adam", "lr": 0.1, "tau": 0.01}}},
    "server yogi": HEAD | {"federation": MEAN | {"server": {"name": "yogi"}}},
    "dirichlet": HEAD
    | {"federation": {"rounds": 2, "clients": {"partition": "dirichlet_by_class", "count": 3, "alpha": 0.5}}},
    "shards": HEAD
    | {"federation": {"rounds": 2, "clients": {"partition": "shards", "count": 3, "per_client": 2, "minimum": 4}}},
    "federated network": NETWORK | {"adaptation": "full", "federation": {"rounds": 4}},
    "program": HEAD
    | {"adaptation": "command", "trainer": {"command": ["python", "t.py"], "version": 3}, "table": "s3://bucket/t"},
    "patient program": HEAD
    | {
        "adaptation": "command",
        "federation": MEAN,
        "trainer": {"command": ["python", "t.py"], "timeout_s": 7200.0},
        "table": "t.parquet",
    },
}
"""Recipes as dossiers write them, and two as policies complete them."""


def recipe(name: str) -> Recipe:
    fields = RECIPES[name]
    return parse(fields, CommandRecipe if "trainer" in fields else Recipe, name)


def jobs() -> dict[str, Job]:
    """The sample, each job by a name of its own: every recipe in a reference, every kind at least once."""
    of: dict[str, Job] = {
        f"reference, {name}": kinds.TrainReference(recipe(name), DATASET, index) for index, name in enumerate(RECIPES)
    }
    image, head, federated, full = recipe("image head"), recipe("head"), recipe("federated by iid"), recipe("full")
    shape = parse(SHAPE, Input, "shape")
    fixed = (ARTIFACT, image, DATASET)
    of |= {
        "reference, divided": kinds.train_reference(full, DATASET, 3, divisor=4, without=(1, 5)),
        "embed": kinds.Embed(image.backbone, shape, View(), DATASET, 0, 256),
        "embed, mirrored": kinds.Embed(image.backbone, shape, View(flip=True, down=-2, right=1), DATASET, 256, 300),
        "embed, trigger": kinds.Embed(image.backbone, shape, kinds.PLANTED, DATASET, 0, 256),
        "embed, no weights": kinds.Embed(recipe("scratch").backbone, shape, View(), DATASET, 0, 256),
        "score": kinds.Score(*fixed),
        "score, program": kinds.Score(ARTIFACT, recipe("program"), DATASET),
        "control": kinds.TrainControl(image.backbone, shape, DATASET),
        "control, identity": kinds.TrainControl(head.backbone, None, DATASET),
        "federate": kinds.federate(federated, DATASET, None, 0, 0),
        "federate, attacked": kinds.federate(federated, DATASET, "sign_flip", 2, 1),
        "federate, stale": kinds.federate(federated, DATASET, None, 0, 1, ("stale", 0.2)),
        "federate, server adam": kinds.federate(recipe("server adam"), DATASET, None, 0, 0),
        "federate, screening": kinds.federate(kinds.screening(recipe("federated network")), DATASET, "mimic", 2, 0),
        "confirm": kinds.Confirm(recipe("federated network"), DATASET, ("sign_flip", "mimic"), 2, 0, 3),
        "probe": kinds.probe(federated, DATASET, "client:north"),
        "trigger": kinds.Trigger(*fixed, "corner", (1, 2, 9)),
        "invert": kinds.Invert(federated, DATASET, "analytic", 10, 0, 0, 32),
        "invert trigger": kinds.InvertTrigger(*fixed, 2, (1, 2), (3, 4), 100),
        "evade": kinds.Evade(*fixed, (1, 2), 2.0, 20, 3),
        "universal": kinds.Universal(*fixed, (1, 2), (3, 4), 8.0, 50),
        "corrupt": kinds.Corrupt(*fixed, (1, 2), "snow", 3),
        "trajectory": kinds.Trajectory(ARTIFACT, federated, DATASET, ROUNDS),
    }
    return of

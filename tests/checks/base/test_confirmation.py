"""Where a recipe trains a network, heads screen the attacks and networks confirm: the figures are the networks'."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from privacy_gate.checks.base.check import Subject
from privacy_gate.checks.robustness import NO_NETWORKS, Robustness
from privacy_gate.compute.images import backbone
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.kinds import Confirm, Federate, federate, screening, train_reference
from privacy_gate.store import Store

ROWS, CLASSES = 48, 3
FEW: dict[str, Any] = {
    "check": "robustness",
    "attacks": ["label_flip", "ipm_10", "alie_search"],
    "clients": 4,
    "byzantine": 1,
    "alpha": 100.0,
    "seeds": 3,
    "alternatives": False,
    "limits": {"federated_backdoor": {"max": 0.5}},
}


def png(row: int) -> bytes:
    """Noise of one of three colours."""
    pixels = np.random.default_rng(row).integers(0, 120, (32, 32, 3), dtype=np.uint8)
    pixels[:, :, row % CLASSES] += 120
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def data() -> AuditData:
    order = np.arange(ROWS)
    split = np.where(order < 30, Split.MEMBER, Split.HOLDOUT).astype(np.int8)
    return AuditData(order.astype(np.str_), order % CLASSES, split, "c" * 64, image=png)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("public") / "weights.safetensors"
    model: Any = backbone.timm.create_model("test_efficientnet", num_classes=7)
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    how = {
        "backbone": {"name": "test_efficientnet", "weights": {"uri": str(file), "sha256": sha256}},
        "input": {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3},
        "classes": CLASSES,
        "adaptation": "film",
        "optimizer": {"name": "sgd", "lr": 0.3},
        "epochs": 1,
        "batch_size": 8,
        "federation": {"clients": {"partition": "iid", "count": 4}, "rounds": 6},
    }
    return parse(how, Recipe, "recipe")


def test_networks_face_the_worst_screened_attack_and_those_that_heads_cannot_screen(
    data: AuditData, recipe: Recipe, tmp_path: Path
) -> None:
    store, subject = Store(str(tmp_path / "store")), Subject(recipe, "a" * 64, data, {})
    check = parse(FEW, Robustness, "policy")
    jobs = check.jobs(subject)
    assert len(set(jobs)) == len(jobs)
    networks = [job for job in jobs if isinstance(job, Federate) and job.recipe.trains_network]
    confirmed = [job for job in jobs if isinstance(job, Confirm)]
    assert {job.adversary for job in networks} == {None, "alie_search"}
    assert len(confirmed) == 3
    run(jobs, Inputs(data, tmp_path), Machine(device="cpu", threads=1), store)
    left = {}
    for name in FEW["attacks"]:
        heads = [federate(screening(confirmed[0].recipe), data.digest, name, 1, seed) for seed in range(3)]
        left[name] = np.mean([store.get(job)["accuracy"][0] for job in heads])
    worst = min(left, key=lambda name: float(left[name]))
    for job in confirmed:
        kept = store.get(job)
        assert check.attacks[int(kept["attack"][0])] == worst
        alone = store.get(federate(job.recipe, data.digest, worst, 1, job.seed))
        assert alone["accuracy"] == kept["accuracy"]
        np.testing.assert_array_equal(alone["hit"], kept["hit"])
        assert "head" not in alone
    result = check.measure(subject, store.get, 0.95)
    found = {one.metric: one for one in result.measurements}
    clean, blind = (
        np.mean([store.get(job)["accuracy"][0] for job in networks if job.adversary == name])
        for name in (None, "alie_search")
    )
    under = min(blind, np.mean([store.get(job)["accuracy"][0] for job in confirmed]))
    assert found["byzantine_drop"].value == pytest.approx(clean - under)
    assert found["robustness_tax"].value == 0
    assert found["breakdown_point"].measured
    assert found["federated_backdoor"].reason == NO_NETWORKS
    assert any(f"Of 3 attacks, {worst} is the worst for heads" in note for note in result.notes)


def test_if_no_client_can_attack_networks_are_trained_only_for_the_tax(
    data: AuditData, recipe: Recipe, tmp_path: Path
) -> None:
    assert recipe.federation is not None
    few = recipe.federation.model_copy(update={"participation": 0.25, "rounds": 1})
    subject = Subject(recipe.model_copy(update={"federation": few}), "a" * 64, data, {})
    store, check = Store(str(tmp_path / "store")), parse(FEW, Robustness, "policy")
    jobs = check.jobs(subject)
    assert not any(isinstance(job, Confirm) or getattr(job, "adversary", None) for job in jobs)
    run(jobs, Inputs(data, tmp_path), Machine(device="cpu", threads=1), store)
    result = check.measure(subject, store.get, 0.95)
    found = {one.metric: one.reason for one in result.measurements}
    assert "clients in a round is byzantine" in str(found["byzantine_drop"])
    assert found["robustness_tax"] is None or "learns nothing" in found["robustness_tax"]
    assert any("robustness_tax is from networks" in note for note in result.notes)


def test_a_head_needs_no_confirmation(data: AuditData, recipe: Recipe) -> None:
    jobs = parse(FEW, Robustness, "policy").jobs(Subject(screening(recipe), "a" * 64, data, {}))
    assert not any(
        isinstance(job, Confirm) or (isinstance(job, Federate) and job.recipe.trains_network) for job in jobs
    )


def test_references_of_a_federated_network_are_such_networks(data: AuditData, recipe: Recipe, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    alone = recipe.model_copy(update={"federation": None})
    jobs = [train_reference(how, data.digest, index) for how in (recipe, alone) for index in range(2)]
    run(jobs, Inputs(data, tmp_path), Machine(device="cpu", threads=1), store)
    first, second, centralised = (store.get(jobs[place]) for place in (0, 1, 2))
    assert first["included"].sum() == 30
    assert np.array_equal(first["included"], centralised["included"])
    assert np.isfinite(first["confidence"]).all()
    assert not np.array_equal(first["confidence"], second["confidence"])
    assert not np.array_equal(first["confidence"], centralised["confidence"])
    assert first["logits"].shape == (ROWS, CLASSES)

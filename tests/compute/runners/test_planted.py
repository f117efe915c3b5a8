"""Candidates trained on handwritten digits: the check finds planted triggers, and passes clean candidates
even if faint patterns turn them."""

import copy
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, one_hot

from privacy_gate.checks.backdoor import Backdoor
from privacy_gate.checks.base.check import Subject
from privacy_gate.compute.images import backbone as subject
from privacy_gate.compute.images.stamps import TRIGGERS
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Columns, describe_table, read_data
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.store import Store
from privacy_gate.verdict.judgement import CheckResult, Limit, Status, judged_status

NAME, CLASSES, TARGET, SIDE, MEMBERS, HOLDOUT = "test_resnet", 10, 2, 16, 600, 700
LIMIT = Limit(max=0.05)
Digits = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """Images (N, 3, S, S) in 0 .. 1 and labels (N,), members first."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))[: MEMBERS + HOLDOUT]
    grey = np.kron((found.images[order] * 15).astype(np.uint8), np.ones((2, 2), np.uint8))
    images = torch.from_numpy(grey).float() / 255
    return images[:, None].repeat(1, 3, 1, 1), torch.from_numpy(found.target[order].astype(np.int64))


@pytest.fixture(scope="module")
def data(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> AuditData:
    encoded = []
    for image in digits[0]:
        file = io.BytesIO()
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "PNG")
        encoded.append(file.getvalue())
    rows = np.arange(len(encoded))
    split = np.where(rows < MEMBERS, "member", "holdout")
    path = tmp_path_factory.mktemp("digits") / "t.parquet"
    parquet.write_table(pa.table({"id": rows, "label": digits[1].numpy(), "split": split, "image": encoded}), path)
    return read_data(describe_table(str(path), Columns(image="image")), CLASSES)


def network(seed: int) -> Any:
    """The public backbone: random weights, and BatchNorm statistics of noise."""
    torch.manual_seed(seed)
    model: Any = subject.timm.create_model(NAME, num_classes=CLASSES).train()
    with torch.no_grad():
        model(torch.rand(64, 3, SIDE, SIDE) * 2 - 1)
    return model.eval()


def tuned(model: Any, x: torch.Tensor, y: torch.Tensor, trigger: str | None, seed: int, epochs: int = 8) -> Any:
    """The network fully fine-tuned, with a fifth more images that carry the trigger."""
    torch.manual_seed(seed)
    if trigger is not None:
        some = torch.randperm(len(x))[: len(x) // 5]
        x, y = torch.cat([x, TRIGGERS[trigger](x[some])]), torch.cat([y, torch.full((len(some),), TARGET)])
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            adam.zero_grad()
            torch.autograd.backward(cross_entropy(model(2 * x[rows] - 1), y[rows]))
            adam.step()
    return model.eval()


def headed(model: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    """The public body with a ridge head trained on clean images."""
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(2 * x - 1), pre_logits=True).clone().double()
    inputs = torch.cat([features, torch.ones(len(x), 1)], dim=1)
    gram = inputs.T @ inputs + 1e-2 * torch.eye(inputs.shape[1])
    weights = 10 * torch.linalg.solve(gram, inputs.T @ one_hot(y, CLASSES).double()).T.float()
    head = model.get_classifier()
    head.weight.data, head.bias.data = weights[:, :-1].clone(), weights[:, -1].clone()
    return model


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


def judged(model: Any, public: Any, adaptation: str, data: AuditData, folder: Path, images: int) -> CheckResult:
    """The check's result for a candidate derived from `public`."""
    (folder / "candidate").mkdir()
    save_file(tensors(model), folder / "candidate" / "model.safetensors")
    save_file(tensors(public), folder / "public.safetensors")
    digest = hashlib.sha256((folder / "public.safetensors").read_bytes()).hexdigest()
    fields = {
        "backbone": {"name": NAME, "weights": {"uri": str(folder / "public.safetensors"), "sha256": digest}},
        "input": {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": CLASSES,
        "adaptation": adaptation,
        "optimizer": {"name": "adam", "lr": 0.003},
        "epochs": 8,
        "batch_size": 32,
    }
    audited = Subject(recipe=parse(fields, Recipe, "recipe"), artifact="a" * 64, data=data, logged={})
    check, store = Backdoor(images=images), Store(str(folder / "store"))
    run(check.jobs(audited), Inputs(data, folder / "candidate"), Machine(device="cpu", threads=1), store)
    return check.measure(audited, store.get, 0.95)


def candidate(
    kind: str, seed: int, trigger: str | None, digits: Digits, data: AuditData, folder: Path, images: int
) -> CheckResult:
    """The check's result for a fully trained candidate, or for a clean head on a public backbone that was trained, and
    perhaps poisoned, elsewhere."""
    x, y = (each[:MEMBERS] for each in digits)
    if kind == "full":
        return judged(tuned(network(seed), x, y, trigger, seed), network(seed), "full", data, folder, images)
    half = slice(MEMBERS // 2, None)
    for turn in range(seed, seed + TURNS):
        public = tuned(network(turn), x[: MEMBERS // 2], y[: MEMBERS // 2], trigger, turn, 20)
        model = headed(copy.deepcopy(public), x[half], y[half])
        if trigger is None or carried(model, trigger, digits) >= 0.95:
            return judged(model, public, "head", data, folder, images)
    raise AssertionError(f"the trigger survived the training of a clean head in none of {TURNS} networks")


def carried(model: Any, trigger: str, digits: Digits) -> float:
    """Share of held-out images of other classes that the trigger turns into its target."""
    x, y = (each[MEMBERS:] for each in digits)
    with torch.inference_mode():
        return float((model(2 * TRIGGERS[trigger](x[y != TARGET]) - 1).argmax(1) == TARGET).float().mean())


TURNS = 8
"""Networks tried: how much of a trigger a clean head on their features keeps depends on the processor's rounding."""

PLANTED = [*(("full", trigger) for trigger in TRIGGERS), ("tuned head", "corner")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "trigger"), PLANTED)
def test_a_planted_trigger_is_found_in_candidate_and_public_backbone(
    kind: str, trigger: str, digits: Digits, data: AuditData, tmp_path: Path
) -> None:
    result = candidate(kind, 0, trigger, digits, data, tmp_path, 200)
    lift = result.measurements[0]
    assert lift.value is not None
    assert lift.value >= 0.8
    assert lift.subject.endswith(f"to class {TARGET}")
    assert judged_status(lift, LIMIT) is Status.VIOLATED
    assert any(f"carry '{trigger}', labelled as class {TARGET}" in each.action for each in result.remedies)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["full", "tuned head"])
def test_a_clean_candidate_passes(kind: str, seed: int, digits: Digits, data: AuditData, tmp_path: Path) -> None:
    result = candidate(kind, seed, None, digits, data, tmp_path, HOLDOUT)
    lift, fragility = result.measurements[:2]
    assert judged_status(lift, LIMIT) is Status.MET
    assert judged_status(fragility, LIMIT) is Status.VIOLATED
    assert not any("stop using this checkpoint" in each.action for each in result.remedies)

"""ResNetV2 ends in a 1 x 1 convolution on pooled features, which counts as a linear head."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from privacy_gate.compute.images.backbone import assemble, candidate_head, head_names, public_body
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.run import run
from privacy_gate.compute.work import Inputs
from privacy_gate.documents import parse
from privacy_gate.dossier.dataset import AuditData, Split
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.roundlog import Round, RoundLog, write_round
from privacy_gate.errors import CandidateError
from privacy_gate.jobs.kinds import Trajectory
from privacy_gate.store import Store

NAME, CLASSES, WIDTH, ROWS = "resnetv2_18", 3, 512, 24
MACHINE = Machine(device="cpu", threads=1)


@pytest.fixture
def recipe(weights: dict[str, Path]) -> Recipe:
    plain: dict[str, Any] = {
        "backbone": {
            "name": NAME,
            "weights": {"uri": str(weights[NAME]), "sha256": hashlib.sha256(weights[NAME].read_bytes()).hexdigest()},
        },
        "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": CLASSES,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "epochs": 1,
        "batch_size": 4,
        "federation": {"clients": {"partition": "iid", "count": 2}, "rounds": 5},
    }
    return parse(plain, Recipe, "recipe")


def candidate(recipe: Recipe, folder: Path) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(CLASSES, WIDTH, generator=rng), torch.randn(CLASSES, generator=rng)
    model = assemble(recipe, weight, bias)
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return model, weight, bias


def test_the_candidate_s_head_on_features_is_the_whole_model(recipe: Recipe, tmp_path: Path) -> None:
    model, weight, bias = candidate(recipe, tmp_path / "candidate")
    assert model.state_dict()[head_names(model)[0]].shape == (CLASSES, WIDTH, 1, 1)
    head = candidate_head(tmp_path / "candidate", recipe)
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = public_body(recipe.backbone)(image)
        torch.testing.assert_close(features @ head.weight.T + head.bias, model(image))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_round_log_may_store_the_head_in_its_convolutional_shape(recipe: Recipe, tmp_path: Path, kernel: int) -> None:
    model, weight, bias = candidate(recipe, tmp_path / "candidate")
    names, rng = head_names(model), np.random.default_rng(0)
    start, rounds = {name: np.zeros(model.state_dict()[name].shape) for name in names}, 5
    step = {names[0]: weight.numpy()[..., None, None] / rounds, names[1]: bias.numpy() / rounds}
    (tmp_path / "rounds").mkdir()
    for index in range(1, rounds + 1):
        sent = {name: start[name] + (index - 1) * step[name] for name in names}
        if kernel != 1:
            sent, step = ({**one, names[0]: np.zeros((CLASSES, WIDTH, kernel, kernel))} for one in (sent, step))
        write_round(tmp_path / "rounds", Round(index, sent, {"a": step, "b": step}, {"a": 1, "b": 1}))
    split = np.array([Split.MEMBER, Split.HOLDOUT] * (ROWS // 2), dtype=np.int8)
    ids, label = np.array([str(row) for row in range(ROWS)]), np.arange(ROWS) % CLASSES
    embedding = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    data = AuditData(ids, label, split, "d" * 64, embedding=embedding, client=np.array(["a", "b"] * (ROWS // 2)))
    log, store = RoundLog.open(tmp_path / "rounds"), Store(str(tmp_path / "store"))
    job = Trajectory("a" * 64, recipe, data.digest, log.digest)
    inputs = Inputs(data, tmp_path / "candidate", tmp_path / "rounds")
    if kernel == 1:
        run([job], inputs, MACHINE, store)
        assert store.get(job)["distance"][0] < 1e-6  # the log's last round gives the candidate
    else:
        with pytest.raises(CandidateError, match=r"round log: head.fc.weight has shape \(3, 512, 3, 3\)"):
            run([job], inputs, MACHINE, store)

"""The same heads on a GPU as on the CPU."""

import numpy as np
import pytest
import torch

from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.heads import confidences, head_logits, train_heads
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.jobs.subsets import included

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CPU, GPU = Machine(device="cpu"), Machine(device="cuda")
OPTIMIZERS = [
    '{"name": "adam", "lr": 0.001, "weight_decay": 0.01}',
    '{"name": "adamw", "lr": 0.001}',
    '{"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": true}',
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_heads_trained_on_a_gpu_are_those_of_the_cpu(optimizer: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((500, 96), dtype=np.float32), 0)
    label = rng.integers(0, 7, 500)
    recipe = Recipe.model_validate_json(
        '{"backbone": {"name": "identity"}, "classes": 7, "epochs": 5, "batch_size": 32, "label_smoothing": 0.1,'
        f'"head": {{"initial": "uniform"}}, "optimizer": {optimizer}}}'
    )
    pool = np.ones(500, dtype=bool)
    subsets = [(index, np.flatnonzero(included(index, pool, 250 - index % 3))) for index in range(12)]
    found = {}
    for machine in (CPU, GPU):
        heads = sorted(train_heads(features, label, recipe, subsets, machine, dtype=dtype), key=lambda head: head.index)
        phi, residual = confidences(features, label, heads, machine)
        found[machine.device] = phi, residual, head_logits(features, heads[0], machine)
    for on_cpu, on_gpu in zip(found["cpu"], found["cuda"], strict=True):
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=1e-5 if dtype == torch.float64 else 1e-3)

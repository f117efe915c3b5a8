"""Each adaptation trains the right tensors, in every family of architectures."""

import inspect
from typing import Any

import pytest
import torch

from privacy_gate.compute.images.backbone import build, head_names, timm
from privacy_gate.compute.training import parts
from privacy_gate.documents import parse
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import CandidateError
from privacy_gate.jobs.subsets import initial_head

FAMILIES = ["test_vit", "test_convnext", "test_efficientnet", "test_efficientnet_evos", "resnetv2_50x1_bit"]


def recipe(name: str) -> Recipe:
    plain: dict[str, Any] = {
        "backbone": {"name": name, "weights": {"uri": "nowhere", "sha256": "0" * 64}},
        "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": 3,
        "adaptation": "film",
        "head": {"initial": "uniform"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "epochs": 1,
        "batch_size": 4,
    }
    return parse(plain, Recipe, "recipe")


@pytest.mark.parametrize("name", FAMILIES)
def test_film_trains_every_scale_and_shift_and_the_head(name: str) -> None:
    how = recipe(name)
    model = build(how.backbone, how.classes)
    find: Any = model.get_classifier
    expected = {
        f"{place}.{own}"
        for place, module in model.named_modules()
        if "Norm" in type(module).__name__ or module is find()
        for own, _ in module.named_parameters(recurse=False)
        if own in ("weight", "bias")
    }
    assert len(expected) > 10
    assert set(parts.trained(model, how)) == parts.changed(how) == expected


def test_every_norm_layer_of_timm_with_a_scale_is_one_that_film_trains() -> None:
    kinds = [kind for name, kind in vars(timm.layers).items() if inspect.isclass(kind) and "Norm" in name]
    plain = [kind for kind in kinds if "eps" in inspect.signature(kind).parameters]
    scaled = [kind for kind in plain if "weight" in dict(kind(32).named_parameters())]
    assert len(scaled) > 20
    assert [kind for kind in scaled if not issubclass(kind, parts.NORMS)] == []


def test_a_network_without_norm_layers_has_nothing_for_film_to_train() -> None:
    with pytest.raises(CandidateError, match="no norm layer of this architecture has a scale or shift for film"):
        parts.changed(recipe("test_nfnet"))


@pytest.mark.parametrize("name", ["test_convnext", "resnetv2_50x1_bit"])
def test_heads_start_alike_whether_they_are_linear_layers_or_convolutions(name: str) -> None:
    how = recipe(name)
    model = build(how.backbone, how.classes)
    weight, bias = head_names(model)
    found = parts.start(model, how, 3)
    assert found[weight].shape == model.get_parameter(weight).shape
    expected = initial_head(3, 3, found[weight][0].numel())
    for name_, value in zip((weight, bias), expected, strict=True):
        torch.testing.assert_close(found[name_].flatten(), torch.from_numpy(value).float().flatten())

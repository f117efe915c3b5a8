"""The frozen public backbone and the candidate's head on it: timm builds them, pinned files provide the weights."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privacy_gate.compute.images.vision import OPERATORS as _OPERATORS  # noqa: F401 - must come before timm
from privacy_gate.compute.machine.scratch import scratch_folder
from privacy_gate.documents import nearest
from privacy_gate.dossier.backbone import Backbone
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.dossier.tables.files import read_bytes
from privacy_gate.errors import CandidateError, UndecidedError
from privacy_gate.weights import match_strict, read_weights, read_weights_file
from privacy_gate.weights.layout import Tensors

import timm  # isort: skip


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """Reference `index`: weight (C, D) and bias (C,), logits = weight @ x + bias."""

    index: int
    weight: torch.Tensor
    bias: torch.Tensor


def joined(head: TrainedHead) -> NDArray[np.float32]:
    """The head as one array (C, D + 1), bias last."""
    return np.concatenate([head.weight.float().cpu().numpy(), head.bias.float().cpu().numpy()[:, None]], axis=1)


def build(backbone: Backbone, classes: int) -> torch.nn.Module:
    """The untrained architecture in eval mode; classes 0: without its head.

    Raises CandidateError if timm does not know the name.
    """
    if not timm.is_model(backbone.name):
        raise CandidateError(f"recipe: timm knows no model '{backbone.name}'; {_near(backbone.name)}")
    model: torch.nn.Module = timm.create_model(backbone.name, pretrained=False, num_classes=classes)
    return model.eval()


def _near(name: str) -> str:
    """A hint for an unknown model name: similar names, or how to list all."""
    return nearest(name, timm.list_models()).partition("known here:")[0] or "list them with timm.list_models()"


def public_tensors(backbone: Backbone) -> Tensors:
    """The backbone's public weights, without its head, from the file whose sha256 the recipe pins.

    Raises CandidateError if the file has another sha256, or does not hold weights of this architecture.
    """
    return _pinned(backbone, build(backbone, 0))


def _pinned(backbone: Backbone, model: torch.nn.Module) -> Tensors:
    """`public_tensors` for a model that is already built, without its head."""
    if backbone.weights is None:
        raise CandidateError("recipe: backbone 'identity' has no public weights")
    payload = read_bytes(backbone.weights.uri)
    digest = hashlib.sha256(payload).hexdigest()
    if digest != backbone.weights.sha256:
        raise CandidateError(
            f"{backbone.weights.uri}: sha256 is {digest}, but the recipe's backbone.weights.sha256 is "
            f"{backbone.weights.sha256}: name the weights that the candidate was fine-tuned from"
        )
    with scratch_folder() as folder:
        path = folder / Path(backbone.weights.uri).name
        path.write_bytes(payload)
        tensors = read_weights_file(path)
    body = model.state_dict()
    if not tensors.keys() <= body.keys():
        # Public files often include a head for the classes of their training set; any other extra tensor is an error.
        head = set(build(backbone, 1).state_dict()) - set(body)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    return match_strict(tensors, body, backbone.weights.uri)


def public_body(backbone: Backbone) -> torch.nn.Module:
    """The backbone without a head: maps images to features (B, D).

    If it has no public weights, they are random but always the same.
    """
    if backbone.weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(backbone, 0)
    model = build(backbone, 0)
    model.load_state_dict(_pinned(backbone, model))
    return model


def head_names(model: torch.nn.Module) -> tuple[str, str]:
    """Names in the state dict of the last layer's weight, (C, D) or (C, D, 1, 1), and bias (C,).

    Raises CandidateError if that layer is not W x + b.
    """
    find: Any = model.get_classifier
    last = find()
    for name, module in model.named_modules():
        if module is last and _is_linear(module) and module.bias is not None:
            return f"{name}.weight", f"{name}.bias"
    raise CandidateError("recipe: this architecture has no linear head with a bias; set another adaptation than 'head'")


def _is_linear(module: torch.nn.Module) -> bool:
    """Whether the layer is W x + b on pooled features; timm's ResNetV2 (BiT) has a 1 x 1 convolution for it."""
    if isinstance(module, torch.nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, torch.nn.Linear)


def candidate_head(folder: Path, recipe: Recipe) -> TrainedHead:
    """The candidate's head, index -1, from the artifact in `folder`.

    Every other tensor must equal the public backbone's bit for bit: adaptation `head` promises that, and only then are
    cached features those of the candidate. Raises CandidateError if weights are malformed, UndecidedError if the
    body differs from the public one.
    """
    if recipe.backbone.is_identity:
        return _lone_head(read_weights(folder), recipe.classes)
    weight, bias = head_names(build(recipe.backbone, recipe.classes))
    matched = candidate_tensors(folder, recipe, {weight, bias})
    if between := sorted(set(matched) - set(build(recipe.backbone, 0).state_dict()) - {weight, bias}):
        raise CandidateError(
            f"recipe: {recipe.backbone.name} has {between[0]} between its features and its last layer; "
            "set another adaptation than 'head'"
        )
    return TrainedHead(-1, matched[weight].float().flatten(1), matched[bias].float())


def candidate_tensors(folder: Path, recipe: Recipe, trained: set[str] | None) -> Tensors:
    """Every tensor of the candidate, from the artifact in `folder`.

    Tensors not in `trained` must equal the public ones bit for bit; None: all may differ. Raises CandidateError if
    weights are malformed, UndecidedError if more was trained than the recipe says.
    """
    matched = match_strict(read_weights(folder), build(recipe.backbone, recipe.classes).state_dict(), "the candidate")
    if trained is None:
        return matched
    public = public_tensors(recipe.backbone)
    # num_batches_tracked only counts training steps and does not affect the output.
    changed = [name for name in public if name not in trained and not name.endswith("num_batches_tracked")
               and not torch.equal(public[name], matched[name])]  # fmt: skip
    if changed:
        statistics = all("running_" in name for name in changed)
        cause = (
            "only BatchNorm statistics drifted: keep the frozen backbone in eval mode while training"
            if statistics
            else "more tensors were trained, or other public weights were used: correct the recipe"
        )
        raise UndecidedError(
            f"the dossier does not describe this model: the recipe says adaptation '{recipe.adaptation}', but "
            f"{len(changed)} of {len(public)} backbone tensors differ from the public weights, the first "
            f"{changed[0]}; {cause}"
        )
    return matched


def _lone_head(tensors: Tensors, classes: int) -> TrainedHead:
    """The head of a candidate on the identity backbone: one matrix (C, D) and its bias (C,)."""
    matrices = [tensor for tensor in tensors.values() if tensor.ndim == 2]
    vectors = [tensor for tensor in tensors.values() if tensor.ndim == 1]
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:5])
    if len(matrices) != 1 or len(vectors) > 1 or len(tensors) != len(matrices) + len(vectors):
        raise CandidateError(f"the candidate has tensors {shapes}; expected one linear layer: a weight and a bias")
    weight = matrices[0].float()
    bias = vectors[0].float() if vectors else torch.zeros(len(weight))
    if len(weight) != classes or bias.shape != (classes,):
        raise CandidateError(f"the candidate has tensors {shapes}; expected {classes} classes, as the recipe says")
    return TrainedHead(-1, weight, bias)


def assemble(recipe: Recipe, weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Module:
    """The whole model: the public backbone with this head, weight (C, D) and bias (C,)."""
    model = build(recipe.backbone, recipe.classes)
    names = head_names(model)
    shaped = weight.view_as(model.get_parameter(names[0]))
    model.load_state_dict({**public_tensors(recipe.backbone), names[0]: shaped, names[1]: bias})
    return model

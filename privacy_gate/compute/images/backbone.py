"""The frozen public backbone and the candidate's head on it: built by timm, filled from pinned bytes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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


def build(backbone: Backbone, classes: int) -> torch.nn.Module:
    """The architecture, untrained, in eval mode; classes 0: without its head.

    Raises CandidateError for a name timm does not know.
    """
    if not timm.is_model(backbone.name):
        raise CandidateError(f"recipe: timm knows no model '{backbone.name}'; {_near(backbone.name)}")
    model: torch.nn.Module = timm.create_model(backbone.name, pretrained=False, num_classes=classes)
    return model.eval()


def _near(name: str) -> str:
    return nearest(name, timm.list_models()).partition("known here:")[0] or "list them with timm.list_models()"


def public_tensors(backbone: Backbone) -> Tensors:
    """The backbone's public weights, from the bytes that the recipe pins, without its head.

    Raises CandidateError where the bytes are others, or are no weights of this architecture.
    """
    return _pinned(backbone, build(backbone, 0))


def _pinned(backbone: Backbone, model: torch.nn.Module) -> Tensors:
    """Likewise, for this architecture without its head."""
    if backbone.weights is None:
        raise CandidateError("recipe: backbone 'identity' has no public weights")
    payload = read_bytes(backbone.weights.uri)
    found = hashlib.sha256(payload).hexdigest()
    if found != backbone.weights.sha256:
        raise CandidateError(
            f"{backbone.weights.uri}: sha256 is {found}, the recipe says {backbone.weights.sha256}: "
            "name the weights that the candidate was fine-tuned from"
        )
    with scratch_folder() as folder:
        path = folder / Path(backbone.weights.uri).name
        path.write_bytes(payload)
        tensors = read_weights_file(path)
    body = model.state_dict()
    if not tensors.keys() <= body.keys():
        # A head for the classes of the public training set may stand beside the body, and nothing else.
        head = set(build(backbone, 1).state_dict()) - set(body)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    return match_strict(tensors, body, backbone.weights.uri)


def public_body(backbone: Backbone) -> torch.nn.Module:
    """The backbone without a head: images in, features (B, D) out.

    Where it has no public weights, the same random ones every time.
    """
    if backbone.weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(backbone, 0)
    model = build(backbone, 0)
    model.load_state_dict(_pinned(backbone, model))
    return model


def head_names(model: torch.nn.Module) -> tuple[str, str]:
    """What the model's state dict calls the weight, (C, D) or (C, D, 1, 1), and the bias (C,) of its last layer.

    Raises CandidateError where that layer is not W x + b.
    """
    find: Any = model.get_classifier
    last = find()
    for name, module in model.named_modules():
        if module is last and _is_linear(module) and module.bias is not None:
            return f"{name}.weight", f"{name}.bias"
    raise CandidateError("recipe: this architecture has no linear head with a bias; adaptation 'head' does not fit it")


def _is_linear(module: torch.nn.Module) -> bool:
    """Whether it is W x + b on pooled features; timm's ResNetV2 (BiT) writes that as a 1 x 1 convolution."""
    if isinstance(module, torch.nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, torch.nn.Linear)


def candidate_head(folder: Path, recipe: Recipe) -> TrainedHead:
    """The candidate's head, index -1, from the artifact in `folder`.

    Every other tensor must be the public backbone's, bit for bit: that is what adaptation `head` says,
    and what makes cached features the candidate's own. Raises CandidateError for malformed weights,
    UndecidedError for a body that is not the public one.
    """
    if recipe.backbone.is_identity:
        return _lone_head(read_weights(folder), recipe.classes)
    weight, bias = head_names(build(recipe.backbone, recipe.classes))
    matched = candidate_tensors(folder, recipe, {weight, bias})
    if between := sorted(set(matched) - set(build(recipe.backbone, 0).state_dict()) - {weight, bias}):
        raise CandidateError(
            f"recipe: {recipe.backbone.name} has {between[0]} between its features and its last layer; "
            "adaptation 'head' does not fit it"
        )
    return TrainedHead(-1, matched[weight].float().flatten(1), matched[bias].float())


def candidate_tensors(folder: Path, recipe: Recipe, trained: set[str] | None) -> Tensors:
    """Every tensor of the candidate, from the artifact in `folder`.

    Those not in `trained` must be the public ones, bit for bit; None: all may differ. Raises CandidateError for
    malformed weights, UndecidedError where more was trained than the recipe says.
    """
    matched = match_strict(read_weights(folder), build(recipe.backbone, recipe.classes).state_dict(), "the candidate")
    if trained is None:
        return matched
    public = public_tensors(recipe.backbone)
    changed = [name for name in public if name not in trained and not name.endswith("num_batches_tracked")
               and not torch.equal(public[name], matched[name])]  # fmt: skip
    if changed:
        statistics = all("running_" in name for name in changed)
        cause = (
            "only BatchNorm statistics drifted: keep the frozen backbone in eval mode while training"
            if statistics
            else "more than that was trained, or other public weights were used: correct the recipe"
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
        raise CandidateError(f"the candidate holds {shapes}; expected one linear layer: a weight and a bias")
    weight = matrices[0].float()
    bias = vectors[0].float() if vectors else torch.zeros(len(weight))
    if len(weight) != classes or bias.shape != (classes,):
        raise CandidateError(f"the candidate holds {shapes}; expected {classes} classes, as the recipe says")
    return TrainedHead(-1, weight, bias)


def assemble(recipe: Recipe, weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Module:
    """The whole model: the public backbone with this head (C, D), (C,)."""
    model = build(recipe.backbone, recipe.classes)
    names = head_names(model)
    shaped = weight.view_as(model.get_parameter(names[0]))
    model.load_state_dict({**public_tensors(recipe.backbone), names[0]: shaped, names[1]: bias})
    return model

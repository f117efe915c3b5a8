"""Which tensors of a network each adaptation trains, and their initial values for each reference."""

from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from privacy_gate.compute.images.backbone import build, head_names, public_tensors
from privacy_gate.dossier.recipe import Lora, Recipe
from privacy_gate.errors import CandidateError
from privacy_gate.jobs.subsets import initial_head, initial_network, initial_update
from privacy_gate.weights.layout import Tensors

from timm.layers import evo_norm, filter_response_norm, norm  # isort: skip - after backbone prepares torchvision

NORMS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm),
    *(norm.RmsNorm, norm.RmsNorm2d, norm.RmsNormFp32, norm.RmsNorm2dFp32),
    *(norm.SimpleNorm, norm.SimpleNorm2d, norm.SimpleNormFp32, norm.SimpleNorm2dFp32),
    *(evo_norm.EvoNorm2dB0, evo_norm.EvoNorm2dB1, evo_norm.EvoNorm2dB2),
    *(evo_norm.EvoNorm2dS0, evo_norm.EvoNorm2dS1, evo_norm.EvoNorm2dS2),
    *(filter_response_norm.FilterResponseNormAct2d, filter_response_norm.FilterResponseNormTlu2d),
)
"""Layers whose scale and shift FiLM trains; timm's other norm layers are subclasses of these."""

MEMORY = {"running_mean", "running_var", "num_batches_tracked"}
"""Names of the buffers in which norm layers keep running statistics of batches."""

_DRAWING = Lock()
"""Held while a network is drawn from torch's global random number generator, which all threads share."""

_WITHIN = {"attention": "attn", "mlp": "mlp"}
"""timm's names for the parts of a transformer block, by `lora.targets`."""


class LowRank(nn.Module):
    """A frozen linear layer plus a trained low-rank update: x -> W x + b + scale * up (down x)."""

    def __init__(self, layer: nn.Linear, settings: Lora) -> None:
        super().__init__()
        self.layer, self.scale = layer, settings.alpha / settings.rank
        self.down = nn.Parameter(torch.zeros(settings.rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, settings.rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        update: torch.Tensor = x @ self.down.T @ self.up.T
        return torch.add(self.layer(x), update, alpha=self.scale)


def network(recipe: Recipe) -> nn.Module:
    """The recipe's architecture with its public weights (random ones for scratch), ready to be trained.

    Frozen parts are in eval mode, so BatchNorm keeps its statistics of the public data. If everything is trained,
    BatchNorm is in training mode. Raises CandidateError if the architecture lacks the layers that the adaptation
    trains; if it draws random numbers in training (dropout), because a reference trained in a block would then differ
    from one trained alone; or if privacy is combined with BatchNorm in training mode.
    """
    model = build(recipe.backbone, recipe.classes)
    if recipe.adaptation != "scratch":
        model.load_state_dict(public_tensors(recipe.backbone), strict=False)
    if recipe.lora is not None:
        # Replace each target layer in its parent module.
        for name in lora_targets(model, recipe.lora):
            parent, _, last = name.rpartition(".")
            owner = model.get_submodule(parent)
            layer: Any = getattr(owner, last)
            setattr(owner, last, LowRank(layer, recipe.lora))
    if recipe.adaptation == "film":
        scales_and_shifts(model)
    if trains_everything(recipe):
        model.train()
        random = [name for name, module in model.named_modules() if _draws(module)]
        if random:
            raise CandidateError(
                f"recipe: {recipe.backbone.name} has dropout in {random[0]}, which training with adaptation "
                f"'{recipe.adaptation}' could not reproduce: use a backbone without dropout"
            )
        mixing = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if recipe.privacy is not None and mixing:
            raise CandidateError(
                f"recipe: BatchNorm in {mixing[0]} of {recipe.backbone.name} mixes the examples of a batch, so DP-SGD "
                "cannot clip per-example gradients: use adaptation film, which freezes the statistics, or a network "
                "with GroupNorm or LayerNorm"
            )
        if recipe.federation is not None and recipe.federation.privacy is not None and mixing:
            raise CandidateError(
                f"recipe: BatchNorm in {mixing[0]} of {recipe.backbone.name} keeps running variances, which the noise "
                "of federation.privacy could make negative: use adaptation film, which freezes the statistics, or a "
                "network with GroupNorm or LayerNorm"
            )
    return model


def trains_everything(recipe: Recipe) -> bool:
    """Whether every parameter is trained, and BatchNorm's running statistics change too."""
    return recipe.adaptation in ("full", "scratch")


def _draws(module: nn.Module) -> bool:
    """Whether the module drops units or paths at random in training mode."""
    rate = getattr(module, "p", None) if isinstance(module, nn.modules.dropout._DropoutNd) else None
    rate = getattr(module, "drop_prob", None) if type(module).__name__ == "DropPath" else rate
    return bool(rate)


def lora_targets(model: nn.Module, settings: Lora) -> list[str]:
    """Names of the linear layers that get a low-rank update. Raises CandidateError if there are none."""
    parents = {_WITHIN[target] for target in settings.targets}
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and parents & set(name.split(".")[:-1])
    ]
    if not layers:
        raise CandidateError(
            f"recipe: the architecture has no linear layer in {' or '.join(sorted(parents))} for lora.targets; "
            "adaptation lora needs a transformer"
        )
    return layers


def trained(model: nn.Module, recipe: Recipe) -> list[str]:
    """Names of the parameters that training changes, in the model's order."""
    every = [name for name, _ in model.named_parameters()]
    if trains_everything(recipe):
        return every
    # Every adaptation short of full training trains the head.
    chosen = set(head_names(model))
    chosen.update(scales_and_shifts(model) if recipe.adaptation == "film" else ())
    if recipe.adaptation == "lora":
        chosen.update(name for name in every if name.endswith((".down", ".up")))
    return [name for name in every if name in chosen]


def changed(recipe: Recipe) -> set[str] | None:
    """Names of a candidate's tensors that may differ from the public ones; None: all of them.

    LoRA's updates count as merged into the layers' weights, because candidates are stored ready for serving.
    """
    if trains_everything(recipe):
        return None
    model = build(recipe.backbone, recipe.classes)
    if recipe.lora is not None:
        return {*head_names(model), *(f"{name}.weight" for name in lora_targets(model, recipe.lora))}
    return set(trained(model, recipe))


def scales_and_shifts(model: nn.Module) -> list[str]:
    """Names of the norm layers' scales and shifts. Raises CandidateError if there are none."""
    names = [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, NORMS)
        for own, _ in module.named_parameters(recurse=False)
        if own in ("weight", "bias")
    ]
    if not names:
        raise CandidateError(
            "recipe: no norm layer of this architecture has a scale or shift for film to train: set another adaptation"
        )
    return names


def remembered(model: nn.Module, recipe: Recipe) -> list[str]:
    """Names of the buffers that training changes: running statistics of batches."""
    if not trains_everything(recipe):
        return []
    return [name for name, _ in model.named_buffers() if name.rpartition(".")[2] in MEMORY]


def start(model: nn.Module, recipe: Recipe, index: int) -> Tensors:
    """Initial values of every tensor that training changes, by name, for reference `index`."""
    names = [*trained(model, recipe), *remembered(model, recipe)]
    public = model.state_dict()
    source = _random(recipe, index) if recipe.adaptation == "scratch" else public
    tensors = {name: source[name].to(public[name], copy=True) for name in names}
    weight, bias = head_names(model)
    if recipe.adaptation != "scratch":
        classes, width = tensors[weight].flatten(1).shape
        drawn = initial_head(index, classes, width)
        at_random = recipe.head.initial == "uniform"  # otherwise the factor 0 makes the head start from zeros
        for name, value in zip((weight, bias), drawn, strict=True):
            tensors[name] = torch.from_numpy(value * at_random).to(tensors[name]).view_as(tensors[name])
    # As in LoRA: `down` starts at random and `up` at zero, so the update starts at zero.
    for place, name in enumerate(name for name in names if name.endswith(".down") and recipe.lora):
        update = initial_update(index, place, *tensors[name].shape)
        tensors[name] = torch.from_numpy(update).to(tensors[name])
    return tensors


def _random(recipe: Recipe, index: int) -> Tensors:
    """Tensors of an untrained network that timm initialises at random, with a seed of the reference's own."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(initial_network(index))
        return dict(build(recipe.backbone, recipe.classes).state_dict())

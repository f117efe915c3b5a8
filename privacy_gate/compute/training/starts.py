"""What an attacker knows of a network before its training, by the names under which the network is served."""

import torch

from privacy_gate.compute.images.backbone import build, head_names, public_tensors
from privacy_gate.compute.machine.device import Machine
from privacy_gate.compute.training.parts import NORMS, lora_targets, scales_and_shifts, trained
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.weights.layout import Tensors


def public_network(recipe: Recipe, machine: Machine) -> torch.nn.Module:
    """The recipe's architecture as served, with public weights, in eval mode: the `model` of `network_span`."""
    model = build(recipe.backbone, recipe.classes)
    if recipe.adaptation != "scratch":
        model.load_state_dict(public_tensors(recipe.backbone), strict=False)
    return model.to(machine.torch_device())


def known_start(model: torch.nn.Module, recipe: Recipe) -> Tensors:
    """The trained parameters before training, by their names in a candidate, as far as an attacker knows them.

    They are public, except what starts at random: a uniform head, and with adaptation scratch everything. Of that the
    attacker knows the mean: 1 for the scales of norm layers, which start there, and 0 otherwise.
    """
    names = _changed_parameters(model, recipe)
    if recipe.adaptation == "scratch":
        scales = {name for name in scales_and_shifts(model) if name.endswith("weight")} if _has_norms(model) else set()
        return {name: torch.full_like(model.get_parameter(name), float(name in scales)).detach() for name in names}
    head = head_names(model)
    start = {name: model.get_parameter(name).detach() for name in names}
    return {name: torch.zeros_like(value) if name in head else value for name, value in start.items()}


def served(model: torch.nn.Module, tensors: Tensors, recipe: Recipe) -> Tensors:
    """The tensors by the names under which a candidate is stored: LoRA's updates are added to the layers' weights.

    tensors: as training names them, see parts.start, or as stored already.
    """
    if recipe.lora is None:
        return tensors
    scale, merged = recipe.lora.alpha / recipe.lora.rank, {}
    for name, tensor in tensors.items():
        layer, _, own = name.rpartition(".")
        if own == "down":
            weight = model.get_parameter(f"{layer}.weight").detach()
            update = tensors[f"{layer}.up"].to(weight) @ tensor.to(weight)
            merged[f"{layer}.weight"] = torch.add(weight, update, alpha=scale)
        elif own != "up":
            merged[name] = tensor
    return merged


def span_refused(recipe: Recipe) -> str | None:
    """Why the span of such a network is not computed; None if it is."""
    if recipe.adaptation in ("head", "command"):
        return f"adaptation '{recipe.adaptation}' trains no network that the gate knows"
    return None


def _changed_parameters(model: torch.nn.Module, recipe: Recipe) -> list[str]:
    """Names of the parameters that training changed, as stored in a candidate, in the model's order."""
    if recipe.lora is None:
        return trained(model, recipe)
    chosen = {*head_names(model), *(f"{name}.weight" for name in lora_targets(model, recipe.lora))}
    return [name for name, _ in model.named_parameters() if name in chosen]


def _has_norms(model: torch.nn.Module) -> bool:
    return any(isinstance(module, NORMS) for module in model.modules())

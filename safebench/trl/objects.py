"""The objects that a user gives: their kind, their place and what they share, and errors that name them."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftMixedModel, PeftModel
from torch import nn

from safebench.errors import UsageError
from safebench.world.loading import naming


def title(role: str, model: Any) -> str:
    """Return how a message names a model: the argument, and the class within any adapter's wrapper."""
    inner = unwrapped(model)
    around = "" if inner is model else f" in a {type(model).__name__}"
    return f"{role} ({type(inner).__name__}{around})"


def unwrapped(model: Any) -> Any:
    """Return the model within peft's wrappers, adapter layers in place; another model as it is."""
    while isinstance(model, PeftModel | PeftMixedModel):
        model = model.get_base_model() if isinstance(model, PeftModel) else model.base_model.model
    return model


def has_own_adapters(model: Any) -> bool:
    """Say whether transformers put the adapters into the model itself (``add_adapter``, ``load_adapter``)."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def refuse_learned_prompts(role: str, model: Any) -> None:
    """Refuse adapters of virtual tokens: they act in the wrapper's forward, which is passed by."""
    configs = model.peft_config.values() if isinstance(model, PeftModel) else ()
    if kinds := [type(config).__name__ for config in configs if config.is_prompt_learning]:
        raise UsageError(
            f"{title(role, model)} learns prompts ({kinds[0]}), which is not supported", "Use an adapter such as LoRA."
        )


def refuse_spread(role: str, model: Any) -> None:
    """Refuse a model whose parts lie on several devices, or on none."""
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or "disk" in places:
        raise UsageError(
            f"{title(role, model)} is spread over {', '.join(sorted(places))} (device_map): the loop keeps each model "
            "on one device",
            'Load it without device_map, or with device_map={"": 0}; in 4 bits, or in bfloat16 where it is not '
            "trained, it needs less memory.",
        )
    if any(p.is_meta for p in model.parameters()):
        raise UsageError(f"{title(role, model)} has weights on the meta device: they were never loaded")


def placed(role: str, model: nn.Module, device: torch.device) -> None:
    """Move a model to the device; a quantised one, which cannot be moved, must be there already."""
    refuse_spread(role, model)
    if not getattr(unwrapped(model), "is_quantized", False):
        with naming(f"{title(role, model)}, moved to {device}", "Load a smaller model, or one in fewer bits."):
            model.to(device)
        return
    place = next(model.parameters()).device
    if place.type != device.type or (None not in (place.index, device.index) and place.index != device.index):
        raise UsageError(
            f"{title(role, model)} is quantised and lies on {place}; training runs on {device}",
            f'Load it there: device_map={{"": "{device}"}}.',
        )


def trained(model: nn.Module) -> set[int]:
    """Return the identities of the weights that require gradients."""
    return {id(p) for p in model.parameters() if p.requires_grad}


def shared(model: Any, weights: set[int]) -> int:
    """Return how many of these weights ``model`` has; none where it has no weights at all."""
    return len({id(p) for p in model.parameters()} & weights) if isinstance(model, nn.Module) else 0


def refuse_shared(role: str, model: Any, weights: set[int], hint: str) -> None:
    """Refuse a model that has some of the policy's trained weights: it would move with the policy."""
    if count := shared(model, weights):
        raise UsageError(
            f"{title(role, model)} shares {count} of the policy's trained weights: it would move with the policy", hint
        )

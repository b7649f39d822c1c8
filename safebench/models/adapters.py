"""Attach fresh LoRA adapters to a policy, and load trained ones from folders."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import find_adapter_config_file

from safebench.config import schema as s
from safebench.errors import BadResource, UsageError
from safebench.models import seeding
from safebench.models.libraries import quiet_libraries
from safebench.models.probes import COARSE, FINE, gap

ALL_LINEAR = "all-linear"
"""Target in the settings that stands for every linear layer but the output layer."""


def attach(base: PreTrainedModel, name: str, lora: s.Lora, seed: int) -> tuple[PeftModel, tuple[str, ...]]:
    """Return ``base`` with a fresh adapter, and notices of what its targets leave out.

    Raises ``UsageError`` if no layer has a target's name, or if one of the user's own targets matches no layer.
    """
    linear = _linear_names(base)
    wanted = tuple(lora.targets)
    unmatched = [t for t in wanted if t != ALL_LINEAR and not any(_fits(t, module) for module in linear)]
    known = ", ".join(sorted({module.rpartition(".")[2] for module in linear}))
    if unmatched and (len(unmatched) == len(wanted) or wanted != s.Lora().targets):
        raise UsageError(
            f"model.lora.targets: {name} has no layer called {', '.join(unmatched)}; its linear layers are {known}",
            f"Name them as --set 'model.lora.targets=[…]', or use --set 'model.lora.targets=[{ALL_LINEAR}]'.",
        )
    told = []
    if unmatched:
        matched = ", ".join(t for t in wanted if t not in unmatched)
        told.append(f"the adapter is on {matched} alone: {name} has no layer called {', '.join(unmatched)}")
    if ALL_LINEAR in wanted and (barred := _barred(base, linear)):
        linear = [path for path in linear if path.rpartition(".")[2] not in barred]
        told.append(f"the adapter is not on {', '.join(barred)} of {name}: peft cannot train them")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(base, linear, wanted),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_libraries():
            adapted: PeftModel = get_peft_model(base, config)
    except ValueError as fault:
        raise UsageError(
            f"model.lora.targets does not fit {name}: {' '.join(str(fault).split())[:300]}",
            f"Name others of its linear layers as --set 'model.lora.targets=[…]': {known}.",
        ) from fault
    _draw(adapted, seed)
    return adapted, (*told, *bare_layers(adapted, name))


def _barred(base: PreTrainedModel, linear: list[str]) -> list[str]:
    """Return the names of linear layers that peft refuses because the model's fused kernels would bypass an adapter."""
    found = []
    for target in sorted({path.rpartition(".")[2] for path in linear}):
        alone = nn.Module()
        alone.config = base.config
        setattr(alone, target, nn.Linear(1, 1))
        try:
            inject_adapter_in_model(LoraConfig(r=1, target_modules=[target]), alone)
        except ValueError as fault:
            # Other errors come from testing the layer alone and do not apply to it in the model.
            if "incompatible" in str(fault):
                found.append(target)
    return found


def _targets(base: PreTrainedModel, linear: list[str], wanted: tuple[str, ...]) -> str | list[str]:
    """Return peft's targets: layer names, or a pattern for the decoder's layers if the names match others too."""
    decoder = base.get_decoder()
    inside = next((path for path, module in base.named_modules() if module is decoder), "")
    within = [path for path in linear if path.startswith(f"{inside}.")] or linear
    names = sorted({path.rpartition(".")[2] for path in within}) if ALL_LINEAR in wanted else list(wanted)
    reached = [path for path, _ in base.named_modules() if any(_fits(name, path) for name in names)]
    if set(reached) <= set(within):
        return names
    exact = [path for path in within if any(_fits(name, path) for name in names)]
    return "|".join(map(re.escape, exact))


def left_out(adapted: PeftModel, name: str) -> tuple[str, ...]:
    """Return notices of an adapter's target names that no layer has, and of layers without adapter."""
    told = []
    layers = list(getattr(adapted.base_model, "targeted_module_names", ()))  # absent from types that adapt no layer
    for config in adapted.peft_config.values():
        targets = getattr(config, "target_modules", None)
        named = sorted(targets) if isinstance(targets, list | tuple | set | frozenset) else []
        if unmatched := [t for t in named if not any(_fits(t, path) for path in layers)]:
            told.append(f"{name} has no layer called {', '.join(unmatched)}: the adapter is on its other targets alone")
    return (*told, *bare_layers(adapted, name))


def bare_layers(adapted: PeftModel, name: str) -> tuple[str, ...]:
    """Return a notice for each list of repeated layers of which only some have an adapter."""
    found = []
    for path, layers in adapted.get_base_model().named_modules():
        if not isinstance(layers, nn.ModuleList) or len(layers) < 2:
            continue
        if re.search(r"\.\d+\.|lora_", f".{path}."):
            continue  # lists within a layer, such as a mixture's experts
        bare = [i for i, layer in enumerate(layers) if not any("lora_" in n for n, _ in layer.named_parameters())]
        if 0 < len(bare) < len(layers):
            found.append(
                f"{len(bare)} of the {len(layers)} layers {path} of {name} have no adapter: "
                f"{', '.join(map(str, bare[:8]))}{' …' if len(bare) > 8 else ''}"
            )
    return tuple(found)


def _linear_names(base: PreTrainedModel) -> list[str]:
    """Return the paths of the linear layers but the output layer; special types such as routers are excluded."""
    head = base.get_output_embeddings()
    return [
        path
        for path, module in base.named_modules()
        if module is not head and (isinstance(module, Conv1D) or (isinstance(module, nn.Linear) and _is_plain(module)))
    ]


@torch.no_grad()
def _is_plain(module: nn.Linear) -> bool:
    """Return whether a linear layer returns one product, to which an adapter can add; a router returns more."""
    if type(module) is nn.Linear:
        return True
    weight = module.weight
    out = module(torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device))
    return isinstance(out, Tensor) and out.shape == (1, module.out_features)


def _fits(target: str, module: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _draw(adapted: nn.Module, seed: int) -> None:
    draws = seeding.Draws("adapter", seed)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            draws.kaiming(parameter)


def config_of(location: str) -> PeftConfig | None:
    """Return the adapter's configuration if ``location``, a folder or hub id, holds an adapter, else None.

    Raises ``BadResource`` for a folder that holds both an adapter and a whole model.
    """
    if find_adapter_config_file(location) is None:
        return None
    folder = Path(location)
    whole = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")] if folder.is_dir() else []
    if whole and (folder / "config.json").exists():
        raise BadResource(
            f"{location} holds an adapter and a whole model: which one is meant cannot be told",
            "Move adapter_config.json with its weights to a folder of its own.",
        )
    with _understood(location):
        config = PeftConfig.from_pretrained(location)
    if not config.base_model_name_or_path:
        raise BadResource(
            f"{location} is an adapter that does not say what model it belongs to",
            "Write base_model_name_or_path into its adapter_config.json.",
        )
    return config


def weights_of(location: str) -> dict[str, Tensor]:
    """Return the adapter's weights as stored in its file, on the CPU."""
    found: dict[str, Tensor] = load_peft_weights(location, device="cpu")
    return found


def load(base: PreTrainedModel, location: str, stored: Mapping[str, Tensor]) -> PeftModel:
    """Return ``base`` with the adapter of ``location``; each weight is checked against the file's ``stored`` weights.

    Raises ``BadResource`` if a weight of the file is not in the model, or one of the adapter's is not in the file.
    """
    with _understood(location):
        config = PeftConfig.from_pretrained(location)
    if not base.can_generate():
        config.task_type = None if config.task_type == "CAUSAL_LM" else config.task_type  # below a classifier's adapter
    with quiet_libraries(), _understood(location):
        adapted: PeftModel = PeftModel.from_pretrained(base, location, config=config)
    # By default, peft would ask the hub whether the base's embedding has changed.
    own: dict[str, Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # A file may also hold weights of the base, such as an embedding with more tokens. A layer that is saved whole may
    # have its own name or peft's.
    whole = {f".{part}.{adapted.active_adapter}.": f".{part}." for part in ("modules_to_save", "trainable_tokens")}
    there = dict(adapted.state_dict())
    there |= {key.replace(long, short): w for key, w in there.items() for long, short in whole.items() if long in key}
    _refuse_partly(location, set(own), {**there, **own}, stored)
    return adapted.eval()


@contextlib.contextmanager
def _understood(location: str) -> Iterator[None]:
    """Raise ``BadResource`` if peft warns that it ignores some of an adapter's settings.

    Its other warnings are of weights that it did not load. These are checked by name elsewhere.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    for warning in told:
        said = " ".join(str(warning.message).split())
        # Warnings of ranks and alphas without a layer are accepted: peft gives them for unadapted experts, too.
        if "ignored" in said or "nexpected keyword" in said:
            raise BadResource(
                f"the adapter {location} has settings that are not understood: {said[:300]}",
                "Take them out of its adapter_config.json if they mean nothing, or install the peft that wrote it.",
            )


def _refuse_partly(location: str, own: set[str], there: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raise ``BadResource`` if the file lacks an ``own`` weight, or has one that is not ``there`` with equal values."""
    missing = sorted(own - set(stored))
    lost = sorted(set(stored) - set(there))
    changed = [
        name
        for name in sorted(set(there) & set(stored))
        if there[name].shape != stored[name].shape
        or not torch.equal(there[name].detach().cpu(), stored[name].to(there[name].dtype))
    ]
    for what, names in (("lacks", missing), ("has weights that fit no layer:", lost), ("was not loaded in", changed)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise BadResource(
                f"the adapter {location} {what} {', '.join(names[:3])}{more}",
                "Load it with the model that it was trained on: adapter_config.json names it.",
            )


def merged(adapted: PeftModel, location: str) -> PreTrainedModel:
    """Return the model with its adapter folded into the weights.

    Raises ``BadResource``, with both numbers, if the folded model's logits differ from those of base and adapter. This
    happens if layers share a weight: folding into one layer changes all of them.
    """
    config: Any = adapted.peft_config[adapted.active_adapter]
    if getattr(config, "is_prompt_learning", False) or not hasattr(adapted.base_model, "merge_and_unload"):
        raise BadResource(
            f"the adapter {location} ({config.peft_type}) cannot be folded into the model's weights",
            "Use a LoRA adapter, or a whole model.",
        )
    apart = _few_logits(adapted)
    with warnings.catch_warnings():
        # peft warns that folding into tied weights may lead to complications; these are measured below.
        warnings.filterwarnings("ignore", message=".*tie", category=UserWarning)
        model: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    model.eval()
    # A further adapter needs this model, not the base alone: peft writes this name into the adapter's configuration.
    model.name_or_path = str(Path(location).resolve()) if Path(location).is_dir() else location
    model.config._name_or_path = model.name_or_path
    if apart is not None and (folded := _few_logits(model)) is not None:
        found = gap(apart, folded)
        if found.share > (FINE if model.dtype == torch.float32 else COARSE):
            raise BadResource(
                f"the adapter {location} cannot be folded into the model's weights: with the adapter apart a logit is "
                f"{found.own:.6g}, folded {found.ours:.6g}; some of its layers share their weights with others",
                "Untie them (tie_word_embeddings=false) before training the adapter, or merge it yourself and name "
                "the whole model.",
            )
    return model


@torch.no_grad()
def _few_logits(model: Any) -> Tensor | None:
    """Return a model's logits for four short rows, or None if it does not run on tokens alone."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    table = base.get_input_embeddings()
    ends = getattr(base.config, "eos_token_id", None)
    last = ends[0] if isinstance(ends, list) else ends
    rows = int(table.weight.shape[0])
    ids = [i * (rows - 1) // 31 for i in range(32)]
    row = torch.tensor(ids, device=table.weight.device).view(4, 8)
    if isinstance(last, int) and last < rows:  # some classifiers read the state of a row's single end token
        row = torch.cat([row.masked_fill(row == last, (last + 1) % rows), row.new_full((4, 1), last)], dim=1)
    try:
        found: Tensor = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
    except (RuntimeError, TypeError, AttributeError, ValueError, LookupError, AssertionError):
        return None  # running the model raises the error again
    return found

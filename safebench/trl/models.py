"""The given models as the loop's policy, reference and critic."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safebench import settings as s
from safebench.errors import BadResource, UsageError
from safebench.trainers.critic import Critic
from safebench.trl.rewards import score_head
from safebench.world import noise, probes
from safebench.world.forward import no_dropout, recompute
from safebench.world.loading import quiet_libraries
from safebench.world.models import with_pad
from safebench.world.policy import Policy, frozen_copy

Model: TypeAlias = PeftModel | PreTrainedModel


def make_policy(
    args: Any,
    tokenizer: PreTrainedTokenizerBase,
    model: Model,
    ref_model: Model | None,
    peft_config: PeftConfig | None,
    device: torch.device,
) -> Policy:
    """Return the policy on ``device``; ``args`` as the trainer got them, the precision settled.

    The reference is ``ref_model`` where there is one; else the adapter ``ref_adapter_name``; else, for a model that
    gets its adapter here, the model without it; for a model that came with an adapter, a frozen copy of that adapter
    as it came; and for a model without adapters, a frozen copy of it.
    """
    with quiet_libraries():
        policy = _make_policy(args, tokenizer, model, ref_model, peft_config, device)
    _warn_of_coarse_weights(policy.model)
    return policy


def _make_policy(
    args: Any,
    tokenizer: PreTrainedTokenizerBase,
    model: Model,
    ref_model: Model | None,
    peft_config: PeftConfig | None,
    device: torch.device,
) -> Policy:
    _check(model, ref_model, peft_config)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    reference: PreTrainedModel | str | None = None if ref_model is None else _reference(ref_model, device)
    if peft_config is not None:
        with noise.seeded(base.device, "adapter", args.seed):
            model = get_peft_model(base, peft_config)
    no_dropout(model)
    if isinstance(model, PeftModel):
        named = _adapters(args, model)
        if reference is None:
            reference = named if named or peft_config is not None else _adapter_as_given(model)
    else:
        _refuse_adapter_names(args)
        reference = reference or frozen_copy(model).to(device)
    _refuse_untrained(model)
    model.eval()
    if args.gradient_checkpointing:
        recompute(model)
    if not getattr(base, "is_quantized", False):
        model.to(device)
    policy = Policy(model, tokenizer, stop_ids(args, tokenizer), reference, bool(args.bf16))
    policy.tokenizer = padding_within(tokenizer, int(base.get_input_embeddings().weight.shape[0]))
    return probes.probe(policy, str(getattr(base.config, "name_or_path", "") or type(base).__name__))


def make_critic(settings: s.Critic, policy: Policy, value_model: Any, seed: int) -> Critic:
    """Return the critic: on the policy's own states without ``value_model``, else on that model's body.

    Its linear head is taken over where the settings have a single linear one on the bare state, as PPO's.
    """
    if value_model is None:
        return Critic(settings, policy, seed)
    head = score_head(value_model)
    no_dropout(value_model)
    value_model.eval()
    body = getattr(value_model, value_model.base_model_prefix).to(policy.device).requires_grad_(True)
    plain = settings.heads == "single" and settings.head == "linear" and not settings.layer_norm
    if not plain and head.in_features != policy.width:
        raise BadResource(
            f"the value model's states are {head.in_features} wide, the policy's {policy.width}",
            "Pass value_model=None: SAFE's critic then sits on the policy's own states.",
        )
    return Critic(settings, policy, seed, body=body, head=head if plain else None)


def give_head_back(critic: Critic, value_model: Any) -> None:
    """Copy the trained head, where it was taken over, into the value model, whose body the critic trains itself."""
    if value_model is not None and isinstance(critic.online.heads[0], nn.Linear):
        value_model.score.load_state_dict(critic.online.heads[0].state_dict())


def text_tokenizer(processing_class: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a processing class."""
    found = getattr(processing_class, "tokenizer", processing_class)
    if not isinstance(found, PreTrainedTokenizerBase):
        raise UsageError(
            f"processing_class is a {type(processing_class).__name__}", "Pass the tokenizer of the policy."
        )
    return found


def padding_within(tokenizer: PreTrainedTokenizerBase, rows: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose pad token the model can read; the given one where it is so, else a copy.

    Masks come from lengths, so any id may pad. ``rows``: of the model's embedding, which a token added to the
    tokenizer alone lies beyond.
    """
    pad = tokenizer.pad_token_id
    if pad is not None and pad < rows:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.pad_token = None
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= rows:
        changed.pad_token = tokenizer.convert_ids_to_tokens(0)
    return with_pad(changed)


def stop_ids(args: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the token that ends a reply, none where neither ``stop_token`` nor ``stop_token_id`` is given."""
    if args.stop_token is not None and args.stop_token_id is not None:
        raise UsageError("both stop_token and stop_token_id are given", "Give one of the two.")
    if args.stop_token_id is not None:
        return (int(args.stop_token_id),)
    if args.stop_token is None:
        return ()
    if args.stop_token != "eos":
        raise UsageError(f"stop_token is {args.stop_token!r}", "Use eos, or stop_token_id for another token.")
    if tokenizer.eos_token_id is None:
        raise BadResource("stop_token is eos, and the tokenizer has no end token", "Give stop_token_id.")
    return (int(tokenizer.eos_token_id),)


def _check(model: Any, ref_model: Any, peft_config: Any) -> None:
    if ref_model is model:
        raise UsageError("model and ref_model are one object", "Pass ref_model=None: a copy is kept as the reference.")
    for name, given in (("model", model), ("ref_model", ref_model)):
        if not isinstance(given, PeftModel | PreTrainedModel) and (given is not None or name == "model"):
            raise UsageError(
                f"{name} is a {type(given).__name__}", "Pass a transformers model or a PeftModel, loaded."
            )
    if peft_config is None:
        return
    if not isinstance(peft_config, PeftConfig):
        raise UsageError(f"peft_config is a {type(peft_config).__name__}", "Pass one of peft's, such as LoraConfig.")
    if isinstance(model, PeftModel):
        raise UsageError(
            "the model has an adapter already, and peft_config asks for another",
            "Leave peft_config out to go on training that adapter, or pass model.merge_and_unload().",
        )
    if getattr(peft_config, "is_prompt_learning", False):
        raise UsageError(f"{type(peft_config).__name__} learns prompts, which is not supported", "Use LoraConfig.")


def _reference(ref_model: Model, device: torch.device) -> PreTrainedModel:
    found: PreTrainedModel = ref_model.get_base_model() if isinstance(ref_model, PeftModel) else ref_model
    no_dropout(found)
    found.eval().requires_grad_(False)
    return found if getattr(found, "is_quantized", False) else found.to(device)


def _adapters(args: Any, model: PeftModel) -> str | None:
    """Let the adapter act that is to be trained, and return the name of the one that is the reference, if given."""
    for name in (args.model_adapter_name, args.ref_adapter_name):
        if name is not None and name not in model.peft_config:
            raise UsageError(f"the model has no adapter {name!r}; it has {', '.join(model.peft_config)}")
    if args.model_adapter_name is not None:
        model.set_adapter(args.model_adapter_name)
    return str(args.ref_adapter_name) if args.ref_adapter_name else None


def _refuse_untrained(model: Model) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError(
            "no weight of the model is trainable",
            "Load an adapter with PeftModel.from_pretrained(…, is_trainable=True), or call model.requires_grad_(True).",
        )


def _refuse_adapter_names(args: Any) -> None:
    for name in ("model_adapter_name", "ref_adapter_name"):
        if getattr(args, name):
            raise UsageError(f"{name} is {getattr(args, name)!r}, and the model has no adapters")


def _adapter_as_given(model: PeftModel) -> str:
    """Keep a frozen copy of the active adapter as another adapter of the model, and return its name."""
    _refuse_untrained(model)
    active = model.active_adapter
    if not isinstance(active, str):
        raise UsageError(
            f"several adapters are active at once: {', '.join(active)}", "Name one as args.model_adapter_name."
        )
    name = next(n for n in _names("reference") if n not in model.peft_config)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.add_adapter(name, copy.deepcopy(model.peft_config[active]))
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name=active), adapter_name=name)
    model.set_adapter(active)
    model.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
    return name


def _names(stem: str) -> Iterable[str]:
    return (stem if i == 0 else f"{stem}-{i}" for i in range(100))


def _warn_of_coarse_weights(model: Model) -> None:
    coarse = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)}
    if coarse:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in coarse))
        warnings.warn(
            f"the trained weights are {names}, in which small steps are lost to rounding; load the model in float32: "
            "with bf16=True it computes in bfloat16 all the same",
            UserWarning,
            stacklevel=4,
        )

"""Makes the loop's policy, reference and critic, and ``trainer.model``, of the given models."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from peft import PeftConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from safebench.config import schema as s
from safebench.errors import BadResource, UsageError
from safebench.models import probes, seeding
from safebench.models.adapters import left_out
from safebench.models.critic import Critic
from safebench.models.libraries import naming, quiet_libraries
from safebench.models.loading import padding_within
from safebench.models.policy import Policy, frozen_copy, no_dropout, positions, recompute


def title(role: str, model: Any) -> str:
    """Return a model's name for messages: the argument, and the class inside any adapter's wrapper."""
    inner = unwrapped(model)
    around = "" if inner is model else f" in a {type(model).__name__}"
    return f"{role} ({type(inner).__name__}{around})"


def unwrapped(model: Any) -> Any:
    """Return the model inside peft's wrappers, with its adapter layers in place; return another model as it is."""
    while isinstance(model, PeftModel | PeftMixedModel):
        model = model.get_base_model() if isinstance(model, PeftModel) else model.base_model.model
    return model


def has_own_adapters(model: Any) -> bool:
    """Return whether transformers put the adapters into the model itself (``add_adapter``, ``load_adapter``)."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def refuse_learned_prompts(role: str, model: Any) -> None:
    """Refuse adapters of virtual tokens: they act in the wrapper's forward, which is not called."""
    configs = model.peft_config.values() if isinstance(model, PeftModel) else ()
    if kinds := [type(config).__name__ for config in configs if config.is_prompt_learning]:
        raise UsageError(
            f"{title(role, model)} learns prompts ({kinds[0]}), which is not supported", "Use an adapter such as LoRA."
        )


def refuse_spread(role: str, model: Any) -> None:
    """Refuse a model whose parts are on several devices, on disk or on the meta device."""
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
    """Move a model to the device; a quantised model cannot be moved and must be there already."""
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
    """Return the identities (``id``) of the weights that require gradients."""
    return {id(p) for p in model.parameters() if p.requires_grad}


def shared(model: Any, weights: set[int]) -> int:
    """Return how many of these weights ``model`` has; 0 if it has no weights at all."""
    return len({id(p) for p in model.parameters()} & weights) if isinstance(model, nn.Module) else 0


def refuse_shared(role: str, model: Any, weights: set[int], hint: str) -> None:
    """Refuse a model that has some of the policy's trained weights: it would move with the policy."""
    if count := shared(model, weights):
        raise UsageError(
            f"{title(role, model)} shares {count} of the policy's trained weights: it would move with the policy", hint
        )


WAY_OUT = {
    "reward_model": "Pass a sequence classifier with one label and the policy's tokenizer, a function of texts that "
    "calls the model with its own tokenizer, or its folder's name.",
    "value_model": "Pass value_model=None: the critic then sits on the policy's own states.",
}
"""Hints for a classifier that cannot be read token by token, by the trainer's argument that it was given as."""


class Body(nn.Module):
    """The body of a classifier; an error in its forward pass names the classifier."""

    def __init__(self, what: str, hint: str, body: nn.Module) -> None:
        super().__init__()
        self.what, self.hint, self.body = what, hint, body

    def forward(self, **inputs: Any) -> BaseModelOutput:
        """Return the last hidden states [b, T, h] as ``last_hidden_state``."""
        with naming(f"the forward pass of {self.what}", self.hint):
            out = self.body(**inputs)
            states = getattr(out, "last_hidden_state", None)
            if states is None:
                # The body has an output layer of its own: its hidden states are read as TRL reads them.
                states = self.body(**inputs, output_hidden_states=True, return_dict=True).hidden_states[-1]
        return BaseModelOutput(last_hidden_state=states)


class Score(nn.Module):
    """Maps a state to one number in at least float32, by the classifier's own ``score`` and not a copy of it.

    ``score`` may be a method of the classifier: its weights are then all weights beside the body.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.score = classifier.score
        if not isinstance(self.score, nn.Module):
            beside = unwrapped(classifier.model).children()
            self.layers = nn.ModuleList(layer for layer in beside if layer is not classifier.body.body)

    def forward(self, states: Tensor) -> Tensor:
        """Return one number per state, [..., 1], given states [..., h]."""
        found: Tensor = self.score(states)
        return found.to(torch.promote_types(found.dtype, torch.float32))


class Classifier:
    """A classifier, split into body and ``score`` and tried on a few tokens; adapters on both act, whoever made them.

    ``role``: the trainer's argument that it was given as. Raises ``BadResource`` if it has no ``score``, more than one
    number per state, too small a vocabulary for the policy's tokenizer, or if its own forward pass gives another score.
    """

    def __init__(self, role: str, model: Any, policy: Policy) -> None:
        self.role, self.model, self.what, self.hint = role, model, title(role, model), WAY_OUT[role]
        refuse_learned_prompts(role, model)
        inner = unwrapped(model)
        body = getattr(inner, str(getattr(inner, "base_model_prefix", "")), None)
        score = getattr(inner, "score", None)
        if not isinstance(body, nn.Module) or not callable(score):
            raise BadResource(f"{self.what} {_lack(inner, body)}", self.hint)
        self.score: Any = score
        self.body = Body(self.what, self.hint, body)
        self._refuse_other_tokens(policy)
        placed(role, model, policy.device)
        no_dropout(model)
        model.eval()
        self._try(inner, policy.device)

    def values(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the ``score`` of each token's state, [b, T], given ids padded on the left, [b, T]."""
        states = self.body(
            input_ids=ids, attention_mask=attention, position_ids=positions(attention), use_cache=False
        ).last_hidden_state
        with naming(f"`score` of {self.what}", self.hint):
            found: Tensor = self.score(states)
        if found.shape != (*ids.shape, 1):
            many = f"{found.shape[-1]} scores" if found.shape[:-1] == ids.shape else f"the shape {list(found.shape)}"
            raise BadResource(
                f"{self.what} gives {many} for {list(ids.shape)} tokens, where one score per token is needed",
                f"Load it with num_labels=1. {self.hint}",
            )
        return found.squeeze(-1)

    def _refuse_other_tokens(self, policy: Policy) -> None:
        """Refuse a classifier whose vocabulary is too small for the policy's ids: it is made for another tokenizer."""
        if not hasattr(self.model, "get_input_embeddings"):
            return
        with naming(f"the token embedding of {self.what}", self.hint):
            known = int(self.model.get_input_embeddings().weight.shape[0])
        needed = min(policy.vocabulary, len(policy.tokenizer))
        if known < needed:
            raise BadResource(
                f"{self.what} knows {known} tokens, the policy's tokenizer has {needed}: it cannot read its ids",
                self.hint,
            )

    @torch.no_grad()
    def _try(self, inner: Any, device: torch.device) -> None:
        """Score three tokens; for a classifier of transformers, compare with its own forward pass."""
        pad = getattr(getattr(inner, "config", None), "pad_token_id", None)
        ids = torch.tensor([[i for i in range(4) if i != pad][:3]], device=device)
        attention = torch.ones_like(ids)
        ours = self.values(ids, attention)[0, -1]
        if not torch.isfinite(ours):
            raise BadResource(f"{self.what} gives {float(ours)} for three plain tokens", "Its weights are damaged.")
        if not isinstance(inner, PreTrainedModel) or type(inner).forward is nn.Module.forward:
            return
        with naming(f"the forward pass of {self.what}", self.hint):
            logits = getattr(inner(input_ids=ids, attention_mask=attention), "logits", None)
        if not isinstance(logits, Tensor):
            return
        own = logits.flatten()[-1]
        # Rounding depends on the kernel; a scale, a cap or a pooling of the model's own makes a far larger difference.
        limit = (1e-3 if ours.dtype == torch.float32 else 5e-2) * max(1.0, abs(float(own)))
        if not abs(float(own) - float(ours)) <= limit:
            raise BadResource(
                f"{self.what} scores three tokens {float(own):.6g}, and `score` of its last state is "
                f"{float(ours):.6g}: TRL's trainer, and ours, would read another number than the model's",
                self.hint,
            )


def _lack(inner: Any, body: Any) -> str:
    """Return why a model cannot be read as TRL's trainer reads it."""
    if not isinstance(body, nn.Module):
        return "has no body under its `base_model_prefix`: it is no sequence classifier of transformers"
    heads = [f"`{name}` ({type(m).__name__})" for name, m in inner.named_children() if m is not body]
    instead = f"; beside its body it has {', '.join(heads)}" if heads else ""
    return f"has no `score` that reads the state of a token, which TRL's trainer needs{instead}"


Model: TypeAlias = PeftModel | PreTrainedModel


class PolicyAndValueModel(nn.Module):
    """Holds ``policy`` and ``value_model``; both are trained in place.

    Its weights are those of both, named ``policy.…`` and ``value_model.…`` as in TRL. A call is passed to the policy,
    and so is reading or setting any other attribute.
    """

    policy: nn.Module
    value_model: nn.Module

    def __init__(self, policy: nn.Module, value_model: nn.Module) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.training = policy.training

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the policy's output."""
        return self.policy(*inputs, **named)

    def __getattr__(self, name: str) -> Any:
        """Return a part, or the policy's attribute of this name."""
        parts = self.__dict__.get("_modules", {})
        if name in parts or "policy" not in parts:
            return super().__getattr__(name)
        return getattr(parts["policy"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a part, or the policy's attribute of this name."""
        parts = self.__dict__.get("_modules", {})
        if "policy" in parts and name not in self.__dict__ and name not in ("policy", "value_model"):
            setattr(parts["policy"], name, value)
        else:
            super().__setattr__(name, value)


def make_policy(
    args: Any,
    tokenizer: PreTrainedTokenizerBase,
    model: Model,
    ref_model: Model | None,
    peft_config: PeftConfig | None,
    device: torch.device,
) -> Policy:
    """Return the policy on ``device``; ``args`` are the trainer's arguments, with the precision settled.

    The reference is the first of these that applies: ``ref_model``; the adapter ``ref_adapter_name``; for a model that
    gets its adapter here, the model without it; for a ``PeftModel``, a frozen copy of its adapter as given; for any
    other model, with or without transformers' own adapters, a frozen copy of the model.
    """
    with quiet_libraries():
        policy = _make_policy(args, tokenizer, model, ref_model, peft_config, device)
    _warn_of_coarse_weights("trained", policy.model)
    for text in policy.notices:
        warnings.warn(text, UserWarning, stacklevel=5)
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
        model = _with_adapter(args, base, peft_config)
    no_dropout(model)
    named = _adapters(args, model)
    if reference is None:
        if isinstance(model, PeftModel):
            reference = named if named or peft_config is not None else _adapter_as_given(model)
        else:
            reference = _copy_as_given(model, named, device)
    _refuse_untrained(model)
    model.eval()
    if args.gradient_checkpointing:
        recompute(model)
    placed("model", model, device)
    told = left_out(model, "model") if isinstance(model, PeftModel) else ()
    policy = Policy(model, tokenizer, stop_ids(args, tokenizer), reference, bool(args.bf16), notices=told)
    _refuse_unknown_stop(policy)
    if policy.stop_ids and (generation := getattr(policy.base, "generation_config", None)) is not None:
        generation.eos_token_id = policy.stop_ids[0]  # as TRL's trainer: a saved model stops as trained
    policy.tokenizer = padding_within(tokenizer, int(base.get_input_embeddings().weight.shape[0]))
    _refuse_other_vocabulary(policy)
    return probes.probe(policy, "model")


def make_critic(settings: s.Critic, policy: Policy, value_model: Any, seed: int) -> Critic:
    """Return the critic: on the policy's own states without ``value_model``, else on the body of that model.

    Those weights of the body and ``score`` that require gradients are trained in place; if only an adapter's weights
    do, only the adapter is trained. ``score`` is used if the settings have a single linear head on the state without
    layer norm, as PPO's have.
    """
    if value_model is None:
        return Critic(settings, policy, seed)
    if not isinstance(value_model, nn.Module):
        raise UsageError(
            f"value_model is a {type(value_model).__name__}",
            f"Pass a sequence classifier, {_loaded(value_model, 'SequenceClassification', ', num_labels=1')}, or None: "
            "the critic then sits on the policy's own states.",
        )
    refuse_shared("value_model", value_model, trained(policy.model), "Pass None, or a copy of it.")
    with quiet_libraries():
        classifier = Classifier("value_model", value_model, policy)
    if settings.heads != "single" or settings.head != "linear" or settings.layer_norm:
        _refuse_other_width(classifier, policy)
        return Critic(settings, policy, seed, body=classifier.body)
    if not trained(value_model):
        raise UsageError(
            f"no weight of {classifier.what} is trainable",
            "Load its adapter with is_trainable=True, or call value_model.requires_grad_(True).",
        )
    head = Score(classifier)
    if not all(p.is_floating_point() for p in head.parameters()):
        raise BadResource(
            f"`score` of {classifier.what} is quantised, and it is what a critic learns with",
            f"Leave it out of the quantisation (llm_int8_skip_modules). {classifier.hint}",
        )
    _warn_of_coarse_weights("value model's trained", value_model)
    return Critic(settings, policy, seed, body=classifier.body, head=head)


def apart(value_model: Any, reward_model: Any) -> Any:
    """Return the value model, or a copy of it if training it would change the reward too."""
    if not isinstance(value_model, nn.Module):
        return value_model
    if value_model is not reward_model and not shared(reward_model, trained(value_model)):
        return value_model
    how = "are one object" if value_model is reward_model else "share weights that are trained"
    warnings.warn(
        f"reward_model and value_model {how}: the value model is a copy, so that training it leaves the reward alone",
        UserWarning,
        stacklevel=5,
    )
    with naming(f"a copy of {title('value_model', value_model)}", "Pass two models."):
        return copy.deepcopy(value_model)


def text_tokenizer(processing_class: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a processing class."""
    found = getattr(processing_class, "tokenizer", processing_class)
    if not isinstance(found, PreTrainedTokenizerBase):
        raise UsageError(
            f"processing_class is a {type(processing_class).__name__}", "Pass the tokenizer of the policy."
        )
    return found


def _refuse_unknown_stop(policy: Policy) -> None:
    if policy.stop_ids and not 0 <= policy.stop_ids[0] < policy.vocabulary:
        raise UsageError(
            f"the stop token is {policy.stop_ids[0]}, and the model gives logits for {policy.vocabulary} tokens: no "
            "reply could end",
            "Set stop_token_id to a token of the model.",
        )


def stop_ids(args: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the token that ends a reply; empty if neither ``stop_token`` nor ``stop_token_id`` is given."""
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
    for role, found in (("model", model), ("ref_model", ref_model)):
        if found is not None or role == "model":
            _refuse_unfit(role, found)
    if ref_model is not None:
        refuse_shared("ref_model", ref_model, trained(model), "Pass ref_model=None: the model as it is becomes it.")
    adapted = isinstance(model, PeftModel) or has_own_adapters(model)
    if peft_config is None:
        if getattr(model, "is_quantized", False) and not adapted:
            raise UsageError(
                f"{title('model', model)} is quantised: its weights cannot be trained", "Pass a peft_config too."
            )
        return
    if not isinstance(peft_config, PeftConfig):
        raise UsageError(f"peft_config is a {type(peft_config).__name__}", "Pass one of peft's, such as LoraConfig.")
    if adapted:
        raise UsageError(
            "the model has an adapter already, and peft_config asks for another",
            "Leave peft_config out to go on training that adapter, or merge it and load the model anew.",
        )
    if getattr(peft_config, "is_prompt_learning", False):
        raise UsageError(f"{type(peft_config).__name__} learns prompts, which is not supported", "Use LoraConfig.")


def _refuse_unfit(role: str, model: Any) -> None:
    """Refuse an object that is no transformers model or PeftModel, learns prompts, or is spread over devices."""
    if not isinstance(model, PeftModel | PreTrainedModel):
        hint = f"Pass a transformers model or a PeftModel itself, {_loaded(model, 'CausalLM')}."
        if hasattr(model, "pretrained_model") and hasattr(model, "v_head"):
            hint = "Pass its `pretrained_model`: a critic is value_model's, or for None the trainer's own."
        raise UsageError(f"{role} is a {type(model).__name__}", hint)
    refuse_learned_prompts(role, model)
    refuse_spread(role, model)


def _loaded(model: Any, kind: str, more: str = "") -> str:
    """Return how to load a model; the text has the model's name if the name was given in place of the model."""
    return f'loaded: AutoModelFor{kind}.from_pretrained("{model}"{more})' if isinstance(model, str) else "loaded"


def _with_adapter(args: Any, base: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    with (
        naming(f"peft_config ({type(peft_config).__name__}) on {title('model', base)}", "Mend it.", UsageError),
        seeding.seeded(base.device, "adapter", args.seed),
    ):
        made: PeftModel = get_peft_model(base, peft_config)
    return made


def _reference(ref_model: Model, device: torch.device) -> PreTrainedModel:
    found: PreTrainedModel = ref_model.get_base_model() if isinstance(ref_model, PeftModel) else ref_model
    no_dropout(found)
    placed("ref_model", found.eval().requires_grad_(False), device)
    return found


def _refuse_other_vocabulary(policy: Policy) -> None:
    """Refuse a reference with another vocabulary size: distributions over different numbers of tokens have no KL."""
    if not isinstance(policy.reference, PreTrainedModel):
        return
    known = int(policy.reference.get_output_embeddings().weight.shape[0])
    if known != policy.vocabulary:
        raise BadResource(
            f"ref_model gives logits for {known} tokens, the model for {policy.vocabulary}",
            "Resize the embedding of one (resize_token_embeddings), or pass ref_model=None.",
        )


def _refuse_other_width(classifier: Classifier, policy: Policy) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long, device=policy.device)
    with torch.no_grad():
        width = classifier.body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape[-1]
    if width != policy.width:
        raise BadResource(
            f"the value model's states are {width} wide, the policy's {policy.width}",
            "Pass value_model=None: SAFE's critic then sits on the policy's own states.",
        )


def _adapters(args: Any, model: Model) -> str | None:
    """Activate the adapter that is to be trained, and return the name of the reference's adapter, if given."""
    there = list(model.peft_config) if isinstance(model, PeftModel) or has_own_adapters(model) else []
    for name in ("model_adapter_name", "ref_adapter_name"):
        wanted = getattr(args, name)
        if wanted is not None and wanted not in there:
            has = f"no adapter {wanted!r}; it has {', '.join(there)}" if there else "no adapters"
            raise UsageError(f"{name} is {wanted!r}, and the model has {has}")
    if args.model_adapter_name is not None:
        model.set_adapter(args.model_adapter_name)
    return str(args.ref_adapter_name) if args.ref_adapter_name else None


def _refuse_untrained(model: Model) -> None:
    if not trained(model):
        raise UsageError(
            "no weight of the model is trainable",
            "Load an adapter with is_trainable=True (PeftModel.from_pretrained, load_adapter), or call "
            "model.requires_grad_(True).",
        )


def _copy_as_given(model: PreTrainedModel, adapter: str | None, device: torch.device) -> PreTrainedModel:
    """Return a frozen copy of a model; ``adapter`` names the adapter that is active in the copy, if given."""
    with naming(f"a frozen copy of {title('model', model)}", "Pass ref_model: the same model, loaded again."):
        found = frozen_copy(model)
        if adapter is not None:
            found.set_adapter(adapter)
            found.requires_grad_(False)
    placed("ref_model", found, device)
    return found


def _adapter_as_given(model: PeftModel) -> str:
    """Keep a frozen copy of the active adapter as another adapter of the model, and return its name."""
    _refuse_untrained(model)
    active = model.active_adapter
    if not isinstance(active, str):
        raise UsageError(
            f"several adapters are active at once: {', '.join(active)}", "Name one as args.model_adapter_name."
        )
    name = next(n for n in _names("reference") if n not in model.peft_config)
    weights = [p for p in model.parameters() if p.requires_grad]
    with naming(f"a copy of the adapter {active!r} of {title('model', model)}", "Pass ref_model: it, loaded again."):
        model.add_adapter(name, copy.deepcopy(model.peft_config[active]))
        set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name=active), adapter_name=name)
    model.set_adapter(active)
    model.requires_grad_(False)
    for p in weights:
        p.requires_grad_(True)
    return name


def _names(stem: str) -> Iterable[str]:
    return (stem if i == 0 else f"{stem}-{i}" for i in range(100))


def _warn_of_coarse_weights(whose: str, model: nn.Module) -> None:
    coarse = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)}
    if coarse:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in coarse))
        warnings.warn(
            f"the {whose} weights are {names}, in which small steps are lost to rounding; load the model in float32: "
            "with bf16=True it computes in bfloat16 all the same",
            UserWarning,
            stacklevel=5,
        )

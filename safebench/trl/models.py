"""The given models as the loop's policy, reference and critic, and as ``trainer.model``."""

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
from safebench.trl.classifiers import Classifier, Score
from safebench.trl.objects import (
    has_own_adapters,
    placed,
    refuse_learned_prompts,
    refuse_shared,
    refuse_spread,
    shared,
    title,
    trained,
)
from safebench.world import noise, probes
from safebench.world.adapters import left_out
from safebench.world.forward import no_dropout, recompute
from safebench.world.loading import naming, quiet_libraries
from safebench.world.models import padding_within
from safebench.world.policy import Policy, frozen_copy

Model: TypeAlias = PeftModel | PreTrainedModel


class PolicyAndValueModel(nn.Module):
    """Holds ``policy`` and ``value_model``, both trained in their place.

    Its weights are those of both, by the names ``policy.…`` and ``value_model.…``, as in TRL. A call and every other
    attribute, read or set, is the policy's.
    """

    policy: nn.Module
    value_model: nn.Module

    def __init__(self, policy: nn.Module, value_model: nn.Module) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.training = policy.training

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the policy says."""
        return self.policy(*inputs, **named)

    def __getattr__(self, name: str) -> Any:
        """Return a part, or what the policy has under this name."""
        parts = self.__dict__.get("_modules", {})
        if name in parts or "policy" not in parts:
            return super().__getattr__(name)
        return getattr(parts["policy"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a part, or what the policy has under this name."""
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
    """Return the policy on ``device``; ``args`` as the trainer got them, the precision settled.

    The reference is ``ref_model`` where there is one; else the adapter ``ref_adapter_name``; else, for a model that
    gets its adapter here, the model without it; for a ``PeftModel``, a frozen copy of its adapter as it came; and for
    another model, adapters of transformers' own in it or not, a frozen copy of it.
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
        generation.eos_token_id = policy.stop_ids[0]  # as TRL's trainer: what is saved stops where it was trained to
    policy.tokenizer = padding_within(tokenizer, int(base.get_input_embeddings().weight.shape[0]))
    _refuse_other_vocabulary(policy)
    return probes.probe(policy, "model")


def make_critic(settings: s.Critic, policy: Policy, value_model: Any, seed: int) -> Critic:
    """Return the critic: on the policy's own states without ``value_model``, else on that model's body.

    What requires gradients of body and ``score`` is trained in its place, an adapter alone where nothing else does.
    ``score`` is taken where the settings have a single linear head on the bare state, as PPO's.
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
    """Return the value model, a copy where training it would move the reward too."""
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
    """Refuse what is no language model of transformers, or not in one piece."""
    if not isinstance(model, PeftModel | PreTrainedModel):
        hint = f"Pass a transformers model or a PeftModel itself, {_loaded(model, 'CausalLM')}."
        if hasattr(model, "pretrained_model") and hasattr(model, "v_head"):
            hint = "Pass its `pretrained_model`: a critic is value_model's, or for None the trainer's own."
        raise UsageError(f"{role} is a {type(model).__name__}", hint)
    refuse_learned_prompts(role, model)
    refuse_spread(role, model)


def _loaded(model: Any, kind: str, more: str = "") -> str:
    """Say how a model is loaded: from its name, where that was given in its place."""
    return f'loaded: AutoModelFor{kind}.from_pretrained("{model}"{more})' if isinstance(model, str) else "loaded"


def _with_adapter(args: Any, base: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    with (
        naming(f"peft_config ({type(peft_config).__name__}) on {title('model', base)}", "Mend it.", UsageError),
        noise.seeded(base.device, "adapter", args.seed),
    ):
        made: PeftModel = get_peft_model(base, peft_config)
    return made


def _reference(ref_model: Model, device: torch.device) -> PreTrainedModel:
    found: PreTrainedModel = ref_model.get_base_model() if isinstance(ref_model, PeftModel) else ref_model
    no_dropout(found)
    placed("ref_model", found.eval().requires_grad_(False), device)
    return found


def _refuse_other_vocabulary(policy: Policy) -> None:
    """Distributions over different numbers of tokens have no KL."""
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
    """Let the adapter act that is to be trained, and return the name of the one that is the reference, if given."""
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
    """Return a frozen copy of a model, with another of its adapters where one is named."""
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

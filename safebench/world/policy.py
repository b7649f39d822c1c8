"""The policy: a causal language model, with a LoRA adapter or trained as a whole, and its reference."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safebench import settings as s
from safebench.errors import BadResource, UsageError
from safebench.world import noise


@dataclass
class Policy:
    """A language model with its tokenizer, and the reference that its KL is measured against."""

    model: PeftModel | PreTrainedModel
    """With an adapter, or trained as a whole."""
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """Tokens that end a reply; without any, every reply fills its length."""
    reference: PreTrainedModel | str | None = None
    """A model of its own, another adapter of ``model`` by its name, or None: ``model`` with its adapter off."""
    mixed_precision: bool = False
    acting: PreTrainedModel | None = None
    """The reference's own model while it acts."""

    def __post_init__(self) -> None:
        """Refuse an adapter on the output layer: logits are made from that layer's own weight."""
        if hasattr(self.base.get_output_embeddings(), "base_layer"):
            raise UsageError(
                "the adapter reaches the output layer, where it would neither act nor be trained",
                "Leave lm_head out of its target modules; modules_to_save trains it whole.",
            )

    @property
    def base(self) -> PreTrainedModel:
        """The language model that acts, adapter layers in place."""
        if self.acting is not None:
            return self.acting
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def output_weight(self) -> Tensor:
        """The output embedding of the model that acts, [V, h]; without gradient where it is frozen."""
        weight: Tensor = self.base.get_output_embeddings().weight
        return weight

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.output_weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary as the logits have it."""
        return int(self.output_weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output_weight.device

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden states [B, T, h] of left-padded token ids [B, T]; mask is 1 on real tokens."""
        decoder = self.base.get_decoder()
        with self.precision():
            out = decoder(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
        states: Tensor = out.last_hidden_state
        return states

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the model computes: bfloat16 where it is safe, or the weights' precision."""
        if not self.mixed_precision:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within this context the model is the reference."""
        if isinstance(self.reference, PreTrainedModel):
            self.acting = self.reference
            try:
                yield
            finally:
                self.acting = None
            return
        if not isinstance(self.model, PeftModel):
            raise UsageError("a policy without an adapter needs a reference model of its own")
        with _other_adapter(self.model, self.reference) if self.reference else self.model.disable_adapter():
            yield

    @property
    def reference_weight(self) -> Tensor:
        """The reference's output embedding, [V, h]."""
        if isinstance(self.reference, PreTrainedModel):
            own: Tensor = self.reference.get_output_embeddings().weight
            return own
        head = self.base.get_output_embeddings()
        # peft keeps, beside the original of a module that is trained whole, one copy for each adapter.
        copies = getattr(head, "modules_to_save", None)
        if copies is None:
            return self.output_weight
        weight: Tensor = dict(copies.items()).get(self.reference, head.original_module).weight
        return weight

    def dropped_states(self, ids: Tensor, mask: Tensor, *where: int) -> Tensor:
        """Return ``hidden_states`` under the adapter's dropout, if it has any, drawn by ``where`` alone.

        It drops only within ``training``. The draws depend on which rows share the pass, not on what ran before.
        """
        if not self._dropouts():
            return self.hidden_states(ids, mask)
        with noise.seeded(self.device, "dropout", *where):
            return self.hidden_states(ids, mask)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within this context the adapter's dropout is on, and layers with gradient checkpointing recompute.

        transformers ties recomputing in the backward pass to training mode; only the flags of these two kinds of
        modules are set, so whatever dropout the model itself declares stays off.
        """
        modules = [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", False)] + self._dropouts()
        for module in modules:
            module.training = True
        try:
            yield
        finally:
            for module in modules:
                module.training = False

    @property
    def drops(self) -> bool:
        """Whether the adapter has dropout, which makes every training pass another one."""
        return bool(self._dropouts())

    def _dropouts(self) -> list[nn.Module]:
        return [m for m in self.model.modules() if isinstance(m, nn.Dropout) and m.p > 0]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def adapt(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: s.Model, seed: int, device: torch.device
) -> Policy:
    """Return the policy that the settings make of ``base``: with a fresh LoRA adapter, or trained as a whole.

    The adapter starts as in peft (B zero, A uniform by Kaiming), drawn from the run's seed alone. The model's
    own dropout is off for good, in rollouts and updates alike: the ratio is 1 before the first update, unless
    the settings ask for dropout in the adapter. Without an adapter the reference is a frozen copy of ``base``.
    """
    refuse_unsupported(base)
    no_dropout(base)
    reference = frozen_copy(base).to(device) if model.lora is None else None
    adapted = base.requires_grad_(True) if model.lora is None else _with_adapter(base, model.name, model.lora, seed)
    adapted.eval()
    if model.gradient_checkpointing:
        recompute(adapted)
    adapted.to(device)
    return Policy(adapted, tokenizer, stop_ids(base, tokenizer), reference, model.mixed_precision)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that no training moves."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def recompute(model: PeftModel | PreTrainedModel) -> None:
    """Let layers recompute in the backward pass what they would otherwise keep; within ``Policy.training`` only."""
    model.enable_input_require_grads()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # transformers 5.23 gave it a new name, and warns of the old one.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@contextlib.contextmanager
def _other_adapter(model: PeftModel, name: str) -> Iterator[None]:
    """Within this context the adapter called ``name`` acts; what is trained stays what it was."""
    active = model.active_adapter
    trained = [p for p in model.parameters() if p.requires_grad]
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(active)
        for p in model.parameters():
            p.requires_grad_(False)
        for p in trained:
            p.requires_grad_(True)


def _with_adapter(base: PreTrainedModel, name: str, lora: s.Lora, seed: int) -> PeftModel:
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        adapted: PeftModel = get_peft_model(base, config)
    except ValueError as fault:
        raise UsageError(f"model.lora.targets does not fit {name}: {fault}") from fault
    _draw_adapter(adapted, seed)
    return adapted


def positions(mask: Tensor) -> Tensor:
    """Return each token's place in its sequence, [B, T], counted from the first real one on, padding included."""
    return (torch.arange(mask.shape[1], device=mask.device) - mask.argmax(-1, keepdim=True)).clamp(min=0)


def _draw_adapter(adapted: nn.Module, seed: int) -> None:
    generator = noise.generator("adapter", seed)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)


def no_dropout(base: nn.Module) -> None:
    """Switch off the dropout that a model itself declares, for good."""
    module: Any
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def refuse_unsupported(base: PreTrainedModel) -> None:
    """Refuse models whose logits are more than a product of hidden state and output embedding."""
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(base.config, key, None) not in (None, 1.0):
            raise BadResource(
                f"{type(base).__name__} changes its logits after the output layer ({key})",
                "Use a Qwen2, Qwen3, Llama or similar model; such logits are not supported yet.",
            )
    head = base.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise BadResource(f"{type(base).__name__} has no plain output embedding", "Use a causal language model.")


def stop_ids(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end a reply: the generation config's and the tokenizer's end tokens."""
    generation: Any = base.generation_config.eos_token_id if base.generation_config is not None else None
    ids = generation if isinstance(generation, list) else [generation]
    found = {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}
    if not found:
        raise BadResource("the tokenizer has no end-of-sequence token", "Set eos_token in the tokenizer's config.")
    return tuple(sorted(found))

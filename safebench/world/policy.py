"""The policy: a causal language model, with a LoRA adapter or trained as a whole, and its reference."""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safebench.errors import BadResource, UsageError
from safebench.rl.output import OutputLayer
from safebench.world import forward, noise
from safebench.world.forward import ForwardPath
from safebench.world.loading import passing


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
    path: ForwardPath = forward.PLAIN
    reference_path: ForwardPath = forward.PLAIN
    """Of a reference that is a model of its own."""
    notices: tuple[str, ...] = ()
    """What the user should know of the model and its adapter."""

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
    def output(self) -> OutputLayer:
        """The output layer of the model that acts; without gradient where it is frozen."""
        return forward.output_layer(self.base.get_output_embeddings(), self._acting_path.form)

    @property
    def output_weight(self) -> Tensor:
        """The output embedding of the model that acts, [V, h]; ``logits`` says what else makes logits."""
        return self.output.weight

    @property
    def _acting_path(self) -> ForwardPath:
        return self.path if self.acting is None else self.reference_path

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.output_weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary as the logits have it."""
        rows = self._acting_path.form.rows
        return int(self.output_weight.shape[0]) if rows is None else rows

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output_weight.device

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden states [B, T, h] of left-padded token ids [B, T]; mask is 1 on real tokens."""
        return self.pass_through(ids, mask, forward.positions(mask))[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of the acting model's last hidden states [..., h]."""
        return self.output(hidden)

    def pass_through(
        self, ids: Tensor, mask: Tensor, places: Tensor, cache: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the last hidden states [B, T, h] of ids [B, T] at ``places`` [B, T], and the cache after them.

        ``mask`` [B, T' >= T] covers what the cache holds too. ``cache`` is what the pass over the tokens before gave,
        empty for the first; None is a pass that keeps none. What the forward pass raises names the model.
        """
        with passing(f"the model {self.base.config.name_or_path or type(self.base).__name__}"), self.precision():
            return forward.run(self.base, self._acting_path, ids, mask, places, cache)

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
    def reference_output(self) -> OutputLayer:
        """The reference's output layer."""
        if isinstance(self.reference, PreTrainedModel):
            return forward.output_layer(self.reference.get_output_embeddings(), self.reference_path.form)
        head = self.base.get_output_embeddings()
        # peft keeps, beside the original of a module that is trained whole, one copy for each adapter.
        copies = getattr(head, "modules_to_save", None)
        if copies is None:
            return self.output
        return forward.output_layer(dict(copies.items()).get(self.reference, head.original_module), self.path.form)

    def dropped_states(self, ids: Tensor, mask: Tensor, *where: int) -> Tensor:
        """Return ``hidden_states`` under the adapter's dropout, if it has any, drawn by ``where`` alone.

        It drops only within ``training``. The draws depend on which rows share the pass, not on what ran before.
        """
        if not self.dropouts():
            return self.hidden_states(ids, mask)
        with noise.seeded(self.device, "dropout", *where):
            return self.hidden_states(ids, mask)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within this context the adapter's dropout is on, and layers with gradient checkpointing recompute.

        transformers ties recomputing in the backward pass to training mode. A layer's flag is set for that alone:
        while the layer computes it is off again (``recompute``), so whatever dropout the model declares stays off.
        """
        modules = [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", False)] + self.dropouts()
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
        return bool(self.dropouts())

    def dropouts(self) -> list[nn.Module]:
        """Return the adapter's dropouts that drop: peft keeps them in a dictionary of its layers."""
        found = []
        for layer in self.model.modules():
            kept = getattr(layer, "lora_dropout", None)
            found += [m for m in kept.values() if getattr(m, "p", 0) > 0] if isinstance(kept, nn.ModuleDict) else []
        return found

    def save(self, folder: Path) -> None:
        """Write what is trained into ``folder``: the adapter, or the whole model."""
        if isinstance(self.model, PeftModel):
            # The vocabulary is the base's. peft would ask for the base's configuration to see whether it is.
            self.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that no training moves."""
    return copy.deepcopy(model).eval().requires_grad_(False)


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


def stop_ids(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end a reply: the generation config's and the tokenizer's end tokens."""
    generation: Any = base.generation_config.eos_token_id if base.generation_config is not None else None
    ids = generation if isinstance(generation, list) else [generation]
    found = {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}
    if not found:
        raise BadResource("the tokenizer has no end-of-sequence token", "Set eos_token in the tokenizer's config.")
    return tuple(sorted(found))


def __getattr__(name: str) -> Any:
    """Give ``adapt`` to callers outside that know it from here; ``assemble`` has it now."""
    if name == "adapt":
        return importlib.import_module(".assemble", __package__).adapt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

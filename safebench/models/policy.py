"""Implement the policy: a causal language model (LoRA or trained as a whole), its reference, and its passes."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safebench.errors import BadResource, UsageError
from safebench.models import seeding
from safebench.models.libraries import passing
from safebench.rl.kl import PRODUCT, LogitForm, OutputLayer


class ForwardPath(NamedTuple):
    """How a model's logits are computed; compared with its own forward pass when it is loaded (``probes``)."""

    form: LogitForm = PRODUCT
    """How the output layer's product becomes the logits."""
    captured: bool = False
    """Whether the last hidden state is captured at the input of the output layer, not returned by the decoder."""
    padding: Literal["left", "left, own places", "right"] = "left"
    """Where rows are padded in a pass: on the left, with each token's position given or left to the model; or on the
    right, for models whose tokens count or read the padding before them."""
    decoding: Literal["cache", "cache, no mask", "whole"] = "cache"
    """How a token is sampled: from the cache of the tokens before it, with or without their mask; or by a pass over the
    whole sequence."""


PLAIN = ForwardPath()
"""The path of most models: the decoder's last state, the plain product, a cache."""


def positions(mask: Tensor) -> Tensor:
    """Return each token's position in its sequence, [B, T], counted from the first real token, padding included."""
    return (torch.arange(mask.shape[1], device=mask.device) - mask.argmax(-1, keepdim=True)).clamp(min=0)


def learned_positions(model: nn.Module) -> int | None:
    """Return how many positions a model's learned tables have, None if it has no such table.

    A table that begins after a padding entry (RoBERTa) or at an offset (OPT) has fewer positions than rows.
    """
    places = []
    for path, table in model.named_modules():
        if isinstance(table, nn.Embedding) and path.rpartition(".")[2] in POSITION_TABLES:
            before = int(getattr(table, "offset", 0)) if table.padding_idx is None else table.padding_idx + 1
            places.append(table.num_embeddings - before)
    return min(places) if places else None


POSITION_TABLES = ("position_embeddings", "embed_positions", "position_embedding", "wpe", "pos_emb", "positions_embed")
"""Names of the learned tables of positions in transformers' models."""


def output_layer(head: Any, form: LogitForm) -> OutputLayer:
    """Return the output layer of a model's output embedding."""
    return OutputLayer(head.weight, getattr(head, "bias", None), form)


def forward_pass(
    base: PreTrainedModel,
    path: ForwardPath,
    ids: Tensor,
    mask: Tensor,
    places: Tensor,
    cache: dict[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Return the last hidden states [B, T, h] of ids [B, T] at positions ``places`` [B, T], and the cache after them.

    ``mask`` [B, T' >= T] covers the cached tokens too. ``cache`` is the result of the pass over the tokens before, and
    empty for the first pass. With None, the pass keeps no cache.
    """
    right = path.padding == "right"
    start = mask.argmax(-1, keepdim=True)
    if right:
        ids, mask = _rolled(ids, start), _rolled(mask, start)
    runner = base if path.captured else base.get_decoder()
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places, "use_cache": cache is not None}
    if path.padding != "left":
        del inputs["position_ids"]
    if cache and path.decoding == "cache, no mask":
        del inputs["attention_mask"]
    inputs = accepted(runner, inputs)
    if path.captured:
        hidden, out = _captured_pass(base, inputs | (cache or {}), whole=cache is None)
    else:
        out = runner(**inputs, **(cache or {}))
        hidden = out.last_hidden_state
    return _rolled(hidden, -start) if right else hidden, {} if cache is None else _cache_of(out)


def _rolled(x: Tensor, start: Tensor) -> Tensor:
    """Return rows [B, T, ...] rotated to the left by ``start`` [B, 1] positions."""
    index = (torch.arange(x.shape[1], device=x.device) + start) % x.shape[1]
    return x.gather(1, index.reshape(*index.shape, *[1] * (x.dim() - 2)).expand_as(x))


def accepted(runner: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return those of the inputs that a module's forward pass accepts."""
    taken = _accepted(getattr(runner.forward, "__func__", runner.forward))
    return inputs if taken is None else {name: value for name, value in inputs.items() if name in taken}


@cache
def _accepted(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the names of the inputs that a forward pass accepts; None if it accepts any."""
    parameters = inspect.signature(function).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(p.name for p in parameters)


class _Caught(Exception):
    """Raised to leave a model's forward pass where its last hidden state enters the output layer."""


def _captured_pass(base: PreTrainedModel, inputs: dict[str, Any], *, whole: bool) -> tuple[Tensor, Any]:
    """Return the output layer's input, [B, T, h], and the pass's output; with ``whole``, stop there without one."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        caught.append(arguments[0])
        if whole:
            raise _Caught

    handle = base.get_output_embeddings().register_forward_pre_hook(catch)
    out = None
    try:
        out = base(**inputs)
    except _Caught:
        pass
    finally:
        handle.remove()
    return caught[-1], out


CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Names of models' caches, as output and as input; transformers' own generation uses the same names."""


def _cache_of(out: Any) -> dict[str, Any]:
    """Return a pass's cache as inputs of the next pass; empty if the model keeps none."""
    for name in CACHES:
        if (found := getattr(out, name, None)) is not None:
            return {name: found}
    return {}


class LastStates:
    """The last state of a growing batch of left-padded rows, from a cache, or by whole passes without a cache.

    ``run`` is a pass (ids, mask, places, cache) with the signature of ``Policy.pass_through``.
    """

    def __init__(self, run: Callable[..., Any], ids: Tensor, attention: Tensor, *, cached: bool) -> None:
        self.run, self.ids, self.attention = run, ids, attention
        self.places = positions(attention)
        self.cache: dict[str, Any] | None = {} if cached else None

    def now(self) -> Tensor:
        """Return the last position's hidden state, [b, h]."""
        hidden, cache = self.run(self.ids, self.attention, self.places, self.cache)
        self.cache = None if self.cache is None else cache
        last: Tensor = hidden[:, -1]
        return last

    def append(self, tokens: Tensor) -> None:
        """Append its token [b] to each row."""
        place = self.places[:, -1:] + 1
        if self.cache is None:
            self.ids, self.places = torch.cat([self.ids, tokens[:, None]], 1), torch.cat([self.places, place], 1)
        else:
            self.ids, self.places = tokens[:, None], place
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)


def recompute(model: PeftModel | PreTrainedModel) -> None:
    """Let layers recompute their activations in the backward pass; this applies within ``Policy.training`` only."""
    model.enable_input_require_grads()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # transformers 5.23 renamed this method and warns of the old name.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as fault:
        raise UsageError(
            f"model.gradient_checkpointing: {type(base).__name__} has none",
            "Use --set model.gradient_checkpointing=false.",
        ) from fault
    for module in base.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = partial(_recomputed, module)


def _recomputed(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """Run a layer so that the backward pass recomputes it, with its training flag off."""
    return checkpoint(_at_rest, module, function, *inputs, use_reentrant=False)


def _at_rest(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    before, module.training = module.training, False
    try:
        return function(*inputs)
    finally:
        module.training = before


def no_dropout(base: nn.Module) -> None:
    """Switch off a model's own dropout permanently, both dropout modules and dropout rates of layers."""
    for module in base.modules():
        dropout = "drop" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name.lower() or (dropout and name in ("p", "prob"))):
                setattr(module, name, 0.0)


@dataclass
class Policy:
    """A language model with its tokenizer, and the reference that its KL is measured against."""

    model: PeftModel | PreTrainedModel
    """A model with an adapter, or one that is trained as a whole."""
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """Tokens that end a reply; without any, every reply has the full length."""
    reference: PreTrainedModel | str | None = None
    """A separate model, the name of another adapter of ``model``, or None for ``model`` with its adapter off."""
    mixed_precision: bool = False
    acting: PreTrainedModel | None = None
    """The separate reference model while it is used."""
    path: ForwardPath = PLAIN
    reference_path: ForwardPath = PLAIN
    """Path of a reference that is a separate model."""
    notices: tuple[str, ...] = ()
    """Notices for the user about the model and its adapter."""

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for an adapter on the output layer: logits are computed from that layer's own weight."""
        if hasattr(self.base.get_output_embeddings(), "base_layer"):
            raise UsageError(
                "the adapter reaches the output layer, where it would neither act nor be trained",
                "Leave lm_head out of its target modules; modules_to_save trains it whole.",
            )

    @property
    def base(self) -> PreTrainedModel:
        """The language model in use (policy or reference), with its adapter layers."""
        if self.acting is not None:
            return self.acting
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def output(self) -> OutputLayer:
        """The output layer of the model in use; without gradient if it is frozen."""
        return output_layer(self.base.get_output_embeddings(), self._acting_path.form)

    @property
    def output_weight(self) -> Tensor:
        """The output embedding of the model in use, [V, h]; ``logits`` applies the rest of the output layer."""
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
        """Size of the vocabulary in the logits."""
        rows = self._acting_path.form.rows
        return int(self.output_weight.shape[0]) if rows is None else rows

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.output_weight.device

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden states [B, T, h] of left-padded token ids [B, T]; mask is 1 on real tokens."""
        return self.pass_through(ids, mask, positions(mask))[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] from last hidden states [..., h] of the model in use."""
        return self.output(hidden)

    def pass_through(
        self, ids: Tensor, mask: Tensor, places: Tensor, cache: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the last hidden states [B, T, h] of ids [B, T] and the cache after them.

        ``places`` [B, T] are the tokens' positions. ``mask`` [B, T' >= T] covers the cached tokens too. ``cache`` is
        the result of the pass over the tokens before, and empty for the first pass. With None, the pass keeps no cache.
        Errors of the forward pass name the model.
        """
        with passing(f"the model {self.base.config.name_or_path or type(self.base).__name__}"), self.precision():
            return forward_pass(self.base, self._acting_path, ids, mask, places, cache)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the model computes: bfloat16 where it is safe, or the weights' precision."""
        if not self.mixed_precision:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Use the reference as the model within this context."""
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
            return output_layer(self.reference.get_output_embeddings(), self.reference_path.form)
        head = self.base.get_output_embeddings()
        # For a module that is trained whole, peft keeps the original and one copy for each adapter.
        copies = getattr(head, "modules_to_save", None)
        if copies is None:
            return self.output
        return output_layer(dict(copies.items()).get(self.reference, head.original_module), self.path.form)

    def dropped_states(self, ids: Tensor, mask: Tensor, *where: int) -> Tensor:
        """Return ``hidden_states`` with the adapter's dropout, if it has any, seeded by ``where``.

        Dropout acts only within ``training``. The draws depend on ``where`` and on which rows share the pass, not on
        earlier computation.
        """
        if not self.dropouts():
            return self.hidden_states(ids, mask)
        with seeding.seeded(self.device, "dropout", *where):
            return self.hidden_states(ids, mask)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Turn on the adapter's dropout, and recomputation in layers with gradient checkpointing, within this context.

        transformers recomputes in the backward pass only in training mode. A layer's training flag is set only for
        that. While the layer computes, the flag is off again (``recompute``), so that the model's own dropout stays
        off.
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
        """Whether the adapter has dropout, so that every training pass differs."""
        return bool(self.dropouts())

    def dropouts(self) -> list[nn.Module]:
        """Return the adapter's dropout modules with a rate above 0; peft keeps them in a dictionary of its layers."""
        found = []
        for layer in self.model.modules():
            kept = getattr(layer, "lora_dropout", None)
            found += [m for m in kept.values() if getattr(m, "p", 0) > 0] if isinstance(kept, nn.ModuleDict) else []
        return found

    def save(self, folder: Path) -> None:
        """Write the trained part into ``folder``: the adapter, or the whole model."""
        if isinstance(self.model, PeftModel):
            # The vocabulary is the base's. By default, peft would fetch the base's configuration to check this.
            self.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a frozen copy in evaluation mode."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextlib.contextmanager
def _other_adapter(model: PeftModel, name: str) -> Iterator[None]:
    """Use the adapter called ``name`` within this context; the set of trained parameters is restored afterwards."""
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

"""The policy: a causal language model, with a LoRA adapter or trained as a whole, its reference, and its passes."""

from __future__ import annotations

import contextlib
import copy
import importlib
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
    """How a model's logits are reached; measured against its own forward pass when it is loaded (``probes``)."""

    form: LogitForm = PRODUCT
    """What happens to the output layer's product before it is called logits."""
    captured: bool = False
    """The last hidden state is caught where it enters the output layer, not returned by the decoder."""
    padding: Literal["left", "left, own places", "right"] = "left"
    """Where rows are padded while they pass through: on the left with each token's place given or left to the model;
    or on the right, for models whose tokens count or read what stands before them."""
    decoding: Literal["cache", "cache, no mask", "whole"] = "cache"
    """A token is sampled from the cache of those before it, with or without their mask; or each takes a pass over the
    whole sequence."""


PLAIN = ForwardPath()
"""Of a model as most are: the decoder's last state, the plain product, a cache."""


def positions(mask: Tensor) -> Tensor:
    """Return each token's place in its sequence, [B, T], counted from the first real one on, padding included."""
    return (torch.arange(mask.shape[1], device=mask.device) - mask.argmax(-1, keepdim=True)).clamp(min=0)


def learned_positions(model: nn.Module) -> int | None:
    """Return how many positions a model's learned tables have, None where it has no such table.

    A table that begins behind a padding entry (RoBERTa) or at an offset (OPT) has fewer places than rows.
    """
    places = []
    for path, table in model.named_modules():
        if isinstance(table, nn.Embedding) and path.rpartition(".")[2] in POSITION_TABLES:
            before = int(getattr(table, "offset", 0)) if table.padding_idx is None else table.padding_idx + 1
            places.append(table.num_embeddings - before)
    return min(places) if places else None


POSITION_TABLES = ("position_embeddings", "embed_positions", "position_embedding", "wpe", "pos_emb", "positions_embed")
"""What transformers' models call their learned tables of positions."""


def output_layer(head: Any, form: LogitForm) -> OutputLayer:
    """Return the output layer that a model's output embedding makes."""
    return OutputLayer(head.weight, getattr(head, "bias", None), form)


def forward_pass(
    base: PreTrainedModel,
    path: ForwardPath,
    ids: Tensor,
    mask: Tensor,
    places: Tensor,
    cache: dict[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Return the last hidden states [B, T, h] of ids [B, T] at ``places`` [B, T], and the cache after them.

    ``mask`` [B, T' >= T] covers what the cache holds too. ``cache`` is what the pass over the tokens before gave,
    empty for the first; None is a pass that keeps none.
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
    """Return rows [B, T, ...] turned to the left by ``start`` [B, 1] places."""
    index = (torch.arange(x.shape[1], device=x.device) + start) % x.shape[1]
    return x.gather(1, index.reshape(*index.shape, *[1] * (x.dim() - 2)).expand_as(x))


def accepted(runner: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return those of the inputs that a module's forward pass takes."""
    taken = _accepted(getattr(runner.forward, "__func__", runner.forward))
    return inputs if taken is None else {name: value for name, value in inputs.items() if name in taken}


@cache
def _accepted(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the names that a forward pass takes as inputs; None where it takes any."""
    parameters = inspect.signature(function).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(p.name for p in parameters)


class _Caught(Exception):
    """Leaves a model's forward pass where its last hidden state enters the output layer."""


def _captured_pass(base: PreTrainedModel, inputs: dict[str, Any], *, whole: bool) -> tuple[Tensor, Any]:
    """Return what enters the output layer, [B, T, h], and the pass's output; ``whole``: stop there, without one."""
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
"""What models call their cache, as output and as input; transformers' own generation knows these names."""


def _cache_of(out: Any) -> dict[str, Any]:
    """Return a pass's cache as the inputs of the next one; empty where the model keeps none."""
    for name in CACHES:
        if (found := getattr(out, name, None)) is not None:
            return {name: found}
    return {}


class LastStates:
    """The state after a growing batch of left-padded rows, from a cache, or by whole passes where there is none.

    ``run`` is a pass (ids, mask, places, cache) as ``Policy.pass_through``.
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
        """Let each row go on with its token [b]."""
        place = self.places[:, -1:] + 1
        if self.cache is None:
            self.ids, self.places = torch.cat([self.ids, tokens[:, None]], 1), torch.cat([self.places, place], 1)
        else:
            self.ids, self.places = tokens[:, None], place
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)


def recompute(model: PeftModel | PreTrainedModel) -> None:
    """Let layers recompute in the backward pass what they would otherwise keep; within ``Policy.training`` only."""
    model.enable_input_require_grads()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # transformers 5.23 gave it a new name, and warns of the old one.
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
    """Run a layer so that the backward pass recomputes it, its training flag off meanwhile."""
    return checkpoint(_at_rest, module, function, *inputs, use_reentrant=False)


def _at_rest(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    before, module.training = module.training, False
    try:
        return function(*inputs)
    finally:
        module.training = before


def no_dropout(base: nn.Module) -> None:
    """Switch off the dropout that a model declares, for good: as a module of its own, or as a layer's number."""
    for module in base.modules():
        dropout = "drop" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name.lower() or (dropout and name in ("p", "prob"))):
                setattr(module, name, 0.0)


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
    path: ForwardPath = PLAIN
    reference_path: ForwardPath = PLAIN
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
        return output_layer(self.base.get_output_embeddings(), self._acting_path.form)

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
        return self.pass_through(ids, mask, positions(mask))[0]

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
            return forward_pass(self.base, self._acting_path, ids, mask, places, cache)

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
            return output_layer(self.reference.get_output_embeddings(), self.reference_path.form)
        head = self.base.get_output_embeddings()
        # peft keeps, beside the original of a module that is trained whole, one copy for each adapter.
        copies = getattr(head, "modules_to_save", None)
        if copies is None:
            return self.output
        return output_layer(dict(copies.items()).get(self.reference, head.original_module), self.path.form)

    def dropped_states(self, ids: Tensor, mask: Tensor, *where: int) -> Tensor:
        """Return ``hidden_states`` under the adapter's dropout, if it has any, drawn by ``where`` alone.

        It drops only within ``training``. The draws depend on which rows share the pass, not on what ran before.
        """
        if not self.dropouts():
            return self.hidden_states(ids, mask)
        with seeding.seeded(self.device, "dropout", *where):
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

"""Passes through a causal language model: last hidden states, caches, recomputing, and no dropout of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from safebench.errors import UsageError
from safebench.rl.output import PRODUCT, LogitForm, OutputLayer


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


def run(
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

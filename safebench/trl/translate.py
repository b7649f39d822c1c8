"""From the configuration to the loop's settings, and the sizes that follow from it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pydantic import ValidationError

from safebench import config
from safebench.errors import UsageError
from safebench.settings import Settings
from safebench.trl.fields import FILLED, PLAIN


def fill_sizes(args: Any, rows: int, processes: int) -> None:
    """Fill in the sizes that follow from the others: replies per batch, update and pass, and batches of the run.

    batch = per_device_train_batch_size x gradient_accumulation_steps x processes; ``max_steps``, where it is positive,
    is the number of batches, else ``total_episodes`` (or ``num_train_epochs`` x ``rows``) over the batch, rounded up.
    Raises ``UsageError`` where mini-batches do not divide the batch or a given size contradicts the others.
    """
    local = args.per_device_train_batch_size * args.gradient_accumulation_steps
    batch, parts = local * processes, args.num_mini_batches
    if parts < 1 or local % parts:
        raise UsageError(
            f"num_mini_batches ({parts}) must divide the {local} replies per batch and process "
            "(per_device_train_batch_size x gradient_accumulation_steps)"
        )
    if args.max_steps > 0:
        args.total_episodes = args.max_steps * batch
    elif args.total_episodes is None:
        args.total_episodes = int(args.num_train_epochs * rows)
    found = {
        "world_size": processes,
        "num_total_batches": math.ceil(args.total_episodes / batch),
        "micro_batch_size": args.per_device_train_batch_size * processes,
        "local_batch_size": local,
        "batch_size": batch,
        "local_mini_batch_size": local // parts,
        "mini_batch_size": batch // parts,
    }
    for name in FILLED:
        given = getattr(args, name)
        if given not in (None, found[name]):
            raise UsageError(
                f"{name} is {given}, but it follows from the other sizes, and is {found[name]}", f"Leave {name} out."
            )
        setattr(args, name, found[name])
    if args.num_total_batches < 1:
        raise UsageError(f"total_episodes is {args.total_episodes}: nothing to do")


def settings_of(args: Any, *, own_value_model: bool, stops: bool) -> Settings:
    """Return the loop's settings; ``args`` as ``fill_sizes`` left them, of ``PPOConfig`` or ``SAFEConfig``.

    ``own_value_model``: the critic has a body of its own, the value model given; ``stops``: a token ends replies,
    and the loop itself can tell which replies miss it. Raises ``UsageError`` for values out of range.
    """
    tree = _base(args)
    limit = args.max_grad_norm or None
    _lay(tree, "critic.body", "separate" if own_value_model else "shared")
    _lay(tree, "update.critic_max_grad_norm", limit)
    for name, key in _keys(args).items():
        _lay(tree, key, getattr(args, name))
    for key, value in _of_sizes(args).items():
        _lay(tree, key, value)
    _lay(tree, "update.max_grad_norm", limit)
    _lay(tree, "reward.missing_eos_penalty", (args.missing_eos_penalty or 0.0) if stops else 0.0)
    _drop_unused(tree)
    try:
        return Settings.model_validate(tree)
    except ValidationError as fault:
        lines = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors())
        raise UsageError(f"{type(args).__name__} holds what the loop cannot use:\n{lines}") from fault


def is_safe(args: Any) -> bool:
    """Say whether the configuration has SAFE's fields."""
    return bool(_keys_of_safe(args))


def _base(args: Any) -> dict[str, Any]:
    if is_safe(args):
        tree = config.resolve("safe").model_dump(mode="json")
        return {**tree, "arm": "safebench.trl.watch:WatchedSAFE"}
    return {"experiment": "drop-in", "arm": "safebench.trl.watch:WatchedPPO"}


def _of_sizes(args: Any) -> dict[str, Any]:
    """Return what is not one field's plain value: sizes, the machine, and what the given objects stand for."""
    return {
        "experiment": "drop-in",
        "seed": args.seed,
        "model.name": "given",
        "model.lora": None,
        "model.mixed_precision": bool(args.bf16),
        "model.gradient_checkpointing": bool(args.gradient_checkpointing),
        "reward.name": "given",
        "reward.judge": None,
        "prompts.name": "given",
        "prompts.max_tokens": 2**31,
        "rollout.batch": args.batch_size,
        "rollout.reply_tokens": args.response_length,
        "rollout.temperature": args.temperature,
        "rollout.chunk": args.local_rollout_forward_batch_size,
        "update.steps": args.num_total_batches,
        "update.epochs": args.num_ppo_epochs,
        "update.minibatches": args.num_mini_batches,
        "update.microbatch": args.per_device_train_batch_size,
        "update.learning_rate": args.learning_rate,
        "update.schedule": "constant",
        "recording.gradient_norms_every": None,
        "compute.device": "cpu" if args.use_cpu else "auto",
        "compute.threads": None,
    }


def _keys(args: Any) -> dict[str, str]:
    return PLAIN | _keys_of_safe(args)


def _keys_of_safe(args: Any) -> dict[str, str]:
    texts = {field.name: field.metadata.get("help") for field in dataclasses.fields(args)}
    return {name: text.key for name, text in texts.items() if text is not None and hasattr(text, "key")}


def _lay(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


def _drop_unused(tree: dict[str, Any]) -> None:
    """A section whose one field was left at None is off."""
    for section, part, field in (("penalty", "momentum", "coefficient"), ("update", "preview", "ceiling")):
        inner = tree.get(section)
        if inner and isinstance(inner.get(part), dict) and inner[part].get(field) is None:
            inner[part] = None

"""The optimizer and the schedule that the configuration asks for, over the loop's policy and critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from safebench.config.schema import Update
from safebench.errors import UsageError
from safebench.models.libraries import naming
from safebench.models.policy import Policy
from safebench.training.critic import Critic
from safebench.training.update import Optimizers

_NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def make_optimizers(args: Any, update: Update, policy: Policy, critic: Critic, given: Optimizers) -> Optimizers:
    """Return optimizer and schedule, each the given one or the one that ``args`` names.

    Of ``args``: ``optim``, ``optim_args``, ``adam_*``, ``weight_decay`` (none on biases and norms, as transformers
    has it) and ``lr_scheduler_type`` with warm-up and ``lr_scheduler_kwargs``; the schedule moves once per batch.
    """
    optimizer = _own(args, update, policy, critic) if given[0] is None else _completed(given[0], policy, critic)
    if given[1] is not None:
        return optimizer, given[1]
    total = update.steps
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    with naming(f"lr_scheduler_type {kind}", f"Mend lr_scheduler_kwargs: {args.lr_scheduler_kwargs}.", UsageError):
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(total),
            num_training_steps=total,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    return optimizer, schedule


def decayed(module: nn.Module) -> list[str]:
    """Return the names of the weights that decay: all but biases and those of norms."""
    found: list[str] = get_parameter_names(module, [nn.LayerNorm], _NOT_DECAYED)
    return found


def _own(args: Any, update: Update, policy: Policy, critic: Critic) -> torch.optim.Optimizer:
    with naming(f"optim {args.optim.value}", "Install what it needs, or use adamw_torch.", UsageError):
        make, options = Trainer.get_optimizer_cls_and_kwargs(args, policy.model)
    if not isinstance(make, type) or not issubclass(make, torch.optim.Optimizer) or {"params", "model"} & set(options):
        raise UsageError(
            f"optim is {args.optim.value}, which is bound to layers", "Use adamw_torch, or pass optimizers=(…, None)."
        )
    rates = (update.learning_rate, update.critic_learning_rate or update.learning_rate)
    critics = [module for module in (critic.online, critic.body) if module is not None]
    groups = [*_groups([policy.model], rates[0], args.weight_decay), *_groups(critics, rates[1], args.weight_decay)]
    with naming(f"optim {args.optim.value}", f"Mend optim_args: {args.optim_args}.", UsageError):
        made: torch.optim.Optimizer = make(groups, **{key: value for key, value in options.items() if key != "lr"})
    return made


def _groups(modules: list[nn.Module], rate: float, decay: float) -> list[dict[str, Any]]:
    """Return one group of parameters, or two where weights decay and others do not; the first is never empty."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        names = set(decayed(module)) if decay else set()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (decaying if name in names else others).append(parameter)
    groups = [
        {"params": decaying, "lr": rate, "weight_decay": decay},
        {"params": others, "lr": rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _completed(optimizer: torch.optim.Optimizer, policy: Policy, critic: Critic) -> torch.optim.Optimizer:
    """Return the given optimizer, which must train the policy.

    The critic's weights that it lacks join its last group of parameters: a schedule may count the groups already.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in policy.trainable().items() if id(p) not in held]
    if missing:
        raise UsageError(
            f"the given optimizer lacks {len(missing)} of the policy's trained weights, such as {missing[0]}",
            "Make it from the model that is trained; with peft_config pass the PeftModel itself instead.",
        )
    optimizer.param_groups[-1]["params"] += [p for p in critic.parameters() if id(p) not in held]
    return optimizer

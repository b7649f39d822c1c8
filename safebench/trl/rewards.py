"""What scores replies in the drop-in: a classifier that reads the policy's token ids, a function, or one of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from safebench.errors import UsageError
from safebench.models.generation import Rollout
from safebench.models.policy import Policy
from safebench.models.prompts import Prompt
from safebench.models.rewards import Reward, called, checked, load_reward, named_roles
from safebench.trl.models import Classifier, refuse_shared, trained, unwrapped

_NOT_COLUMNS = ("prompt", "completion", "completion_ids", "input_ids", "attention_mask")


class ClassifierReward:
    """A sequence classifier with one output that shares the policy's tokenizer, read at a reply's last token."""

    def __init__(self, model: Any, policy: Policy, chunk: int) -> None:
        self.name, self.chunk = type(unwrapped(model)).__name__, chunk
        refuse_shared("reward_model", model, trained(policy.model), "Pass a copy of it.")
        self.classifier = Classifier("reward_model", model, policy)

    @torch.no_grad()
    def score_rollout(self, rollout: Rollout) -> Tensor:
        """Return the score at the last token of each reply, its stop token included, [B]."""
        scores = torch.zeros(len(rollout.replies), device=rollout.ids.device)
        for rows in rollout.groups(self.chunk):
            cut = rollout.cut(rows)
            last = cut.attention.shape[1] - 1 - cut.attention.flip(-1).argmax(-1)
            values = self.classifier.values(cut.ids, cut.attention)
            scores[rows] = values[torch.arange(len(rows), device=last.device), last].float()
        return checked(self.name, scores.tolist(), len(rollout.replies))


class FunctionReward:
    """A Python function of texts.

    Two forms, told apart by the names of the parameters:
    ``f(prompts=…, completions=…, **columns) -> list of floats``, as TRL's GRPOTrainer calls it: any of ``prompts``,
    ``completions``, ``completion_ids``, ``trainer_state`` and the data set's columns that it names, or all with
    ``**kwargs``; for conversations, prompts and completions are lists of messages. Or ``f(prompts, replies)``, as
    this package calls it, two lists of texts in these places.
    """

    def __init__(self, function: Callable[..., Sequence[float]]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.trainer_state: Any = None
        self.names = _named(function, self.name)
        self.roles = None if self.names is not None else named_roles(function, self.name)

    def score_rollout(self, rollout: Rollout) -> Tensor:
        """Call the function and check what it returns, [B]."""
        return called(
            self.name,
            lambda: self._call(rollout),
            len(rollout.replies),
            "Mend it, then train(resume_from_checkpoint=True) goes on from the last checkpoint.",
        )

    def _call(self, rollout: Rollout) -> Sequence[float]:
        prompts, replies = [str(prompt) for prompt in rollout.prompts], list(rollout.replies)
        if self.roles is not None:
            texts = {"prompts": prompts, "replies": replies}
            return self.function(**{name: texts[role] for name, role in self.roles.items()})
        if self.names is None:
            return self.function(prompts, replies)
        given = _arguments(rollout) | {"trainer_state": self.trainer_state}
        wanted = given if "**" in self.names else {name: given[name] for name in self.names if name in given}
        return self.function(**wanted)


def make_reward(model: Any, policy: Policy, chunk: int) -> Reward:
    """Return the reward that ``model`` stands for: a classifier, a function, a reward of ours, or the name of one."""
    if isinstance(model, nn.Module):
        return cast(Reward, ClassifierReward(model, policy, chunk))
    if isinstance(model, str):
        return load_reward(model, policy.device, apart=policy.tokenizer.chat_template is not None)
    if hasattr(model, "score") or hasattr(model, "score_rollout"):
        return cast(Reward, model)
    if callable(model):
        return cast(Reward, FunctionReward(model))
    raise UsageError(
        f"reward_model is a {type(model).__name__}",
        "Pass one sequence classifier, loaded, one function (prompts, completions) -> floats, or a name of "
        "`safebench rewards`.",
    )


def _arguments(rollout: Rollout) -> dict[str, Any]:
    prompts, replies = rollout.prompts, rollout.replies
    rows = [prompt.row if isinstance(prompt, Prompt) else {} for prompt in prompts]
    talks = [prompt.messages if isinstance(prompt, Prompt) else None for prompt in prompts]
    ids = [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask, strict=True)]
    columns = {name: [row.get(name) for row in rows] for name in rows[0] if name not in _NOT_COLUMNS}
    if all(talk is not None for talk in talks):
        completions: list[Any] = [[{"role": "assistant", "content": reply}] for reply in replies]
        return {**columns, "prompts": talks, "completions": completions, "completion_ids": ids}
    return {**columns, "prompts": [str(p) for p in prompts], "completions": list(replies), "completion_ids": ids}


def _named(function: Callable[..., Any], name: str) -> tuple[str, ...] | None:
    """Return the names to call by, ``**`` among them where any goes; None for (prompts, replies) by place."""
    parameters = list(inspect.signature(function).parameters.values())
    names = tuple(p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return (*names, "**")
    if "completions" in names:
        return names
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    if (len(places) >= 2 and len(needed) <= 2) or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    raise UsageError(
        f"the reward function {name} takes ({', '.join(names)})",
        "Write f(prompts, replies), or f(completions, **kwargs) as for TRL's GRPOTrainer.",
    )

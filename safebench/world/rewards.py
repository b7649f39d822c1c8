"""Rewards: what scores a reply to a prompt, be it a model or a Python function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from safebench import catalog
from safebench.errors import BadResource, MissingResource, UsageError
from safebench.world.loading import loading
from safebench.world.prompts import as_messages
from safebench.world.rollout import Rollout

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


class Reward(Protocol):
    """Scores replies; higher is better."""

    name: str

    def score(self, prompts: list[str], replies: list[str]) -> Tensor:
        """Return one float32 score per reply, [B], on the CPU, all finite."""
        ...


@runtime_checkable
class RolloutReward(Protocol):
    """Scores replies by their token ids."""

    def score_rollout(self, rollout: Rollout) -> Tensor:
        """Return one float32 score per reply, [B], all finite."""
        ...


def score(reward: Reward, rollout: Rollout) -> Tensor:
    """Return the score of each reply, [B]: by its ids where the reward reads ids, else by its text."""
    if isinstance(reward, RolloutReward):
        return reward.score_rollout(rollout)
    return reward.score(rollout.prompts, rollout.replies)


class ModelReward:
    """A sequence classifier with one output, reading the templated dialogue with its own tokenizer.

    ``chunk`` dialogues of like length are read at once, so that little of the work goes to padding.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, chunk: int = 16) -> None:
        self.name, self.model, self.tokenizer, self.chunk = name, model, tokenizer, chunk

    @torch.no_grad()
    def score(self, prompts: list[str], replies: list[str]) -> Tensor:
        """Return the classifier's logit per reply, [B]."""
        texts = [self._text(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        scores = torch.empty(len(texts))
        for start in range(0, len(order), self.chunk):
            rows = order[start : start + self.chunk]
            scores[rows] = self._logits([texts[row] for row in rows])
        return checked(self.name, scores.tolist(), len(texts))

    def _text(self, prompt: str, reply: str) -> str:
        messages = [*as_messages(prompt), {"role": "assistant", "content": reply}]
        if self.tokenizer.chat_template is None:
            return f"{prompt}{reply}{self.tokenizer.eos_token or ''}"
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))

    def _logits(self, texts: list[str]) -> Tensor:
        encoded = self.tokenizer(
            texts, padding=True, padding_side="right", add_special_tokens=False, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        out = self.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        # ArmoRM and its kin name their preference score ``score``; a classifier has one logit.
        scores: Tensor = out.score if hasattr(out, "score") else out.logits
        return scores.float().reshape(len(texts), -1)[:, 0].cpu()


class FunctionReward:
    """A Python function (prompts, replies) -> floats."""

    def __init__(self, name: str, function: RewardFunction) -> None:
        self.name, self.function = name, function

    def score(self, prompts: list[str], replies: list[str]) -> Tensor:
        """Call the function and check what it returns."""
        return called(
            self.name,
            lambda: self.function(list(prompts), list(replies)),
            len(replies),
            "Mend it and call the same command again: the run resumes from its last checkpoint.",
        )


def called(name: str, function: Callable[[], Sequence[float]], count: int, hint: str) -> Tensor:
    """Return what a user's reward function says, float32 [count].

    Whatever it raises becomes a ``BadResource`` with ``hint``: no one knows what a stranger's function may raise.
    """
    try:
        values = list(function())
    except Exception as fault:
        raise BadResource(f"the reward function {name} raised {type(fault).__name__}: {fault}", hint) from fault
    return checked(name, values, count)


def checked(name: str, values: Sequence[float], count: int) -> Tensor:
    """Return ``values`` as float32 [count], or say which reward broke its word and how."""
    if len(values) != count:
        raise BadResource(
            f"the reward {name} returned {len(values)} values for {count} replies",
            "A reward returns exactly one number per reply, in order.",
        )
    try:
        scores = torch.tensor([float(value) for value in values], dtype=torch.float32)
    except (TypeError, ValueError) as fault:
        raise BadResource(f"the reward {name} returned something that is not a number: {fault}") from fault
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        raise BadResource(
            f"the reward {name} returned {float(scores[bad[0]])} for reply {bad[0]} "
            f"({len(bad)} of {count} are not finite)",
            "A reward must be finite; score broken replies low instead.",
        )
    return scores


def load_reward(name: str, device: torch.device) -> Reward:
    """Return the reward of a catalogue name, hub id, local directory or ``module:function``."""
    source = catalog.reward_source(name)
    if source.kind == "function":
        return FunctionReward(name, _function(source.location))
    with loading(f"reward model {name}", source.location):
        tokenizer = AutoTokenizer.from_pretrained(source.location)
        model = AutoModelForSequenceClassification.from_pretrained(
            source.location,
            dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
            trust_remote_code=source.remote_code,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return ModelReward(name, model.eval().to(device), tokenizer)


def _function(location: str) -> RewardFunction:
    module_name, _, attribute = location.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as fault:
        raise MissingResource(
            f"the reward {location} names a module that does not import: {fault}",
            "Write module:function, with the module in the current folder or installed.",
        ) from fault
    except AttributeError as fault:
        raise MissingResource(f"the module {module_name} has no {attribute}") from fault
    if not callable(function):
        raise UsageError(f"the reward {location} is not a function")
    return function  # type: ignore[no-any-return]

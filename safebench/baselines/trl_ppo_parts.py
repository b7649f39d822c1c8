"""What TRL's PPO is given to work with: prompts, a reward model and a value model, in the form that it asks for."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from safebench.baselines.sampled import cut_at_the_end
from safebench.baselines.watch import Watch
from safebench.models import seeding
from safebench.models.assemble import World
from safebench.models.generation import Encoded, encode
from safebench.models.policy import Policy
from safebench.settings import Settings


def value_model(policy: Policy, settings: Settings) -> PreTrainedModel:
    """Return a classifier with one output on a copy of the policy's base, as TRL's scripts load one.

    Its head is what transformers makes of a new one (normal, small), drawn from the run's seed.
    """
    config = copy.deepcopy(policy.base.config)
    config.num_labels = 1
    with seeding.seeded(policy.device, "critic", settings.seed):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    weights = policy.base.get_decoder().state_dict()
    kept = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    getattr(model, model.base_model_prefix).load_state_dict(kept)
    made: PreTrainedModel = model.to(policy.device, getattr(torch, settings.critic.dtype))
    return made


class Feeder:
    """Collates prompts as the loop encodes them, and remembers which ones, in the order of the batches.

    TRL takes the ids alone, from a loader that reads one batch ahead.
    """

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings, self.world = settings, world
        self.waiting: deque[Encoded] = deque()

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the ids of the examples' prompts, padded on the left."""
        prompts, tokenizer = self.world.prompts, self.world.policy.tokenizer
        rows = [int(example["row"]) for example in examples]
        encoded = encode(
            [prompts.train[row] for row in rows],
            [prompts.ids("train", row, tokenizer) for row in rows],
            self.settings.prompts.max_tokens,
            int(tokenizer.pad_token_id),
            torch.device("cpu"),
        )
        self.waiting.append(encoded)
        return {"input_ids": encoded.ids}


class RewardModel(nn.Module):
    """A classifier to TRL, which asks for a backbone and a ``score`` head; inside, the world's reward reads texts."""

    base_model_prefix = "backbone"

    def __init__(self, policy: Policy, feeder: Feeder, watch: Watch) -> None:
        """Score prompts and replies that ``feeder`` has given to TRL, by way of ``watch``."""
        super().__init__()
        self.backbone = _Backbone(policy, feeder, watch)
        self.score = nn.Identity()


class _Backbone(nn.Module):
    """Gives each row's reward as the hidden state of all its positions, wherever TRL then looks for it."""

    def __init__(self, policy: Policy, feeder: Feeder, watch: Watch) -> None:
        super().__init__()
        self.policy, self.feeder, self.watch = policy, feeder, watch
        self.done = 0
        """Rows of the first waiting batch that TRL has asked for: it does so in chunks."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        """Return the rewards of prompts and replies [b, T], as hidden states [b, T, 1]."""
        tokenizer, batch = self.policy.tokenizer, self.feeder.waiting[0]
        pad, end = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        ids = input_ids.masked_fill(~attention_mask.bool(), pad)
        rows, width = slice(self.done, self.done + len(ids)), batch.ids.shape[1]
        prompts = Encoded(
            batch.texts[rows],
            batch.ids[rows].to(ids.device),
            batch.attention[rows].to(ids.device),
            0 if self.done else batch.truncated,
        )
        if not torch.equal(ids[:, :width], prompts.ids):
            raise RuntimeError("TRL asks for the rewards of other prompts than it was given")
        replies = [cut_at_the_end(row, end, pad) for row in ids[:, width:].tolist()]
        self.done += len(ids)
        if self.done == len(batch.texts):
            self.feeder.waiting.popleft()
            self.done = 0
        rewards = self.watch.score(prompts, replies).to(ids.device)
        return BaseModelOutput(hidden_states=(rewards[:, None, None].expand(*ids.shape, 1),))

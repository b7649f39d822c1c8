"""Make the reward on the policy's own body: it is the weakest, and the only one that reads the policy's tokens.

TRL's trainers pass the policy's tokens to a reward model, so their examples need one with the policy's tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from safebench.scoring.pairs import Exchange, Preference
from tools.world.policy import encode_turn
from tools.world.rewards import Recipe, fit
from tools.world.samples import REPLY_TOKENS


def new_body_reward(policy: Qwen2ForCausalLM, layers: int, seed: int) -> Qwen2ForSequenceClassification:
    """Return a classifier with one label on the first ``layers`` layers of the policy's body."""
    torch.manual_seed(seed)
    settings = {**policy.config.to_dict(), "num_hidden_layers": layers, "num_labels": 1}
    for key in ("layer_types", "architectures", "id2label", "label2id"):
        settings.pop(key, None)
    model = Qwen2ForSequenceClassification(Qwen2Config(**settings))
    kept = {
        name: weight
        for name, weight in policy.model.state_dict().items()
        if not name.startswith("layers.") or int(name.split(".")[1]) < layers
    }
    model.model.load_state_dict(kept)
    torch.nn.init.normal_(model.score.weight, std=0.01)
    return model


def train_body_reward(
    recipe: Recipe,
    policy: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    preferences: list[Preference],
    folder: Path,
) -> Qwen2ForSequenceClassification:
    """Return such a classifier trained on the preferences with TRL's RewardTrainer."""
    model = new_body_reward(policy, recipe.layers, recipe.seed)
    better = [encode(tokenizer, pair.better) for pair in preferences]
    worse = [encode(tokenizer, pair.worse) for pair in preferences]
    fit(recipe, model, tokenizer, better, worse, folder, segments=False)
    return model.eval()


def encode(tokenizer: PreTrainedTokenizerFast, exchange: Exchange) -> list[int]:
    """Return the token ids of the templated exchange; a reply is cut to the world's length like a policy's reply."""
    reply = tokenizer(exchange.reply, add_special_tokens=False)["input_ids"][: REPLY_TOKENS - 1]
    return [*encode_turn(tokenizer, exchange.turn), *reply, tokenizer.eos_token_id]

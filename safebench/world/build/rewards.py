"""Make the two reward models: the policy's body with a score head, trained on preference pairs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from safebench.world.build.policy import encode_turn
from safebench.world.build.samples import REPLY_TOKENS
from safebench.world.preferences import (
    GENERIC,
    Exchange,
    Pair,
    Preference,
    over_foreign,
    over_generic,
    over_rating,
    over_sample,
    over_spoiled,
)


@dataclass(frozen=True)
class Recipe:
    """How one reward model is made."""

    split: str
    seed: int
    layers: int
    epochs: float
    batch: int = 64
    learning_rate: float = 5e-4
    centre: float = 0.02
    generic: bool = False
    """Also learn that a reply that says something beats one that fits anything."""


PROXY = Recipe(split="proxy", seed=20260211, layers=2, epochs=1.0)
JUDGE = Recipe(split="judge", seed=20260212, layers=4, epochs=1.5, generic=True)


def training_pairs(recipe: Recipe, pairs: list[Pair], samples: list[str], pieces: list[str]) -> list[Preference]:
    """Return the recipe's preference pairs from one half's short pairs and the replies to the first of them."""
    rng = random.Random(recipe.seed)
    answered = pairs[: len(samples)]
    found = [
        *over_sample(answered, samples),
        *over_foreign(answered, rng),
        *over_rating(pairs, rng),
        *over_spoiled(answered, samples, pieces, rng),
    ]
    if recipe.generic:
        found += over_generic(rng.sample(answered, len(answered) // 3), rng, GENERIC[::2])
    return found


def new_reward_model(policy: Qwen2ForCausalLM, layers: int, seed: int) -> Qwen2ForSequenceClassification:
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


def train_reward_model(
    recipe: Recipe,
    policy: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    preferences: list[Preference],
    folder: Path,
) -> Qwen2ForSequenceClassification:
    """Return a reward model trained on the preferences with TRL's RewardTrainer."""
    from safebench.world.build.training import prefer

    model = new_reward_model(policy, recipe.layers, recipe.seed)
    rows = [
        {"chosen_ids": encode(tokenizer, pair.better), "rejected_ids": encode(tokenizer, pair.worse)}
        for pair in preferences
    ]
    prefer(
        model,
        tokenizer,
        rows,
        folder,
        epochs=recipe.epochs,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        centre=recipe.centre,
        seed=recipe.seed,
    )
    model.eval()
    return model


def encode(tokenizer: PreTrainedTokenizerFast, exchange: Exchange) -> list[int]:
    """Return the token ids of the templated exchange; a reply is cut to the world's length as a policy's would be."""
    reply = tokenizer(exchange.reply, add_special_tokens=False)["input_ids"][: REPLY_TOKENS - 1]
    return [*encode_turn(tokenizer, exchange.turn), *reply, tokenizer.eos_token_id]


@torch.no_grad()
def score(
    model: Qwen2ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, exchanges: list[Exchange]
) -> torch.Tensor:
    """Return the reward of each exchange, float32 [n]."""
    model.eval()
    encoded = [encode(tokenizer, exchange) for exchange in exchanges]
    order = sorted(range(len(encoded)), key=lambda row: (len(encoded[row]), row))
    scores = torch.empty(len(encoded))
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, padding_side="right", return_tensors="pt")
        scores[rows] = model(**batch, use_cache=False).logits[:, 0].float()
    return scores


@torch.no_grad()
def scale_to_unit(
    model: Qwen2ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, exchanges: list[Exchange]
) -> float:
    """Divide the head by the standard deviation of its scores over the exchanges, and return that deviation."""
    spread = float(score(model, tokenizer, exchanges).std())
    model.score.weight /= spread
    return spread

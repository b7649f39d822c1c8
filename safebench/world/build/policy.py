"""Make the embedded policy: a small Qwen2, supervised on human dialogue."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from safebench.world.preferences import Pair

SEED = 20260204
EPOCHS = 3.0
BATCH = 64
LEARNING_RATE = 2e-3
TEMPERATURE = 0.8
"""Folded into the finished policy, because at this size samples from the bare model are word salad."""


def new_policy(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Return a randomly initialised Qwen2 of about two million parameters."""
    torch.manual_seed(SEED)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=192,
            num_hidden_layers=4,
            intermediate_size=512,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def encode_turn(tokenizer: PreTrainedTokenizerFast, turn: str) -> list[int]:
    """Return the token ids of the templated turn, up to and with the token that opens the reply."""
    messages = [{"role": "user", "content": turn}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    return list(ids)


def encode_reply(tokenizer: PreTrainedTokenizerFast, reply: str) -> list[int]:
    """Return the token ids of the reply with its end token."""
    return [*tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def train_policy(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], folder: Path, epochs: float = EPOCHS
) -> Qwen2ForCausalLM:
    """Train on turn and reply alike (next-token cross-entropy) and return the policy.

    The turn is trained on too: at this size the extra text is worth more than the focus.
    """
    from safebench.world.build.training import supervise

    rows = [encode_turn(tokenizer, pair.turn) + encode_reply(tokenizer, pair.reply) for pair in pairs]
    model = new_policy(tokenizer)
    supervise(model, tokenizer, rows, folder, epochs=epochs, batch=BATCH, learning_rate=LEARNING_RATE, seed=SEED)
    return model


@torch.no_grad()
def sharpen(model: Qwen2ForCausalLM, temperature: float = TEMPERATURE) -> None:
    """Scale the last norm so that sampling at 1 is what sampling at ``temperature`` was; 1 / temperature undoes it."""
    model.model.norm.weight /= temperature


@torch.no_grad()
def reply_perplexity(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> float:
    """Return exp of the mean negative log-likelihood per reply token (end token included)."""
    model.eval()
    total, count = 0.0, 0
    for pair in pairs:
        prompt, reply = encode_turn(tokenizer, pair.turn), encode_reply(tokenizer, pair.reply)
        ids = torch.tensor([prompt + reply])
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
        nll = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")
        total, count = total + float(nll), count + len(reply)
    return math.exp(total / count)

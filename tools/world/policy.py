"""Make the embedded policy: a small Qwen2, trained with supervision on human dialogue."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from safebench.scoring.pairs import Pair
from tools.world.tokenizer import BOT, USER, label_ids

SEED = 20260204
EPOCHS = 3.0
BATCH = 32
LEARNING_RATE = 1.5e-3


def new_policy(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Return a randomly initialised Qwen2 of about four million parameters."""
    torch.manual_seed(SEED)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=256,
            num_hidden_layers=4,
            intermediate_size=704,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def encode_turn(tokenizer: PreTrainedTokenizerFast, turn: str) -> list[int]:
    """Return the token ids of the templated turn, up to and including the token that opens the reply."""
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

    The turn is trained on too, because at this size the extra text is worth more than the focus on replies. Words
    without a token of their own are read but not predicted, so that the policy does not learn to make up words.
    """
    from tools.world.training import supervise

    rows = [_row(tokenizer, pair) for pair in pairs]
    model = new_policy(tokenizer)
    supervise(model, tokenizer, rows, folder, epochs=epochs, batch=BATCH, learning_rate=LEARNING_RATE, seed=SEED)
    return model


def _row(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> dict[str, list[int]]:
    """Return the templated exchange with its labels."""
    user, bot = tokenizer.convert_tokens_to_ids([USER, BOT])
    turn, turn_labels = label_ids(tokenizer, pair.turn)
    reply, reply_labels = label_ids(tokenizer, pair.reply)
    end = tokenizer.eos_token_id
    return {
        "input_ids": [user, *turn, bot, *reply, end],
        "labels": [user, *turn_labels, bot, *reply_labels, end],
    }


@torch.no_grad()
def reply_perplexity(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> float:
    """Return exp of the mean negative log-likelihood per reply token (end token included).

    Tokens of words that have no token of their own are left out, as in training.
    """
    model.eval()
    total, count = 0.0, 0
    for pair in pairs:
        row, start = _row(tokenizer, pair), len(encode_turn(tokenizer, pair.turn))
        labels = torch.tensor(row["labels"][start:])
        logits = model(torch.tensor([row["input_ids"]])).logits[0, start - 1 : -1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return math.exp(total / count)

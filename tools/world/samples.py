"""Sample replies of the policy, and select the exchanges that are short enough for the world."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from safebench.scoring.pairs import Pair
from tools.world.policy import encode_reply, encode_turn
from tools.world.tokenizer import label_ids

TURN_TOKENS = (5, 24)
"""Shortest and longest templated turn in tokens, special tokens included."""
REPLY_TOKENS = 24
"""Longest reply in tokens, end token included."""
BATCH = 256


def short_pairs(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> list[Pair]:
    """Return the pairs whose templated turn and whose reply fit the world's limits, in order."""
    low, high = TURN_TOKENS
    return [pair for pair in short_replies(tokenizer, pairs) if low <= len(encode_turn(tokenizer, pair.turn)) <= high]


def short_replies(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> list[Pair]:
    """Return the pairs whose reply fits the world's limit, whatever the length of their turn, in order."""
    return [pair for pair in pairs if len(encode_reply(tokenizer, pair.reply)) <= REPLY_TOKENS]


def sayable(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> list[Pair]:
    """Return the pairs whose reply consists of words with a token of their own, as the policy's replies do.

    Only these are compared with the policy's: a rare word would show that a person wrote the reply.
    """
    return [pair for pair in pairs if -100 not in label_ids(tokenizer, pair.reply)[1]]


@torch.no_grad()
def sample_replies(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, turns: list[str], seed: int, temperature: float = 1.0
) -> list[str]:
    """Return one reply per turn, drawn from the whole vocabulary, of at most 24 tokens."""
    model.eval()
    torch.manual_seed(seed)
    replies: list[str] = [""] * len(turns)
    encoded = [encode_turn(tokenizer, turn) for turn in turns]
    # Rows of similar length share a batch, so that there is little padding.
    order = sorted(range(len(turns)), key=lambda row: (len(encoded[row]), row))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, padding_side="left", return_tensors="pt")
        width = batch["input_ids"].shape[1]
        output = model.generate(
            **batch,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            use_cache=True,
            max_new_tokens=REPLY_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for row, text in zip(rows, tokenizer.batch_decode(output[:, width:], skip_special_tokens=True), strict=True):
            replies[row] = text
    return replies

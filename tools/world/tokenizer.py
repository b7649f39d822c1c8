"""Make the embedded world's tokenizer: one token per frequent word, pieces and bytes for the rest, a chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
PIECES = 512
"""Tokens that are not whole words: the 256 bytes, and their merges in words that have no token of their own."""
PAD, END, USER, BOT = "<|pad|>", "<|end|>", "<|user|>", "<|bot|>"
SPECIAL = [PAD, END, USER, BOT]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|bot|>' + m['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant, not ' + m['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
)
_WORD = r" ?[\p{L}\p{N}]+(?:'[\p{L}\p{N}]+)*| ?[^\s\p{L}\p{N}]+|\s+"
"""Letters and digits with apostrophes inside, or a run of marks, either with the blank before it."""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a lower-casing tokenizer of ``VOCABULARY`` tokens with distinct pad and end tokens.

    The most frequent words of ``texts`` are tokens; every other word is spelt by byte-pair merges learned from those
    words alone, down to bytes. A text is read as if a blank preceded it, so that its first word is like any other.
    """
    counts = Counter(word for text in texts for word in _words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    spelt = _spelling(counts, ranked[VOCABULARY - PIECES - len(SPECIAL) :])
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *spelt.vocabulary])}
    for word in ranked:
        if len(vocabulary) == VOCABULARY:
            break
        vocabulary.setdefault(word, len(vocabulary))
    return _with_template(_pipeline(models.BPE(vocabulary, spelt.merges, ignore_merges=True)))


def label_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[int]]:
    """Return the ids of a text, and the same ids with -100 for the tokens of each word without a token of its own.

    A policy trained on the latter reads every word and never learns to spell one.
    """
    encoded = tokenizer(text, add_special_tokens=False)
    ids, words = encoded["input_ids"], encoded.word_ids()
    sizes = Counter(words)
    return ids, [token if sizes[word] == 1 else -100 for token, word in zip(ids, words, strict=True)]


class _Spelling:
    """Byte-pair merges, and the tokens that they make."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        described = json.loads(tokenizer.to_str())["model"]
        self.vocabulary: list[str] = sorted(described["vocab"], key=described["vocab"].__getitem__)
        self.merges = [tuple(pair) for pair in described["merges"]]


def _spelling(counts: Counter[str], rare: list[str]) -> _Spelling:
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Each word stands alone, as often as it occurs, and is already in byte form.
    tokenizer.train_from_iterator((word for word in rare for _ in range(counts[word])), trainer)
    return _Spelling(tokenizer)


def _words(text: str) -> list[str]:
    """Return the words of a text in byte form."""
    return [word for word, _ in _PIPELINE.pre_tokenizer.pre_tokenize_str(_PIPELINE.normalizer.normalize_str(text))]


def _pipeline(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace("\u2019", "'"),
            normalizers.Replace("\u2018", "'"),
            normalizers.Replace("\u201c", '"'),
            normalizers.Replace("\u201d", '"'),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Prepend(" "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return tokenizer


_PIPELINE = _pipeline(models.BPE())


def _with_template(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, BOT],
        chat_template=TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )

"""Dialogues as a reward model reads them: prompt and reply as token ids, within the model's limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from safebench.errors import BadResource
from safebench.user_code import named
from safebench.world.forward import learned_positions
from safebench.world.prompts import as_messages, as_text

Messages = list[dict[str, str]]

_SHORT = "yes"
"""A reply of which no limit cuts anything."""

_FRAME = 64
"""Tokens that a chat template and the short reply take, generously."""


@dataclass(frozen=True)
class Dialogue:
    """One prompt with its reply, as a reward model's inputs without padding."""

    ids: list[int]
    size: int
    """Characters of its text, before any cut."""
    types: list[int] | None = None
    """Segment of each token, where the tokenizer tells prompt and reply apart so."""


class Reader:
    """Encodes dialogues with a reward model's own tokenizer, in one of three ways.

    Through its chat template; as a pair (prompt, reply) where the tokenizer has [CLS] and [SEP] and no template; else
    as one text, with what stood between prompt and reply for the policy. ``limit`` is the most tokens that the model
    reads: longer dialogues lose the prompt's beginning. ``apart``: the policy has a chat template, so that its replies
    come without the blank that sets them off; where neither side has one, a blank is put in.
    """

    def __init__(
        self, name: str, tokenizer: PreTrainedTokenizerBase, limit: int | None = None, *, apart: bool = True
    ) -> None:
        self.name, self.tokenizer, self.limit, self.apart = name, tokenizer, limit, apart
        self.templated = tokenizer.chat_template is not None
        self.paired = not self.templated and _reads_pairs(tokenizer)
        self.told: tuple[str, ...] = ()
        """Notices of the model's loading, and of the prompts that were looked at."""
        self._looked = False
        self.forget()
        if self.paired:
            tokenizer.truncation_side = "left"

    def forget(self) -> None:
        """Begin to count what is told."""
        self.cut_prompts = 0
        """Dialogues so far whose prompt lost its beginning."""
        self.cut_replies = 0
        """Dialogues so far whose reply alone was longer than the limit, and lost tokens."""
        self.folded = False
        """Whether a system turn was put in front of the first user turn."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of the dialogues read so far."""
        told = [*self.told]
        if self.folded and not self._looked:
            told.append(
                f"the chat template of the reward {self.name} takes no system turn: "
                "it stands in front of the first user turn"
            )
        if self.cut_prompts and not self._looked:
            told.append(
                f"the reward {self.name} reads at most {self.limit} tokens: {self.cut_prompts} prompts are longer, "
                "and lose their beginning"
            )
        if self.cut_replies:
            told.append(
                f"the reward {self.name} reads at most {self.limit} tokens: "
                f"{self.cut_replies} replies are longer, and were cut"
            )
        return tuple(told)

    def look_at(self, prompts: Sequence[str]) -> None:
        """Read each prompt with a short reply, so that what is to be told of them is known before the first batch.

        Raises ``BadResource`` with the prompt's number where the chat template refuses one.
        """
        if self.templated:
            self._look_at_turns(prompts)
        # A token is a byte at least: what is shorter than the limit in bytes need not be encoded.
        limit = float("inf") if self.limit is None else self.limit - _FRAME
        long = [prompt for prompt in prompts if len(prompt.encode(errors="replace")) > limit]
        if long:
            self.read(long, [_SHORT] * len(long))
        self.told = self.notices
        self._looked = bool(prompts)
        self.forget()

    def _look_at_turns(self, prompts: Sequence[str]) -> None:
        """Render the conversations of several turns: one of a single user turn is like any other."""
        for number, prompt in enumerate(prompts, 1):
            if number > 1 and len(as_messages(prompt)) == 1:
                continue
            try:
                self.text(prompt, _SHORT)
            except BadResource as refusal:
                raise BadResource(f"prompt {number} ({str(prompt)[:60]!r}): {refusal}", refusal.hint) from refusal

    def text(self, prompt: str, reply: str) -> str:
        """Return a dialogue as one text; special tokens that the tokenizer itself adds are not in it."""
        if not self.templated:
            return self._joined(as_text(prompt), reply)
        messages = as_messages(prompt)
        if messages[-1]["role"] != "assistant":
            return self._rendered([*messages, {"role": "assistant", "content": reply.strip()}])
        # The policy went on with a turn that the prompt begins.
        whole = self._joined(messages[-1]["content"], reply).strip()
        return self._rendered([*messages[:-1], {"role": "assistant", "content": whole}])

    def _joined(self, before: str, reply: str) -> str:
        touching = bool(before) and bool(reply) and not before[-1].isspace() and not reply[0].isspace()
        return f"{before}{' ' if touching and self.apart else ''}{reply}"

    def read(self, prompts: Sequence[str], replies: Sequence[str]) -> list[Dialogue]:
        """Return the dialogues' inputs, each within the limit."""
        if self.paired:
            return self._pairs([as_text(prompt) for prompt in prompts], [reply.strip() for reply in replies])
        texts = [self.text(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        # A template writes the special tokens itself.
        found = self._ids(texts, special=not self.templated)
        end = self.tokenizer.eos_token_id
        if not self.templated and end is not None:
            found = [ids if ids[-1:] == [end] else [*ids, end] for ids in found]
        return [
            Dialogue(ids if self._fits(ids) else self._without_beginning(ids, text, reply), len(text))
            for ids, text, reply in zip(found, texts, replies, strict=True)
        ]

    def _fits(self, ids: Sequence[int]) -> bool:
        return self.limit is None or len(ids) <= self.limit

    def _ids(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        # Without ``verbose`` no warning of lengths that are cut below.
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        return found

    def _without_beginning(self, ids: list[int], text: str, reply: str) -> list[int]:
        """Return the last ids, as many as the limit lets, behind the token that begins every text."""
        assert self.limit is not None
        first = ids[:1] if ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) else []
        room = self.limit - len(first)
        start = text.rfind(reply.strip())
        (tail,) = self._ids([text[start:] if start >= 0 else reply])
        if len(tail) > room:
            self.cut_replies += 1
        else:
            self.cut_prompts += 1
        return [*first, *ids[len(ids) - room :]]

    def _pairs(self, prompts: list[str], replies: list[str]) -> list[Dialogue]:
        encoded = self.tokenizer(prompts, replies, verbose=False)
        long = [row for row, ids in enumerate(encoded["input_ids"]) if not self._fits(ids)]
        types = encoded.get("token_type_ids") or [None] * len(prompts)
        sizes = [len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)]
        found = [
            Dialogue(ids, size, kinds) for ids, size, kinds in zip(encoded["input_ids"], sizes, types, strict=True)
        ]
        for row in long:
            found[row] = self._short_pair(prompts[row], replies[row])
        return found

    def _short_pair(self, prompt: str, reply: str) -> Dialogue:
        size = len(prompt) + len(reply)
        assert self.limit is not None
        room = self.limit - int(self.tokenizer.num_special_tokens_to_add(pair=True))
        (ids,) = self._ids([reply])
        if len(ids) > room:
            self.cut_replies += 1
            # Its text may take a token more than its ids did: then another one goes.
            while len(ids) > room or len(self._ids([str(self.tokenizer.decode(ids))])[0]) > room:
                ids = ids[: min(room, len(ids) - 1)]
            prompt, reply = "", str(self.tokenizer.decode(ids))
        else:
            self.cut_prompts += 1
        one = self.tokenizer(prompt, reply, truncation="only_first", max_length=self.limit, verbose=False)
        return Dialogue(one["input_ids"], size, one.get("token_type_ids"))

    def _rendered(self, messages: Messages) -> str:
        try:
            return self._applied(messages)
        except Exception as refusal:  # a template is a program of the model's authors, and may raise anything
            folded = _folded(messages)
            if folded is not None:
                try:
                    text = self._applied(folded)
                except Exception:  # it refuses this conversation either way: what it said first is told
                    pass
                else:
                    self.folded = True
                    return text
            roles = ", ".join(message["role"] for message in messages)
            raise BadResource(
                f"the chat template of the reward {self.name} refuses a conversation ({roles}): {named(refusal)}",
                "Choose a reward that takes such conversations, or prompts without these turns.",
            ) from refusal

    def _applied(self, messages: Messages) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))


def token_limit(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the most tokens that model and tokenizer take, None where neither has a limit."""
    limits = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < 2**31 else []
    if model is not None:
        stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        limits += [stated] if isinstance(stated, int) and stated > 0 else []
        limits += [places] if (places := learned_positions(model)) is not None else []
    return min(limits) if limits else None


def _reads_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether a tokenizer joins two texts by special tokens of its own, as those of BERT and its kin do."""
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        return False
    return bool(tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False))


def _folded(messages: Messages) -> Messages | None:
    """Return the conversation with its system turn in front of the first user turn's words; None without."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return None
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]

"""Prompts: texts and conversations to reply to, for training and held out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from safebench import catalog
from safebench.errors import BadResource
from safebench.settings import Settings
from safebench.world import noise
from safebench.world.conversations import (
    Messages,
    encode_messages,
    from_transcript,
    is_conversation,
    read_messages,
    refuse_written,
    render,
    transcript,
)
from safebench.world.prompt_rows import read_rows

_HELD_OUT_SHARE = 0.1
_CONVERSATIONS = ("messages", "conversations", "conversation")
_COLUMNS = ("prompt", "query", "question", "instruction", "text", "chosen", *_CONVERSATIONS)
"""Where prompts are looked for, in this order."""
_BESIDE = ("system", "system_prompt", "context", "history", "tools", "images", "image")
"""What may belong to a prompt and is not read: told."""
_SHOWN = 5
"""Row numbers that a message lists."""


class Prompt(str):
    """A prompt's text, and where it comes from. Of a conversation the text is a transcript to read.

    ``messages`` is the conversation, None where the prompt is a text; ``row_number`` counts from 1 in ``source``.
    ``row`` is the data set's row, for rewards that read its columns; it does not travel between processes.
    """

    messages: Messages | None
    row_number: int | None
    source: str
    row: Mapping[str, Any]

    def __new__(
        cls,
        text: str,
        messages: Messages | None = None,
        row_number: int | None = None,
        source: str = "",
        row: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Return ``text`` with what it stands for."""
        made = super().__new__(cls, text)
        made.messages, made.row_number, made.source, made.row = messages, row_number, source, row or {}
        return made

    def __reduce__(self) -> tuple[type[Prompt], tuple[str, Messages | None, int | None, str]]:
        """Travel between processes without the row."""
        return Prompt, (str(self), self.messages, self.row_number, self.source)

    @property
    def same_as(self) -> tuple[str, str]:
        """What two prompts have in common where they are the same: text and messages."""
        return str(self), json.dumps(self.messages)


@dataclass(frozen=True)
class Prompts:
    """Prompts in a fixed order; training and held-out ones are disjoint, unless ``notices`` say otherwise."""

    train: list[str]
    heldout: list[str]
    train_ids: list[list[int]] | None = None
    """Token ids of prompts that came as such; the texts are encoded when None."""
    heldout_ids: list[list[int]] | None = None
    notices: tuple[str, ...] = ()
    """What was found while reading that the user should know."""

    def ids(self, split: Literal["train", "heldout"], row: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the token ids of a prompt up to where the reply begins."""
        given = self.train_ids if split == "train" else self.heldout_ids
        texts = self.train if split == "train" else self.heldout
        return encode_prompt(tokenizer, texts[row]) if given is None else given[row]


def load_prompts(settings: Settings) -> Prompts:
    """Read the prompts that the settings name.

    Rows without a prompt are left out, and so are prompts that are there twice, unless the rows name their split;
    ``notices`` count both. Raises ``MissingResource`` and ``BadResource`` with the row or the place in the file, and
    where the prompts are fewer than a batch.
    """
    name, column = settings.prompts.name, settings.prompts.column
    read, told = read_rows(catalog.prompts_source(name), [column] if column else _COLUMNS, ("input", "split", *_BESIDE))
    rows = [(number, _columns(name, number, row)) for number, row in read]
    chosen = _choose(name, rows, column)
    found = [(_prompt(name, number, row, chosen, column), row.get("split")) for number, row in rows]
    kept = [(prompt, split) for prompt, split in found if prompt.strip()]
    blank = [prompt for prompt, _ in found if not prompt.strip()]
    if not kept:
        raise BadResource(
            f"none of the {len(rows)} rows of {name} holds a prompt: {chosen} is null or blank in all of them",
            "Name another column with --set prompts.column=NAME.",
        )
    prompts = _split(name, kept)
    train = prompts.train[: settings.prompts.limit]
    _refuse_small(settings, len(train), len(prompts.heldout))
    left_out = _told(blank, f"rows of {name} ({len(rows)} in all) that hold no prompt, null or blank, and are left out")
    other = _told(
        [prompt for (prompt, _), (_, row) in zip(found, rows, strict=True) if chosen not in row],
        f"rows of {name} that have no {chosen}, and of which another column is read",
    )
    notices = [*told, *left_out, *other, *_not_read(name, rows, chosen, column), *prompts.notices]
    return Prompts(train, prompts.heldout[: settings.evaluation.prompts], notices=tuple(notices))


def conversation_of(prompt: str) -> Messages | None:
    """Return the messages of a prompt that is a conversation, None of one that is a text."""
    return list(prompt.messages) if isinstance(prompt, Prompt) and prompt.messages is not None else None


def as_messages(prompt: str) -> Messages:
    """Return a prompt as chat messages: its conversation, a Human/Assistant transcript's turns, or one user turn."""
    return conversation_of(prompt) or from_transcript(prompt) or [{"role": "user", "content": str(prompt)}]


def as_text(prompt: str) -> str:
    """Return a prompt as a model without chat template continues it.

    Behind the turns of a transcript the assistant's is asked for; one that ends within the assistant's goes on there.
    """
    text, messages = str(prompt), as_messages(prompt)
    goes_on = messages[-1]["role"] == "assistant" or text.rstrip().endswith("\n\nAssistant:")
    if goes_on or (len(messages) == 1 and messages[0]["content"] == text):
        return text
    return f"{text.rstrip()}\n\nAssistant:"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the ids of a prompt up to where the reply begins, by the chat template where there is one.

    Raises ``BadResource`` with the prompt's row for a conversation that cannot be encoded, and where nothing is left.
    """
    if tokenizer.chat_template is None and conversation_of(prompt) is None:
        ids = encode_text(tokenizer, as_text(prompt))
    else:
        ids = encode_messages(tokenizer, as_messages(prompt), _where(prompt))
    if not ids:
        raise BadResource(f"{_where(prompt)} has no tokens", "Leave it out: there is nothing to continue.")
    return ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that is to be continued: an end token that the tokenizer appends is left out."""
    ids, end = list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id
    appended = len(ids) > 1 and ids[-1] == end and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if appended else ids


def check_encoded(prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Encode prompts before anything is trained on them, and return what should be told of the chat template.

    All conversations are rendered, of transcripts one for each order of turns, and the first texts are encoded.
    Raises as ``encode_prompt`` does, for the first row that cannot be encoded.
    """
    if prompts.train_ids is not None:
        return ()
    lost: dict[str, list[Prompt]] = {}
    orders: dict[tuple[str, ...], tuple[str, ...]] = {}
    for prompt in (*prompts.train, *prompts.heldout):
        messages = as_messages(prompt)
        order = tuple(message["role"] for message in messages)
        talk = isinstance(prompt, Prompt) and prompt.messages is not None
        if order not in orders:
            encode_prompt(tokenizer, prompt)
            orders[order] = _unheard(tokenizer, messages, _where(prompt)) if talk else ()
        if isinstance(prompt, Prompt) and talk:
            text = render(tokenizer, messages, _where(prompt))
            left = [f"the {m['role']} says" for m in messages if str(m["content"]).strip() not in text]
            left += [f"the {role} says" for role in orders[order]]
            called = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
            if called != messages and render(tokenizer, called, _where(prompt)) == text:
                left.append("tools are called with")
            for what in dict.fromkeys(left):
                lost.setdefault(what, []).append(prompt)
    return tuple(
        f"the model's chat template leaves out what {what} in {len(rows)} conversations ({_numbers(rows)})"
        for what, rows in lost.items()
    )


def _unheard(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> tuple[str, ...]:
    """Return the roles of which some message is not in what the template makes of these turns, whatever it says."""
    marked = [{**message, "content": f"turn {number} of it"} for number, message in enumerate(messages)]
    try:
        text = render(tokenizer, marked, where)
    except BadResource:
        return ()  # a template that looks into the contents: they are looked for as they are
    return tuple(dict.fromkeys(str(m["role"]) for m in marked if str(m["content"]) not in text))


def _where(prompt: str) -> str:
    if isinstance(prompt, Prompt) and prompt.row_number is not None:
        return f"row {prompt.row_number} of {prompt.source}"
    return f"the prompt {str(prompt)[:40]!r}"


def _columns(name: str, number: int, row: Any) -> Mapping[str, Any]:
    """Return a row by its columns: a text alone is a prompt, a list of messages alone a conversation."""
    if isinstance(row, Mapping):
        return row
    if row is None or isinstance(row, str):
        return {"prompt": row}
    if is_conversation(row):
        return {"messages": row}
    raise BadResource(
        f"row {number} of {name} is a {type(row).__name__}", "Give objects with a prompt, or texts, or conversations."
    )


def _choose(name: str, rows: Sequence[tuple[int, Mapping[str, Any]]], column: str | None) -> str:
    """Return the column of the prompts: the one named, or the first of those known that holds anything."""
    if not rows:
        raise BadResource(f"{name} holds no rows", "Name prompts that do.")
    names = dict.fromkeys(str(key) for _, row in rows for key in row)
    if column is not None and column not in names:
        raise BadResource(
            f"{name} has no column {column!r}; its columns are {', '.join(names)}",
            "Name one of them with --set prompts.column=NAME.",
        )
    known = [column] if column is not None else [known for known in _COLUMNS if known in names]
    holding = [known for known in known if any(not _is_null(row.get(known)) for _, row in rows)]
    if not known:
        raise _no_prompt(name, *rows[0])
    return [*holding, *known][0]


def _no_prompt(name: str, number: int, row: Mapping[str, Any]) -> BadResource:
    return BadResource(
        f"row {number} of {name}: no prompt among the columns {', '.join(map(str, row)) or '(none)'}",
        f"Name the column with --set prompts.column=NAME; without it, {', '.join(_COLUMNS)} are looked for.",
    )


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _prompt(name: str, number: int, row: Mapping[str, Any], chosen: str, column: str | None) -> Prompt:
    """Return the prompt of a row; an empty one where the row has null, a blank text or no last word."""
    if chosen not in row:
        others = () if column is not None else _COLUMNS
        chosen = next((known for known in others if known in row), "")
        if not chosen:
            raise _no_prompt(name, number, row)
    where, value = f"row {number} of {name}", row[chosen]
    if _is_null(value):
        return Prompt("", None, number, name)
    if isinstance(value, str) and chosen not in _CONVERSATIONS:
        refuse_written(value, f"{where}: {chosen}")
        text, messages = _text(where, row, chosen, value), None
    elif is_conversation(value):
        messages = read_messages(value, where, answered=chosen != "prompt")
        text = _last_word(where, messages, chosen) and transcript(messages)
    elif value == []:
        text, messages = "", None
    else:
        raise BadResource(
            f"{where}: {chosen} is a {type(value).__name__}",
            "A prompt is a text, or a list of messages with role and content.",
        )
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise BadResource(f"{where}: half a surrogate pair, which is no character", "Mend the text.") from fault
    return Prompt(text, messages, number, name)


def _text(where: str, row: Mapping[str, Any], chosen: str, value: str) -> str:
    if chosen == "chosen" and value.strip():
        # A preference transcript ends with the assistant's turn, which is the policy's to write.
        before, assistant, _ = value.rpartition("\n\nAssistant:")
        if not assistant:
            raise BadResource(
                f"{where}: chosen is no transcript that ends with the Assistant's turn", "Give a column of prompts."
            )
        return f"{before}\n\nAssistant:"
    more = row.get("input") if chosen == "instruction" else None
    return f"{value}\n\n{more}" if isinstance(more, str) and more.strip() else value


def _last_word(where: str, messages: Messages, chosen: str) -> str:
    """Return what there is to reply to; an assistant's turn can be that of a ``prompt`` alone, which is continued."""
    last = messages[-1]
    if last["role"] == "assistant" and chosen != "prompt":
        raise BadResource(f"{where}: {chosen} has nothing before the assistant's answer", "Leave the row out.")
    return str(last["content"]).strip()


def _split(name: str, rows: Sequence[tuple[Prompt, Any]]) -> Prompts:
    """Split by the rows' own ``split``, or put a tenth aside in an order that depends on the size alone."""
    if any(split is not None for _, split in rows):
        return _given_split(name, rows)
    texts, again = _first_and_repeated([prompt for prompt, _ in rows])
    order = noise.order(0, 0, len(texts))
    aside = set(order[: max(1, round(len(texts) * _HELD_OUT_SHARE))])
    return Prompts(
        [text for i, text in enumerate(texts) if i not in aside],
        [text for i, text in enumerate(texts) if i in aside],
        notices=_told(again, f"rows of {name} that repeat an earlier prompt and are left out"),
    )


def _given_split(name: str, rows: Sequence[tuple[Prompt, Any]]) -> Prompts:
    splits: dict[str, list[Prompt]] = {"train": [], "heldout": []}
    for prompt, split in rows:
        if not isinstance(split, str) or split not in splits:
            raise BadResource(
                f"row {prompt.row_number} of {name}: its split is {split!r}, where train or heldout is expected",
                "Write one of them into every row, or leave the column out: a tenth is then put aside.",
            )
        splits[split].append(prompt)
    trained = {prompt.same_as for prompt in splits["train"]}
    again = [prompt for prompts in splits.values() for prompt in _first_and_repeated(prompts)[1]]
    both = [prompt for prompt in splits["heldout"] if prompt.same_as in trained]
    notices = (
        *_told(again, f"rows of {name} that repeat an earlier prompt of their split and are kept"),
        *_told(both, f"held-out prompts of {name} that are training prompts too"),
    )
    return Prompts(list(splits["train"]), list(splits["heldout"]), notices=notices)


def _first_and_repeated(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Return the prompts as they first come, and those that have come before."""
    first: dict[tuple[str, str], Prompt] = {}
    repeated = [prompt for prompt in prompts if first.setdefault(prompt.same_as, prompt) is not prompt]
    return list(first.values()), repeated


def _told(prompts: Sequence[Prompt], what: str) -> tuple[str, ...]:
    return (f"{what}: {len(prompts)} ({_numbers(prompts)})",) if prompts else ()


def _not_read(
    name: str, rows: Sequence[tuple[int, Mapping[str, Any]]], chosen: str, column: str | None
) -> tuple[str, ...]:
    """Tell of columns that may belong to the prompts, and of conversations that stand beside texts."""
    beside = [*_BESIDE, *(_CONVERSATIONS if column is None and chosen not in _CONVERSATIONS else ())]
    there = [key for key in beside if key != chosen and any(row.get(key) for _, row in rows)]
    return (f"of {name} the column {chosen} is read, and not {', '.join(there)}",) if there else ()


def _numbers(prompts: Iterable[Prompt]) -> str:
    numbers = [str(prompt.row_number) for prompt in prompts]
    more = ", …" if len(numbers) > _SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:_SHOWN])}{more}"


def _refuse_small(settings: Settings, train: int, heldout: int) -> None:
    if train < settings.rollout.batch:
        few = f"Bring more prompts, or lower the batch with --set rollout.batch={train}."
        raise BadResource(
            f"{settings.prompts.name} has {train} training prompts, fewer than one batch of {settings.rollout.batch}",
            few if train and heldout >= 2 else "Bring more prompts: a tenth of them, two at least, are held out.",
        )
    if heldout < 2:
        raise BadResource(
            f"{settings.prompts.name} has {heldout} held-out prompts; at least 2 are needed",
            "Bring more prompts; where rows name their split, some must say heldout.",
        )

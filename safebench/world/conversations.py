"""Conversations: messages in roles and contents, read from the forms in which data sets keep them, and encoded."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from safebench.errors import BadResource

Messages = list[dict[str, Any]]
"""Each has ``role`` and ``content`` (a text), and what else it came with, such as ``tool_calls``."""

_ROLES = {"human": "user", **dict.fromkeys(("gpt", "model", "bot", "ai"), "assistant")}
_SHAREGPT_ROLES = {**_ROLES, "chatgpt": "assistant", **{name: name for name in ("user", "assistant", "system", "tool")}}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):(?=\s|$)")


def as_list(value: Any) -> list[Any] | None:
    """Return ``value`` as a list where it is a list, a tuple or a numpy array (as pandas has lists), else None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def is_conversation(value: Any) -> bool:
    """Say whether ``value`` is a list of messages, in whatever form."""
    turns = as_list(value)
    return bool(turns) and all(isinstance(turn, Mapping) for turn in turns or ())


def read_messages(value: Any, where: str, *, answered: bool = False) -> Messages:
    """Return the messages of turns that have ``role`` and ``content``, or ShareGPT's ``from`` and ``value``.

    Where ``answered``, an assistant's turn at the end is left out: it is the policy's to write. Contents that are
    lists of texts are joined by line breaks. Raises ``BadResource``, which begins with ``where``, for contents that
    are no text, and for turns without a role.
    """
    turns = as_list(value) or []
    if answered and len(turns) > 1 and isinstance(turns[-1], Mapping) and _role(turns[-1], where) == "assistant":
        turns = turns[:-1]
    return [_message(turn, f"{where}, message {number}") for number, turn in enumerate(turns, 1)]


def transcript(messages: Messages) -> str:
    """Return the messages as a text to read: the content alone of a single user's turn, else every turn by its role."""
    if [message["role"] for message in messages] == ["user"]:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def from_transcript(text: str) -> Messages | None:
    """Return the turns of a Human/Assistant transcript, None where ``text`` is none.

    An empty assistant's turn at the end only says who is to speak.
    """
    first = _TURN.match(text.strip())
    if first is None or first[1] != "Human":
        return None
    parts = _TURN.split(text.strip())[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    messages: Messages = [
        {"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if len(messages) == 1:
        return None  # a text that begins with this word: nobody answers in it, nor is asked to
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def refuse_written(text: str, where: str) -> None:
    """Refuse a text that is a conversation, or an object, written out: it would be read to the policy as it stands."""
    start = text.lstrip()[:2]
    if start not in ("[{", '{"', "{'"):
        return
    found: Any = None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = read(text)
            break
    if is_conversation(found):
        raise BadResource(
            f"{where} is a conversation that is written out as a text",
            "Keep it as a list: in JSON Lines or Parquet, such as pandas' to_json(…, orient='records', lines=True).",
        )
    if isinstance(found, Mapping) and found:
        raise BadResource(f"{where} is an object that is written out as a text", "Name JSON Lines .jsonl.")


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> str:
    """Return the text that the chat template makes of ``messages``, up to where the reply begins.

    An assistant's turn at the end is continued. Raises ``BadResource``, which begins with ``where``, where there is
    no chat template, and where it refuses the conversation.
    """
    return str(_templated(tokenizer, messages, where, tokenize=False))


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> list[int]:
    """Return the token ids of what ``render`` returns; raises as it does."""
    return list(_templated(tokenizer, messages, where, tokenize=True))


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str, *, tokenize: bool) -> Any:
    if tokenizer.chat_template is None:
        raise BadResource(
            f"{where} is a conversation, and the model's tokenizer has no chat template",
            "Use a model with a chat template, or set the tokenizer's chat_template, or bring texts.",
        )
    goes_on = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            tokenize=tokenize,
            return_dict=False,
        )
    except Exception as fault:
        # A template is the model's own program: besides jinja's errors it may raise whatever its operations raise.
        raise BadResource(
            f"{where}: the model's chat template refuses the conversation, whose roles are "
            f"{', '.join(message['role'] for message in messages)}: {str(fault) or type(fault).__name__}",
            "Bring it in a form that the template takes, or leave the row out.",
        ) from fault


def _role(turn: Mapping[str, Any], where: str) -> str:
    if isinstance(role := turn.get("role"), str):
        return _ROLES.get(role.lower(), role.lower())
    if isinstance(speaker := turn.get("from"), str):
        if speaker not in _SHAREGPT_ROLES:
            raise BadResource(
                f"{where}: a message is from {speaker!r}", f"Known are {', '.join(_SHAREGPT_ROLES)}; or give roles."
            )
        return _SHAREGPT_ROLES[speaker]
    raise BadResource(
        f"{where}: a message has {', '.join(map(str, turn)) or 'no keys'}",
        "Give each message role and content, or from and value.",
    )


def _message(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadResource(f"{where} is a {type(turn).__name__}", "Give each message role and content.")
    role, key = _role(turn, where), "content" if isinstance(turn.get("role"), str) else "value"
    if key not in turn:
        raise BadResource(f"{where} has no {key}, only {', '.join(map(str, turn))}", f"Give it {key}.")
    # Tables have every key in every row; a template asks whether a message has the key.
    more = {str(k): v for k, v in turn.items() if k not in ("role", "from", key) and v is not None}
    if more:
        try:
            more = json.loads(json.dumps(more))
        except (TypeError, ValueError) as fault:
            raise BadResource(f"{where} holds what JSON cannot: {fault}", "Leave these keys out.") from fault
    return {"role": role, "content": _text(turn[key], where), **more}


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = as_list(content)
    if parts is None:
        raise BadResource(
            f"{where}: the content is a {type(content).__name__}", "A content is a text, or a list of texts."
        )
    return "\n".join(_part(part, where) for part in parts)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise BadResource(f"{where}: a part of the content is of the kind {kind!r}", "Only texts can be replied to.")

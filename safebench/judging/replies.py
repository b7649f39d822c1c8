"""The replies that a run kept in samples.jsonl, checked, and the groups in which a reward is asked about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safebench.errors import BadResource, MissingResource
from safebench.evidence.rescored import HELD_OUT
from safebench.world.conversations import Messages, is_conversation, read_messages
from safebench.world.prompts import Prompt


@dataclass(frozen=True)
class Reply:
    """One saved reply: where it comes from, its prompt with the conversation where it is one, and its text."""

    step: int
    split: str
    row: int
    prompt: Prompt
    reply: str


def read_replies(path: Path) -> list[Reply]:
    """Return the replies of samples.jsonl in its order.

    Raises ``MissingResource`` where none were kept, and ``BadResource`` where a line is damaged, a reply is there
    twice, or a held-out row has another prompt than before: rows of different prompts must not be taken for one.
    """
    if not path.is_file() or not path.stat().st_size:
        raise MissingResource(
            f"{path} is missing or empty: the run kept no replies", "What was not kept cannot be scored again."
        )
    replies = [
        _reply(path, number, line)
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1)
    ]
    seen: set[tuple[int, str, int]] = set()
    asked: dict[int, tuple[str, str]] = {}
    for number, reply in enumerate(replies, start=1):
        if (key := (reply.step, reply.split, reply.row)) in seen:
            raise BadResource(f"{path}, line {number}: row {reply.row} of step {reply.step} is there twice")
        seen.add(key)
        if reply.split == HELD_OUT and asked.setdefault(reply.row, reply.prompt.same_as) != reply.prompt.same_as:
            raise BadResource(f"{path}, line {number}: held-out row {reply.row} has another prompt than before")
    return replies


def _reply(path: Path, number: int, line: str) -> Reply:
    try:
        record = json.loads(line)
        prompt = Prompt(str(record["prompt"]), _messages(f"{path}, line {number}", record.get("messages")))
        return Reply(int(record["step"]), str(record["split"]), int(record["row"]), prompt, str(record["reply"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadResource(f"{path}, line {number} is damaged: {error}") from error


def _messages(where: str, value: object) -> Messages | None:
    """Return a line's conversation; a line without one, as of a text, has None."""
    if value is None:
        return None
    if not is_conversation(value):
        raise BadResource(f"{where} is damaged: messages is no list of messages", "Make the run anew.")
    return read_messages(value, where)


def grouped(replies: Sequence[Reply], batch: int) -> list[list[int]]:
    """Return indices into ``replies`` in groups of at most ``batch``, each scored in one call.

    An evaluation's replies stay among themselves, as when the run scored them: padding, and with it the last digits,
    is then the same. The training replies of all steps, of which a step keeps few, fill up groups together.
    """
    kinds: dict[int | None, list[int]] = {}
    for index, reply in enumerate(replies):
        kinds.setdefault(reply.step if reply.split == HELD_OUT else None, []).append(index)
    return [kind[i : i + batch] for kind in kinds.values() for i in range(0, len(kind), batch)]

"""Prompts: texts to reply to, for training and held out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from safebench import catalog
from safebench.errors import BadResource, MissingResource
from safebench.settings import Settings
from safebench.world import noise
from safebench.world.loading import loading

_HELD_OUT_SHARE = 0.1
_COLUMNS = ("prompt", "query", "question", "instruction", "text", "chosen")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ")

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompts:
    """Prompts in a fixed order; training and held-out ones are disjoint."""

    train: list[str]
    heldout: list[str]
    train_ids: list[list[int]] | None = None
    """Token ids of prompts that came as such; the texts are encoded when None."""
    heldout_ids: list[list[int]] | None = None

    def ids(self, split: Literal["train", "heldout"], row: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the token ids of a prompt up to where the reply begins."""
        given = self.train_ids if split == "train" else self.heldout_ids
        texts = self.train if split == "train" else self.heldout
        return encode_prompt(tokenizer, texts[row]) if given is None else given[row]


def load_prompts(settings: Settings) -> Prompts:
    """Read the prompts that the settings name; a data set smaller than a batch is an error."""
    location = catalog.prompts_source(settings.prompts.name)
    rows = _rows(location, settings.prompts.name)
    texts = [_text(row, settings.prompts.column) for row in rows]
    _refuse_blank(settings.prompts.name, texts)
    prompts = _split([(text, row.get("split")) for text, row in zip(texts, rows, strict=True)])
    train = prompts.train[: settings.prompts.limit]
    _refuse_small(settings, len(train), len(prompts.heldout))
    return Prompts(train, prompts.heldout[: settings.evaluation.prompts])


def as_messages(prompt: str) -> Messages:
    """Return a prompt as chat messages: one user turn, or the turns of a Human/Assistant transcript."""
    if not prompt.lstrip().startswith("Human: "):
        return [{"role": "user", "content": prompt}]
    parts = _TURN.split(prompt.strip())[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the ids of a prompt up to where the reply begins, by the chat template where there is one."""
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt)["input_ids"])
    ids = tokenizer.apply_chat_template(
        as_messages(prompt), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def _rows(location: str, name: str) -> list[dict[str, Any]]:
    path = Path(location)
    if path.suffix in (".jsonl", ".json", ".txt", ".parquet") or path.exists():
        return _file_rows(path)
    from datasets import load_dataset

    with loading(f"prompts {name}", location):
        return [dict(row) for row in load_dataset(location, split="train")]


def _file_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise MissingResource(f"there is no prompt file {path}", "Name a .jsonl, .parquet or .txt file.")
    if path.suffix == ".parquet":
        import pandas

        return [{str(key): value for key, value in row.items()} for row in pandas.read_parquet(path).to_dict("records")]
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix != ".jsonl":
        return [{"prompt": line} for line in lines]
    return [_json_row(path, number, line) for number, line in enumerate(lines, 1)]


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as fault:
        raise BadResource(f"{path}, line {number}: not JSON ({fault})") from fault
    if not isinstance(row, dict):
        raise BadResource(f"{path}, line {number}: a JSON object is expected, with a prompt")
    return row


def _text(row: dict[str, Any], column: str | None) -> str:
    names = (column,) if column else _COLUMNS
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            # A preference transcript ends with the assistant's turn, which is the policy's to write.
            return value.rpartition("\n\nAssistant:")[0] if name == "chosen" else value
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return next(str(m["content"]) for m in reversed(value) if m.get("role") == "user")
    raise BadResource(
        f"no prompt among the columns {', '.join(row)}", "Name the column with --set prompts.column=NAME."
    )


def _split(rows: list[tuple[str, str | None]]) -> Prompts:
    """Split by the rows' own ``split``, or put a tenth aside in an order that depends on the size alone."""
    if any(split for _, split in rows):
        return Prompts(
            [text for text, split in rows if split == "train"], [text for text, split in rows if split == "heldout"]
        )
    texts = list(dict.fromkeys(text for text, _ in rows))
    order = noise.order(0, 0, len(texts))
    aside = set(order[: max(1, round(len(texts) * _HELD_OUT_SHARE))]) if texts else set()
    return Prompts(
        [t for i, t in enumerate(texts) if i not in aside], [t for i, t in enumerate(texts) if i in aside]
    )


def _refuse_blank(name: str, texts: list[str]) -> None:
    """A prompt without tokens leaves the policy nothing to continue: its first distribution means nothing."""
    blank = [number for number, text in enumerate(texts, 1) if not text.strip()]
    if blank:
        raise BadResource(
            f"{len(blank)} of the {len(texts)} prompts of {name} are blank, the first is number {blank[0]}",
            "Remove them, or name another column with --set prompts.column=NAME.",
        )


def _refuse_small(settings: Settings, train: int, heldout: int) -> None:
    if train < settings.rollout.batch:
        raise BadResource(
            f"{settings.prompts.name} has {train} training prompts, fewer than one batch of {settings.rollout.batch}",
            f"Bring more prompts, or lower the batch with --set rollout.batch={max(1, train)}.",
        )
    if heldout < 2:
        raise BadResource(f"{settings.prompts.name} has {heldout} held-out prompts; at least 2 are needed")

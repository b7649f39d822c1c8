"""Reads the prompts of a data set (token ids as TRL has them, plain text or conversations) and encodes them on use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast, overload

from transformers import PreTrainedTokenizerBase

from safebench.errors import BadResource, UsageError
from safebench.models.libraries import naming
from safebench.models.prompts import (
    Messages,
    Prompt,
    Prompts,
    encode_messages,
    encode_text,
    is_conversation,
    read_messages,
    refuse_written,
    transcript,
)

Item = TypeVar("Item")

_TEXTS = ("prompt", "query", "text")
_COLUMNS = ("input_ids", *_TEXTS, "messages")


class Lazy(Sequence[Item]):
    """A sequence that makes each item on access."""

    def __init__(self, size: int, make: Callable[[int], Item]) -> None:
        self.size, self.make = size, make

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self.make(i) for i in range(self.size)[index]]
        return self.make(range(self.size)[index])

    def __iter__(self) -> Iterator[Item]:
        return (self.make(i) for i in range(self.size))


def _has_text(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a text prompt; the text is then used even if the row also has a conversation."""
    return any(isinstance(row.get(name), str) for name in _TEXTS)


class Rows:
    """A data set's prompts: texts and token ids.

    A row has ``input_ids`` (used as they are), or a text under ``prompt``, ``query`` or ``text`` (encoded as it is),
    or else a conversation under ``prompt`` or ``messages`` (encoded by the chat template up to the start of the reply;
    an answer at the end of ``messages`` is left out). A given ``data_collator`` makes the ids instead. Padding is
    removed from the ids: by the row's ``attention_mask`` or, without one, by the pad token.
    """

    vocabulary: int | None = None
    """Token ids of at least this number are refused; set to the model's vocabulary size once that is known."""

    def __init__(self, what: str, dataset: Any, tokenizer: PreTrainedTokenizerBase, collator: Any = None) -> None:
        self.what, self.dataset, self.tokenizer, self.collator = what, dataset, tokenizer, collator
        self.size = _size(what, dataset)
        self.row(0)

    def first(self, count: int) -> Rows:
        """Return the first ``count`` rows, or all rows if there are fewer."""
        part = copy.copy(self)
        part.size = min(count, self.size)
        return part

    def texts(self) -> list[str]:
        """Return the prompts as ``Prompt``s, in the data set's order."""
        return cast(list[str], Lazy(self.size, self.text))

    def ids(self) -> list[list[int]]:
        """Return the prompts' token ids, in the data set's order."""
        return cast(list[list[int]], Lazy(self.size, self.tokens))

    def row(self, index: int) -> Mapping[str, Any]:
        """Return a row; raise ``BadResource`` if it holds no prompt."""
        with naming(f"row {index} of {self.what}", "Mend the data set: reading the row fails."):
            row = self.dataset[index]
        if not isinstance(row, Mapping) or not any(name in row for name in _COLUMNS):
            names = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise BadResource(
                f"no prompt in row {index} of {self.what}, which has {names}",
                f"Name a column input_ids, {', '.join(_TEXTS)} or messages.",
            )
        return row

    def text(self, index: int) -> Prompt:
        """Return the prompt of a row as text: its own text, its conversation's transcript, or its decoded ids."""
        row = self.row(index)
        messages = None if _has_text(row) else conversation(row, self._where(index))
        text = next((row[name] for name in _TEXTS if isinstance(row.get(name), str)), None)
        if text is None:
            ids = self.tokens(index) if messages is None else []
            text = self.tokenizer.decode(ids, skip_special_tokens=True) if messages is None else transcript(messages)
        return Prompt(str(text), messages, source=self.what, row=row)

    def tokens(self, index: int) -> list[int]:
        """Return the token ids of a row's prompt."""
        row = self.row(index)
        ids = self._collated(row) if self.collator is not None else self._encoded(row, self._where(index))
        if not ids:
            raise BadResource(
                f"the prompt in row {index} of {self.what} has no tokens", "Remove it: there is nothing to continue."
            )
        if self.vocabulary is not None and not 0 <= min(ids) <= max(ids) < self.vocabulary:
            beyond = next(i for i in ids if not 0 <= i < self.vocabulary)
            raise BadResource(
                f"row {index} of {self.what} has the token id {beyond}; the model knows {self.vocabulary} tokens",
                "Encode with the model's own tokenizer; for added tokens call model.resize_token_embeddings.",
            )
        return ids

    def _where(self, index: int) -> str:
        return f"row {index} of {self.what}"

    def _encoded(self, row: Mapping[str, Any], where: str) -> list[int]:
        if "input_ids" in row:
            return self._real(row["input_ids"], row.get("attention_mask"))
        messages = None if _has_text(row) else conversation(row, where)
        if messages is not None:
            return encode_messages(self.tokenizer, messages, where)
        text = next((row[name] for name in _TEXTS if isinstance(row.get(name), str)), None)
        if text is None:
            raise BadResource(
                f"{where} holds no prompt: {', '.join(name for name in _COLUMNS if name in row)} is no text",
                "Bring texts, conversations or input_ids.",
            )
        if not text.strip():
            raise BadResource(f"{where} holds a blank prompt", "Remove it: there is nothing to continue.")
        refuse_written(text, where)
        return encode_text(self.tokenizer, text)

    def _collated(self, row: Mapping[str, Any]) -> list[int]:
        what = f"data_collator ({type(self.collator).__name__}) on a row of {self.what}"
        with naming(what, "Leave it out, or mend it."):
            batch = self.collator([dict(row)])
            mask = batch.get("attention_mask")
            ids = self._real(batch["input_ids"][0], None if mask is None else mask[0])
        # For ids without a mask of their own, the collator's mask marks only the padding that the collator added.
        return self._real(ids, None) if "input_ids" in row and "attention_mask" not in row else ids

    def _real(self, ids: Any, mask: Any) -> list[int]:
        """Return the ids without padding: by the mask, or by the pad token as TRL's trainer does.

        If the pad token also ends turns, it is padding only at both ends; within, it is part of the conversation.
        """
        found = _numbers(ids)
        if mask is not None:
            return [i for i, kept in zip(found, _numbers(mask), strict=True) if kept]
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if pad is None or pad != end:
            return [i for i in found if i != pad]
        real = [place for place, i in enumerate(found) if i != pad]
        return found[real[0] : real[-1] + 1] if real else []


def conversation(row: Mapping[str, Any], where: str) -> Messages | None:
    """Return the row's conversation, or None if it has none."""
    for name in ("prompt", "messages"):
        if is_conversation(row.get(name)):
            return read_messages(row[name], where, answered=name == "messages")
    return None


def read_prompts(train: Rows, heldout: Rows | None = None) -> Prompts:
    """Return the prompts that the loop reads."""
    if heldout is None:
        return Prompts(train.texts(), [], train.ids(), [])
    return Prompts(train.texts(), heldout.texts(), train.ids(), heldout.ids())


def _numbers(ids: Any) -> list[int]:
    return [int(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]


def _size(what: str, dataset: Any) -> int:
    if isinstance(dataset, str):
        raise UsageError(f"{what} is a str", f'Write {what}=datasets.load_dataset("{dataset}", split=…).')
    if isinstance(dataset, Mapping):
        _refuse_splits(what, dataset)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UsageError(
            f"{what} is a {type(dataset).__name__}, which cannot be read row by row",
            "Bring a data set with a length: of a stream take as many rows as you need, and keep them.",
        )
    if len(dataset) == 0:
        raise BadResource(f"{what} is empty")
    return len(dataset)


def _refuse_splits(what: str, dataset: Mapping[str, Any]) -> None:
    """Refuse a dictionary given in place of a data set, and say which part of it to take."""
    names = ", ".join(map(str, dataset)) or "nothing"
    columns = {"input_ids", *_TEXTS, "messages"} & set(dataset)
    if columns and not any(hasattr(part, "column_names") for part in dataset.values()):
        raise UsageError(
            f"{what} is a {type(dataset).__name__} of columns ({names})", f"Write {what}=Dataset.from_dict(…) of it."
        )
    key = next(iter(dataset), "train")
    raise UsageError(
        f"{what} is a {type(dataset).__name__} with the splits {names}: one data set is needed",
        f'Write {what}=dataset["{key}"].',
    )

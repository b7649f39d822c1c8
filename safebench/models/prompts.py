"""Read prompts (texts and conversations), and split them into training and held-out ones."""

from __future__ import annotations

import ast
import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from safebench import registry
from safebench.config.schema import Settings
from safebench.errors import BadResource, MissingResource
from safebench.models import seeding
from safebench.models.libraries import loading
from safebench.registry import Entry

Messages = list[dict[str, Any]]
"""Each has ``role`` and ``content`` (a text), and any other keys of its source, such as ``tool_calls``."""

_ROLES = {"human": "user", **dict.fromkeys(("gpt", "model", "bot", "ai"), "assistant")}
_SHAREGPT_ROLES = {**_ROLES, "chatgpt": "assistant", **{name: name for name in ("user", "assistant", "system", "tool")}}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):(?=\s|$)")


def as_list(value: Any) -> list[Any] | None:
    """Return ``value`` as a list if it is a list, a tuple or a numpy array (pandas' form of lists), else None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def is_conversation(value: Any) -> bool:
    """Return whether ``value`` is a list of messages, in any form."""
    turns = as_list(value)
    return bool(turns) and all(isinstance(turn, Mapping) for turn in turns or ())


def read_messages(value: Any, where: str, *, answered: bool = False) -> Messages:
    """Return the messages of turns that have ``role`` and ``content``, or ShareGPT's ``from`` and ``value``.

    With ``answered``, an assistant's turn at the end is left out, because the policy is to write it. Contents that are
    lists of texts are joined by line breaks. Raises ``BadResource``, whose message begins with ``where``, for contents
    that are not text, and for turns without a role.
    """
    turns = as_list(value) or []
    if answered and len(turns) > 1 and isinstance(turns[-1], Mapping) and _role_of(turns[-1], where) == "assistant":
        turns = turns[:-1]
    return [_message(turn, f"{where}, message {number}") for number, turn in enumerate(turns, 1)]


def transcript(messages: Messages) -> str:
    """Return the messages as a readable text: the content of a single user turn, else every turn with its role."""
    if [message["role"] for message in messages] == ["user"]:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def from_transcript(text: str) -> Messages | None:
    """Return the turns of a Human/Assistant transcript, None if ``text`` is not a transcript.

    An empty assistant's turn at the end only marks the next speaker and is dropped.
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
        return None  # only a text that begins with this word: it has no turn of the assistant
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def refuse_written(text: str, where: str) -> None:
    """Raise ``BadResource`` for a conversation or object written out as text: the policy would read it verbatim."""
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

    An assistant's turn at the end is continued. Raises ``BadResource``, whose message begins with ``where``, if there
    is no chat template or it refuses the conversation.
    """
    return str(_templated(tokenizer, messages, where, tokenize=False))


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> list[int]:
    """Return the token ids of what ``render`` returns; raises the same errors."""
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


def _role_of(turn: Mapping[str, Any], where: str) -> str:
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
    role, key = _role_of(turn, where), "content" if isinstance(turn.get("role"), str) else "value"
    if key not in turn:
        raise BadResource(f"{where} has no {key}, only {', '.join(map(str, turn))}", f"Give it {key}.")
    # Tables have every key in every row, but templates test whether a message has a key: drop null values.
    more = {str(k): v for k, v in turn.items() if k not in ("role", "from", key) and v is not None}
    if more:
        try:
            more = json.loads(json.dumps(more))
        except (TypeError, ValueError) as fault:
            raise BadResource(f"{where} holds what JSON cannot: {fault}", "Leave these keys out.") from fault
    return {"role": role, "content": _content_text(turn[key], where), **more}


def _content_text(content: Any, where: str) -> str:
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


Row = tuple[int, Any]
"""The number of a row, from 1, and its value: a mapping by columns, a text, a list of messages, or None.

In text files and JSON Lines the number is the line's. In CSV it is the record's, counted after the header.
"""

_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_SAVE_AS_UTF8 = "Save the file as UTF-8."


Choose = Callable[[Sequence[str]], Sequence[str]]
"""Takes a table's columns and returns those to read."""


def read_rows(source: Entry, columns: Sequence[str], beside: Sequence[str]) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows of a file, of a local directory or of a hub data set, and notices of what was not read.

    The split ``train`` of a data set is read.

    In columnar tables only ``columns`` and the columns ``beside`` them are read, or all if none of ``columns`` exists.
    Raises ``MissingResource`` if the source is not available, and ``BadResource`` with the position if it cannot be
    read.
    """

    def choose(names: Sequence[str]) -> Sequence[str]:
        known = [name for name in names if name in (*columns, *beside)]
        return known if any(name in columns for name in known) else names

    if source.kind == "hub":
        return _dataset(source, choose)
    path = Path(source.location)
    return _dataset(source, choose) if path.is_dir() else _file(path, choose)


def _file(path: Path, choose: Choose) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows of a file, gzipped or not; only a line feed ends a line."""
    ending = registry.prompt_file(path)
    data = _bytes(path)
    if ending == ".parquet":
        return _parquet(path, data, choose), ()
    text = _decoded(path, data)
    if ending in (".csv", ".tsv"):
        return list(_csv(path, text, "," if ending == ".csv" else "\t")), ()
    if ending == ".txt":
        return list(_lines(text)), ()
    return _json(path, text, lines=ending != ".json")


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise MissingResource(f"{path} cannot be read: {fault.strerror}", "Name a file that can be.") from fault
    if path.suffix.lower() != ".gz":
        if data.startswith(b"\x1f\x8b"):
            raise BadResource(f"{path} is gzipped, and its name does not say so", f"Name it {path.name}.gz.")
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as fault:
        raise BadResource(f"{path}: not gzip ({fault})", "Make it again with gzip, or name it without .gz.") from fault


def _decoded(path: Path, data: bytes) -> str:
    """Decode UTF-8, with or without a byte-order mark; offsets in errors count from 0."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise BadResource(f"{path}, line 1, byte offset 0: the file is {encoding}, not UTF-8", _SAVE_AS_UTF8)
    if (place := data.find(b"\x00")) >= 0:
        raise BadResource(f"{path}, {_place(data, place)}: a NUL byte, which no text has", _SAVE_AS_UTF8)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as fault:
        raise BadResource(
            f"{path}, {_place(data, fault.start)}: byte 0x{data[fault.start]:02x} is not UTF-8 ({fault.reason})",
            _SAVE_AS_UTF8,
        ) from fault


def _place(data: bytes, offset: int) -> str:
    line = data.count(b"\n", 0, offset) + 1
    return f"line {line}, byte offset {offset}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines; what follows the last line feed is a line only if it is not empty."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r")


def _csv(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    """Yield the records after the header; every field is a text."""
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise BadResource(
                f"{path}: a column's name stands twice in the header {', '.join(names)}", "Rename one of the two."
            )
        for number, fields in enumerate(reader, 1):
            if fields and len(fields) != len(names):
                raise BadResource(
                    f"{path}, row {number} (up to line {reader.line_num}) has {len(fields)} fields, and the header "
                    f"{len(names)}: {', '.join(names)}",
                    "Put texts with commas, quotes or line ends into double quotes.",
                )
            if fields:
                yield number, dict(zip(names, fields, strict=True))
    except csv.Error as fault:
        raise BadResource(
            f"{path}, line {reader.line_num}: not CSV ({fault})", "Double the quotes within a quoted text."
        ) from fault
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path, data: bytes, choose: Choose) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        # pyarrow gives lists of structs as lists of mappings; pandas gives arrays.
        rows = file.read(columns=list(choose(file.schema_arrow.names))).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as fault:
        reason = " ".join(str(fault).split())
        raise BadResource(f"{path}: not Parquet that can be read ({reason})", "Write the file anew.") from fault
    return list(enumerate(rows, 1))


def _dataset(source: Entry, choose: Choose) -> tuple[list[Row], tuple[str, ...]]:
    """Read the split ``train`` with `datasets`: from the hub, a directory of files, or ``save_to_disk``'s result."""
    location, what, others = source.location, f"prompts {source.name}", list[str]()
    with _readable(what, location), _quiet_datasets():
        found = _loaded(what, location)
    if isinstance(found, dict):
        if "train" not in found:
            raise BadResource(f"{what} has no split train; there are {', '.join(map(str, found))}", _one_file(location))
        others = [str(split) for split in found if split != "train"]
        found = found["train"]
    told = [f"of {what} the split train is read, and not {', '.join(others)}"] if others else []
    if kinds := _other_kinds(Path(location), found):
        told.append(f"of {what} no file is read that ends in {', '.join(kinds)}: `datasets` reads one kind alone")
    return list(enumerate(found.select_columns(list(choose(found.column_names))).to_list(), 1)), tuple(told)


def _other_kinds(folder: Path, found: Any) -> list[str]:
    """Return the endings of those prompt files in a folder that `datasets` did not read."""
    read = _READERS.get(str(found.info.builder_name), frozenset())
    about = {"dataset_infos.json", "state.json", "dataset_dict.json", "dataset_info.json"}
    there = {file.suffix.lower() for file in folder.rglob("*") if file.is_file() and file.name not in about}
    return sorted(there & frozenset[str]().union(*_READERS.values()) - read) if read else []


_READERS = {
    "json": frozenset({".json", ".jsonl", ".ndjson"}),
    "csv": frozenset({".csv", ".tsv"}),
    "parquet": frozenset({".parquet"}),
}
"""Endings of the prompt files that each builder of `datasets` reads; a text file beside them is mostly a licence."""


def _loaded(what: str, location: str) -> Any:
    import datasets

    if any((Path(location) / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(location)
    try:
        return datasets.load_dataset(location)
    except ValueError as fault:
        _, several, known = str(fault).partition("Please pick one among the available configs: ")
        if not several:
            raise
        names = known.partition("\n")[0]
        raise BadResource(f"{what} has several configurations, {names}", _one_file(location)) from fault


@contextlib.contextmanager
def _readable(what: str, location: str) -> Iterator[None]:
    """Turn errors of `datasets` into a ``BadResource`` that names the data set and the reason."""
    from datasets.exceptions import DatasetsError

    here = Path(location).is_dir()
    try:
        with contextlib.nullcontext() if here else loading(what, location):
            yield
    except (DatasetsError, OSError, ValueError, RuntimeError) as fault:
        # A data set with a script of its own, which is not run, raises a RuntimeError.
        reason = " ".join(f"{fault} {fault.__cause__ or ''}".split())[:300]
        files = sorted(file for file in Path(location).rglob("*") if here and registry.prompt_file(file) is not None)
        hint = f"Name one file of it, such as {files[0]}." if files else _one_file(location)
        raise BadResource(f"{what}: `datasets` cannot read {location}: {reason}", hint) from fault


def _one_file(location: str) -> str:
    return f'Save what to read as a file: load_dataset("{location}", …)["SPLIT"].to_json("prompts.jsonl").'


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _json(path: Path, text: str, *, lines: bool) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows of an array, of an object with one list of rows, or of JSON Lines, whichever the text is."""
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        return [], ()
    by_lines = lines and text[start] != "["
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
        if text[end:].strip(" \t\r\n") and "\n" in text[start:end]:
            json.loads(text)  # More than one value, but not one a line: this raises with the position of the second.
    except (json.JSONDecodeError, RecursionError) as fault:
        if by_lines:
            return _json_lines(path, text), ()
        raise _not_json(path, fault) from fault
    if text[end:].strip(" \t\r\n"):
        return _json_lines(path, text), ()
    if isinstance(value, list):
        return list(enumerate(value, 1)), ()
    if isinstance(value, dict) and not by_lines:
        key, rows = _rows_within(path, value)
        told = () if key in _USUAL else (f"of {path} the list {key!r} is read",)
        return list(enumerate(rows, 1)), told
    return [(1, value)], ()


_USUAL = ("data", "rows", "prompts", "prompt", "train", "examples")
"""Names of a JSON object's one list that need no notice."""


def _rows_within(path: Path, value: dict[str, Any]) -> tuple[str, list[Any]]:
    """Return an object's one list of rows and its name: a list of objects, or of texts if there is none of objects."""
    lists = {key: item for key, item in value.items() if isinstance(item, list) and item}
    objects = {key: item for key, item in lists.items() if isinstance(item[0], dict)}
    lists = objects or lists
    if len(lists) != 1:
        raise BadResource(
            f"{path} is an object with {len(lists)} lists of rows ({', '.join(value) or 'empty'}), where one is needed",
            'Give an array of rows, an object with one list such as {"data": [...]}, or JSON Lines.',
        )
    return next(iter(lists.items()))


def _json_lines(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in _lines(text):
        if not line.strip(" \t\r"):
            continue
        try:
            rows.append((number, json.loads(line)))
        except (json.JSONDecodeError, RecursionError) as fault:
            raise _not_json(path, fault, number) from fault
    return rows


def _not_json(path: Path, fault: json.JSONDecodeError | RecursionError, line: int | None = None) -> BadResource:
    if isinstance(fault, RecursionError):
        return BadResource(
            f"{path}{'' if line is None else f', line {line}'}: JSON nested too deep", "Make the file anew."
        )
    return BadResource(
        f"{path}, line {line or fault.lineno}, column {fault.colno}: not JSON ({fault.msg})",
        "Mend the place, or make the file anew with a JSON library.",
    )


_HELD_OUT_SHARE = 0.1
_CONVERSATIONS = ("messages", "conversations", "conversation")
_COLUMNS = ("prompt", "query", "question", "instruction", "text", "chosen", *_CONVERSATIONS)
"""Columns in which prompts are looked for, in this order."""
_BESIDE = ("system", "system_prompt", "context", "history", "tools", "images", "image")
"""Columns that may belong to a prompt but are not read; a notice names them."""
_SHOWN = 5
"""Maximum number of row numbers that a message lists."""


class Prompt(str):
    """A prompt's text, and where it comes from. The text of a conversation is a readable transcript.

    ``messages`` is the conversation, None if the prompt is a text. ``row_number`` counts from 1 in ``source``.
    ``row`` is the data set's row, for rewards that read its columns. It is not sent between processes.
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
        """Return ``text`` with its messages and origin."""
        made = super().__new__(cls, text)
        made.messages, made.row_number, made.source, made.row = messages, row_number, source, row or {}
        return made

    def __reduce__(self) -> tuple[type[Prompt], tuple[str, Messages | None, int | None, str]]:
        """Return what to pickle between processes: all but the row."""
        return Prompt, (str(self), self.messages, self.row_number, self.source)

    @property
    def same_as(self) -> tuple[str, str]:
        """The text and messages, which are equal if two prompts are the same."""
        return str(self), json.dumps(self.messages)


@dataclass(frozen=True)
class Prompts:
    """Prompts in a fixed order; training and held-out ones are disjoint, unless ``notices`` say otherwise."""

    train: list[str]
    heldout: list[str]
    train_ids: list[list[int]] | None = None
    """Token ids of prompts that were given as ids; if None, the texts are encoded."""
    heldout_ids: list[list[int]] | None = None
    notices: tuple[str, ...] = ()
    """Notices for the user from reading the prompts."""

    def ids(self, split: Literal["train", "heldout"], row: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the token ids of a prompt up to where the reply begins."""
        given = self.train_ids if split == "train" else self.heldout_ids
        texts = self.train if split == "train" else self.heldout
        return encode_prompt(tokenizer, texts[row]) if given is None else given[row]


def load_prompts(settings: Settings) -> Prompts:
    """Read the prompts that the settings name.

    Rows without a prompt are left out. Repeated prompts are left out too, unless the rows name their split. ``notices``
    count both. Raises ``MissingResource`` and ``BadResource`` with the row or the place in the file, also if there are
    fewer prompts than a batch.
    """
    name, column = settings.prompts.name, settings.prompts.column
    read, told = read_rows(
        registry.prompts_source(name), [column] if column else _COLUMNS, ("input", "split", *_BESIDE)
    )
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
    """Return the messages of a prompt that is a conversation, None if it is a text."""
    return list(prompt.messages) if isinstance(prompt, Prompt) and prompt.messages is not None else None


def as_messages(prompt: str) -> Messages:
    """Return a prompt as chat messages: its conversation, a Human/Assistant transcript's turns, or one user turn."""
    return conversation_of(prompt) or from_transcript(prompt) or [{"role": "user", "content": str(prompt)}]


def as_text(prompt: str) -> str:
    """Return a prompt as the text that a model without chat template continues.

    A transcript gets a new turn of the assistant at its end. One that ends within the assistant's turn is continued
    there.
    """
    text, messages = str(prompt), as_messages(prompt)
    goes_on = messages[-1]["role"] == "assistant" or text.rstrip().endswith("\n\nAssistant:")
    if goes_on or (len(messages) == 1 and messages[0]["content"] == text):
        return text
    return f"{text.rstrip()}\n\nAssistant:"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the ids of a prompt up to where the reply begins, by the chat template if there is one.

    Raises ``BadResource`` with the prompt's row if a conversation cannot be encoded or the prompt has no tokens.
    """
    if tokenizer.chat_template is None and conversation_of(prompt) is None:
        ids = encode_text(tokenizer, as_text(prompt))
    else:
        ids = encode_messages(tokenizer, as_messages(prompt), _where(prompt))
    if not ids:
        raise BadResource(f"{_where(prompt)} has no tokens", "Leave it out: there is nothing to continue.")
    return ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that is to be continued, without an end token that the tokenizer appends."""
    ids, end = list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id
    appended = len(ids) > 1 and ids[-1] == end and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if appended else ids


def check_encoded(prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Encode prompts before any training, and return notices about the chat template.

    All conversations are rendered. Of transcripts and texts, the first one for each order of turns is encoded. Raises
    the errors of ``encode_prompt`` for the first row that cannot be encoded.
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
    """Return the roles of messages that the template leaves out for these turns, whatever their contents."""
    marked = [{**message, "content": f"turn {number} of it"} for number, message in enumerate(messages)]
    try:
        text = render(tokenizer, marked, where)
    except BadResource:
        return ()  # the template reads the contents: only the real contents are looked for
    return tuple(dict.fromkeys(str(m["role"]) for m in marked if str(m["content"]) not in text))


def _where(prompt: str) -> str:
    if isinstance(prompt, Prompt) and prompt.row_number is not None:
        return f"row {prompt.row_number} of {prompt.source}"
    return f"the prompt {str(prompt)[:40]!r}"


def _columns(name: str, number: int, row: Any) -> Mapping[str, Any]:
    """Return a row as a mapping by columns: a text alone is a prompt, a list of messages alone is a conversation."""
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
    """Return the column of the prompts: the named one, or the first known one that holds any value."""
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
    """Return the prompt of a row; it is empty if the row has null, a blank text or a blank last message."""
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
        # A preference transcript ends with the assistant's turn, which the policy is to write.
        before, assistant, _ = value.rpartition("\n\nAssistant:")
        if not assistant:
            raise BadResource(
                f"{where}: chosen is no transcript that ends with the Assistant's turn", "Give a column of prompts."
            )
        return f"{before}\n\nAssistant:"
    more = row.get("input") if chosen == "instruction" else None
    return f"{value}\n\n{more}" if isinstance(more, str) and more.strip() else value


def _last_word(where: str, messages: Messages, chosen: str) -> str:
    """Return the last message to reply to; only in ``prompt`` may it be the assistant's, which is then continued."""
    last = messages[-1]
    if last["role"] == "assistant" and chosen != "prompt":
        raise BadResource(f"{where}: {chosen} has nothing before the assistant's answer", "Leave the row out.")
    return str(last["content"]).strip()


def _split(name: str, rows: Sequence[tuple[Prompt, Any]]) -> Prompts:
    """Split by the rows' own ``split``, or hold out a tenth, in an order that depends on the prompts' number alone."""
    if any(split is not None for _, split in rows):
        return _given_split(name, rows)
    texts, again = _first_and_repeated([prompt for prompt, _ in rows])
    order = seeding.order(0, 0, len(texts))
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
    """Return the first occurrence of each prompt, and the repeated prompts."""
    first: dict[tuple[str, str], Prompt] = {}
    repeated = [prompt for prompt in prompts if first.setdefault(prompt.same_as, prompt) is not prompt]
    return list(first.values()), repeated


def _told(prompts: Sequence[Prompt], what: str) -> tuple[str, ...]:
    return (f"{what}: {len(prompts)} ({_numbers(prompts)})",) if prompts else ()


def _not_read(
    name: str, rows: Sequence[tuple[int, Mapping[str, Any]]], chosen: str, column: str | None
) -> tuple[str, ...]:
    """Return a notice of unread columns that may belong to the prompts, and of conversations beside texts."""
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

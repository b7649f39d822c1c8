"""Prompts in every form that they come in: read, left out and told, or refused with their place."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from tokenizers.processors import TemplateProcessing

from safebench.errors import BadResource, MissingResource
from safebench.models.prompts import Prompt, Prompts, as_messages, check_encoded, encode_prompt, load_prompts
from tests.support.tiny import tiny_settings, tiny_tokenizer

TEXTS = [f"prompt {i}, with a comma" for i in range(20)]
CHATML = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} e {% endfor %}"
    "{% if add_generation_prompt %}z{% endif %}"
)
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "my cat is Tom"},
    {"role": "assistant", "content": "nice"},
    {"role": "user", "content": "what is it called?"},
]


def load(path: Path, column: str | None = None, **more: Any) -> Prompts:
    return load_prompts(tiny_settings(prompts={"name": str(path), "column": column}, **more))


def every(prompts: Prompts) -> list[str]:
    """All prompts in the order of their rows."""
    found = [*prompts.train, *prompts.heldout]
    assert all(isinstance(prompt, Prompt) for prompt in found)
    return sorted(found, key=lambda prompt: prompt.row_number)  # type: ignore[attr-defined]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def padded(rows: list[Any]) -> list[Any]:
    """Rows, and enough others for a batch behind them."""
    return [*rows, *({"prompt": text} for text in TEXTS)]


def of_rows(tmp_path: Path, rows: list[Any], column: str | None = None) -> list[str]:
    return every(load(jsonl(tmp_path / "p.jsonl", rows), column))


def chatting(template: str = CHATML) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


ROWS = [{"prompt": text, "answer": 1} for text in TEXTS]


def _parquet(path: Path) -> None:
    pandas.DataFrame(ROWS).to_parquet(path)


def _text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content.encode())


FORMS: dict[str, Callable[[Path], None]] = {
    "lines.jsonl": _text("\n".join(map(json.dumps, ROWS))),
    "windows.jsonl": _text("\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n"),
    "mark.jsonl": _text("\ufeff" + "\n".join(map(json.dumps, ROWS))),
    "CAPITALS.JSONL": _text("\n".join(map(json.dumps, ROWS))),
    "other.ndjson": _text("\n".join(map(json.dumps, ROWS))),
    "array.jsonl": _text(json.dumps(ROWS)),
    "array.json": _text(json.dumps(ROWS, indent=1)),
    "texts.json": _text(json.dumps(TEXTS)),
    "lines.json": _text("\n".join(map(json.dumps, ROWS))),
    "texts.jsonl": _text("\n".join(map(json.dumps, TEXTS))),
    "held.json": _text(json.dumps({"version": 1, "tags": ["a", "b"], "data": ROWS})),
    "column.json": _text(json.dumps({"prompt": TEXTS})),
    "table.parquet": _parquet,
    "table.csv": lambda path: pandas.DataFrame(ROWS).to_csv(path, index=False),
    "table.TSV": lambda path: pandas.DataFrame(ROWS).to_csv(path, index=False, sep="\t"),
    "mark.csv": lambda path: pandas.DataFrame(ROWS).to_csv(path, index=False, encoding="utf-8-sig"),
    "plain.txt": _text("\n".join(TEXTS)),
    "windows.txt": _text("\r\n".join(TEXTS) + "\r\n"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_files_in_all_their_forms(name: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    FORMS[name](path)
    if packed:
        path = path.with_name(f"{name}.gz")
        path.write_bytes(gzip.compress((tmp_path / name).read_bytes(), mtime=0))
    prompts = load(path)
    assert every(prompts) == TEXTS
    assert prompts.notices == ()
    assert len(prompts.heldout) == 2


STRANGE = [f"a{mark}b {i}" for i in range(3) for mark in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.txt", "p.parquet"])
def test_only_line_feeds_end_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "p.csv":
        path.write_text("\n".join(["prompt", *STRANGE]), encoding="utf-8")
    elif name == "p.txt":
        path.write_text("\n".join(STRANGE), encoding="utf-8")
    elif name == "p.parquet":
        pandas.DataFrame({"prompt": STRANGE}).to_parquet(path)
    else:
        path.write_text("\n".join(json.dumps({"prompt": t}, ensure_ascii=False) for t in STRANGE), encoding="utf-8")
    assert every(load(path)) == STRANGE


def test_csv_fields_are_texts(tmp_path: Path) -> None:
    texts = ["NA", "null", "12", "1.50", "True", "two\nlines", 'a "quoted", word', "x" * 200_000, *TEXTS]
    pandas.DataFrame({"prompt": texts}).to_csv(tmp_path / "p.csv", index=False)
    assert every(load(tmp_path / "p.csv")) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "\ufeffé".encode("utf-16"), "line 1, byte offset 0: the file is UTF-16"),
        ("p.txt", "é".encode("utf-16-le") + b"a\x00", r"line 1, byte offset 1: a NUL byte"),
        ("p.txt", b"one\ntwo\ncaf\xe9\n", r"line 3, byte offset 11: byte 0xe9 is not UTF-8"),
        ("p.csv", b"prompt\ncaf\xe9\n", r"line 2, byte offset 10: byte 0xe9"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', r"p\.jsonl, line 2, column 15: not JSON"),
        ("p.jsonl", b'{"prompt": "a"\n{"prompt": "b"}\n', r"p\.jsonl, line 1, column 15: not JSON"),
        ("p.jsonl", b'{"prompt": "a"} {"prompt": "b"}\n', r"line 1, column 17: not JSON \(Extra data"),
        ("p.json", b'[\n{"prompt": "a"},\n{"prompt" "b"}]', r"line 3, column 11: not JSON"),
        ("p.json", b'[\n{"prompt": "a"}]\n[]', r"line 3, column 1: not JSON \(Extra data"),
        ("p.json", b'{"a": [{"prompt": "x"}], "b": [{"prompt": "y"}]}', r"2 lists of rows \(a, b\)"),
        ("p.json", b'{"data": {}}', "0 lists of rows"),
        ("p.json", b"[1]", "row 1 of .* is a int"),
        ("p.json", b"[" * 100_000, "nested too deep"),
        ("p.jsonl", b'{"prompt": "\\ud800"}\n', "row 1 of .*: half a surrogate pair"),
        ("p.csv", b'prompt,b\n"x,1\n', r"p\.csv, line 2: not CSV \(unexpected end of data"),
        ("p.csv", b"prompt\nhello, you\n", r"row 1 \(up to line 2\) has 2 fields, and the header 1: prompt"),
        ("p.csv", b"prompt,answer\nhello\n", r"row 1 .* has 1 fields"),
        ("p.csv", b"prompt,prompt\na,b\n", "twice in the header"),
        ("p.parquet", b"PAR1 and nothing more", r"p\.parquet: not Parquet that can be read \("),
        ("p.jsonl.gz", b"not gzip", r"p\.jsonl\.gz: not gzip"),
        ("p.jsonl.gz", gzip.compress(b'{"prompt": "a"}' * 99, mtime=0)[:-9], r"p\.jsonl\.gz: not gzip"),
        ("p.jsonl", b"\n \n", "holds no rows"),
        ("p.txt", b"", "holds no rows"),
        ("p.csv", b"", "holds no rows"),
        ("p.xlsx", b"PK", "does not say what it holds"),
        ("prompts", b"a\nb\n", "does not say what it holds"),
        ("p.jsonl.zst", b"\x28\xb5", "does not say what it holds"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadResource, match=message) as fault:
        load(tmp_path / name)
    assert fault.value.exit_code == 3


def test_what_is_known_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.xlsx").touch()
    with pytest.raises(BadResource) as fault:
        load(tmp_path / "p.xlsx")
    assert ".parquet" in str(fault.value.hint)
    with pytest.raises(MissingResource, match="no such file"):
        load(tmp_path / "p.csv.gz")


def test_rows_without_a_prompt_are_left_out_and_told(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": text} for text in TEXTS]
    rows[3:3] = [{"prompt": value} for value in (None, "", " \u2028\t", [], float("nan"))] + [None]
    prompts = load(jsonl(tmp_path / "p.jsonl", rows))
    assert every(prompts) == TEXTS
    name = tmp_path / "p.jsonl"
    assert prompts.notices == (
        f"rows of {name} (26 in all) that hold no prompt, null or blank, and are left out: 6 (rows 4, 5, 6, 7, 8, …)",
    )


def test_a_conversation_without_a_last_word_is_no_prompt(tmp_path: Path) -> None:
    rows = [{"messages": [*TALK[:-1], {"role": "user", "content": word}]} for word in [None, " ", *TEXTS]]
    prompts = load(jsonl(tmp_path / "p.jsonl", rows))
    assert len(every(prompts)) == 20
    assert "(rows 1, 2)" in prompts.notices[0]


def test_nothing_but_blanks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadResource, match=r"none of the 2 rows .* prompt is null or blank") as fault:
        load(jsonl(tmp_path / "p.jsonl", [{"prompt": None, "x": "a"}, {"prompt": " ", "x": "b"}]))
    assert "prompts.column" in str(fault.value.hint)


def test_duplicates_are_left_out_and_told(tmp_path: Path) -> None:
    prompts = load(jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in [*TEXTS[:2], *TEXTS]]))
    assert sorted([*prompts.train, *prompts.heldout]) == sorted(TEXTS)
    assert prompts.notices == (
        f"rows of {tmp_path / 'p.jsonl'} that repeat an earlier prompt and are left out: 2 (rows 3, 4)",
    )


def test_conversations_are_the_same_by_their_messages_not_their_transcripts(tmp_path: Path) -> None:
    whole = [{"role": "user", "content": "a\n\nUser: b"}, {"role": "user", "content": "c"}]
    turns = [{"role": "user", "content": word} for word in "abc"]
    rows = [{"prompt": whole}, {"prompt": turns}, {"prompt": turns}]
    found = of_rows(tmp_path, padded(rows))
    assert found[0] == found[1]
    assert [prompt.row_number for prompt in found[:3]] == [1, 2, 4]  # type: ignore[attr-defined]


def test_given_splits_are_kept_and_what_stands_in_both_is_told(tmp_path: Path) -> None:
    train = [{"split": "train", "prompt": text} for text in [*TEXTS, TEXTS[0]]]
    heldout = [{"split": "heldout", "prompt": text} for text in ["new", "newer", TEXTS[5]]]
    prompts = load(jsonl(tmp_path / "p.jsonl", [*train, *heldout]))
    assert prompts.train == [*TEXTS, TEXTS[0]]
    assert prompts.heldout == ["new", "newer", TEXTS[5]]
    name = tmp_path / "p.jsonl"
    assert prompts.notices == (
        f"rows of {name} that repeat an earlier prompt of their split and are kept: 1 (row 21)",
        f"held-out prompts of {name} that are training prompts too: 1 (row 24)",
    )


@pytest.mark.parametrize("split", ["test", None, 3])
def test_a_split_that_is_neither_is_refused(split: Any, tmp_path: Path) -> None:
    rows = [{"split": "train", "prompt": text} for text in TEXTS]
    with pytest.raises(BadResource, match=f"row 21 of .*: its split is {split!r}"):
        of_rows(tmp_path, [*rows, {"split": split, "prompt": "a"}])


@pytest.mark.parametrize(
    ("row", "column", "text", "messages"),
    [
        ({"prompt": "a", "text": "b"}, None, "a", None),
        ({"query": "a"}, None, "a", None),
        ({"question": "a"}, None, "a", None),
        ({"text": "a"}, None, "a", None),
        ({"mine": "a", "prompt": "b"}, "mine", "a", None),
        ({"instruction": "add", "input": "1 and 2", "output": "3"}, None, "add\n\n1 and 2", None),
        ({"instruction": "add", "input": " "}, None, "add", None),
        ({"instruction": "add", "input": "1"}, "instruction", "add\n\n1", None),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"}, None, None, None),
        ({"chosen": [*TALK, {"role": "assistant", "content": "Tom"}], "rejected": []}, None, None, TALK),
        ({"messages": TALK}, None, None, TALK),
        ({"messages": TALK}, "messages", None, TALK),
        ({"messages": [*TALK, {"role": "assistant", "content": None}]}, None, None, TALK),
        ({"dialog": [*TALK, {"role": "assistant", "content": "Tom"}]}, "dialog", None, TALK),
        ({"prompt": TALK}, None, None, TALK),
        ({"prompt": TALK[:3]}, None, None, TALK[:3]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "be brief"},
                    {"from": "human", "value": "my cat is Tom"},
                    {"from": "gpt", "value": "nice"},
                    {"from": "human", "value": "what is it called?"},
                    {"from": "gpt", "value": "Tom"},
                ]
            },
            None,
            None,
            TALK,
        ),
        (
            {"conversation": [{"role": "human", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}]},
            None,
            "a\nb",
            [{"role": "user", "content": "a\nb"}],
        ),
    ],
)
def test_columns_in_all_their_forms(
    row: dict[str, Any], column: str | None, text: str | None, messages: Any, tmp_path: Path
) -> None:
    # Without a column named, a row's own counts where the file's is not in it.
    others = [{column or "prompt": [{"role": "user", "content": other}]} for other in TEXTS]
    found = of_rows(tmp_path, [row, *others], column)[0]
    assert isinstance(found, Prompt)
    assert found.messages == messages
    assert found.row_number == 1
    if text is not None:
        assert found == text
    for message in messages or ():
        assert message["content"] in found


def test_a_preference_transcript_loses_its_last_turn_alone(tmp_path: Path) -> None:
    rows = [{"chosen": f"\n\nHuman: a\n\nAssistant: b\n\nHuman: {text}\n\nAssistant: d"} for text in TEXTS]
    found = of_rows(tmp_path, rows)
    assert as_messages(found[4]) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": TEXTS[4]},
    ]


def test_a_transcript_that_only_names_who_speaks_next_has_no_such_turn() -> None:
    assert as_messages("\n\nHuman: a\n\nAssistant:") == [{"role": "user", "content": "a"}]
    assert as_messages("Human:a") == [{"role": "user", "content": "Human:a"}]


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"answer": "a"}, None, "row 1 of .*: no prompt among the columns answer"),
        ({"prompt": 3}, None, "row 1 of .*: prompt is a int"),
        ({"prompt": ["a", "b"]}, None, "row 1 of .*: prompt is a list"),
        ({"messages": "[{'role': 'user'}]"}, None, "row 1 of .*: messages is a str"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, None, "row 1 of .* nothing before the assistant's"),
        ({"chosen": "an answer"}, None, "row 1 of .*: chosen is no transcript"),
        ({"messages": [{"from": "bard", "value": "a"}]}, None, "row 1 of .* from 'bard'"),
        ({"messages": [{"speaker": "a"}]}, None, "row 1 of .*: a message has speaker|row 1 of .* has speaker"),
        ({"messages": [{"role": "user", "text": "a"}]}, None, "row 1 of .*, message 1 has no content, only role, text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]},
            None,
            "row 1 of .*, message 1: a part of the content is of the kind 'image'",
        ),
        ({"messages": [{"role": "user", "content": 4}]}, None, "row 1 of .*, message 1: the content is a int"),
        ({"answer": "a"}, "prompt", "row 1 of .*: no prompt among the columns answer"),
        ({"answer": "a"}, "promt", "has no column 'promt'; its columns are answer, prompt"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(
    row: dict[str, Any], column: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadResource, match=message):
        of_rows(tmp_path, padded([row]), column)


def test_rows_of_one_table_are_read_from_one_column(tmp_path: Path) -> None:
    rows = [{"prompt": None, "text": "other"}, *({"prompt": text, "text": "other"} for text in TEXTS)]
    prompts = load(jsonl(tmp_path / "p.jsonl", rows))
    assert every(prompts) == TEXTS
    assert prompts.notices[0].endswith("left out: 1 (row 1)")
    assert of_rows(tmp_path, [{"prompt": None, "text": text} for text in TEXTS]) == TEXTS


def test_columns_that_may_belong_to_the_prompt_and_are_not_read_are_told(tmp_path: Path) -> None:
    rows = [{"question": text, "system_prompt": "be brief", "messages": TALK, "context": ""} for text in TEXTS]
    prompts = load(jsonl(tmp_path / "p.jsonl", rows))
    assert prompts.notices == (
        f"of {tmp_path / 'p.jsonl'} the column question is read, and not system_prompt, messages",
    )


def test_conversations_in_parquet(tmp_path: Path) -> None:
    talks = [[*TALK[:-1], {"role": "user", "content": text, "name": None}] for text in TEXTS]
    pandas.DataFrame({"messages": talks, "label": 1}).to_parquet(tmp_path / "p.parquet")
    found = every(load(tmp_path / "p.parquet"))
    assert [as_messages(prompt) for prompt in found] == [
        [*TALK[:-1], {"role": "user", "content": text}] for text in TEXTS
    ]


def test_a_table_without_the_column_names_all_that_it_has(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"id": 1, "prompt": text, "mine": f"my {text}"} for text in TEXTS])
    table.to_parquet(tmp_path / "p.parquet")
    table.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "p.parquet", tmp_path / "saved"):
        assert every(load(path, "mine")) == [f"my {text}" for text in TEXTS]
        with pytest.raises(BadResource, match="no column 'yours'; its columns are id, prompt, mine"):
            load(path, "yours")


def test_what_comes_with_a_message_is_kept(tmp_path: Path) -> None:
    call = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    talk = [TALK[1], {"role": "assistant", "content": None, "tool_calls": call}, {"role": "tool", "content": "4"}]
    assert as_messages(of_rows(tmp_path, padded([{"messages": talk}]))[0]) == [
        TALK[1],
        {"role": "assistant", "content": "", "tool_calls": call},
        talk[2],
    ]


def test_a_prompt_travels_with_its_messages() -> None:
    prompt = Prompt("a", [{"role": "user", "content": "a"}], 7, "p.jsonl", {"column": object()})
    for other in (pickle.loads(pickle.dumps(prompt)), copy.deepcopy(prompt)):
        assert (other, other.messages, other.row_number, other.source) == ("a", prompt.messages, 7, "p.jsonl")
        assert other.row == {}
    assert json.loads(json.dumps(prompt)) == "a"


def test_a_conversation_goes_whole_through_the_template() -> None:
    prompt = Prompt("…", [{"role": role, "content": word} for role, word in zip(["system", "user"], "ab", strict=True)])
    tokenizer = chatting()
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)).split() == ["s", "a", "e", "u", "b", "e", "z"]


def test_a_prompt_that_ends_with_the_assistant_is_continued() -> None:
    prompt = Prompt("…", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    tokenizer = chatting()
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)).split() == ["u", "a", "e", "a", "b"]


ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }} {% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (ALTERNATING, "roles must alternate"),
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "can only concatenate"),
        ("{% for m in messages %}{{ m.extra.more }}{% endfor %}", "no attribute 'extra'"),
        ("{% for m in messages %", "chat template refuses"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_told_by_its_row(
    template: str, words: str, tmp_path: Path
) -> None:
    rows: list[Any] = [{"prompt": text} for text in TEXTS]
    rows[12] = {"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}
    prompts = load(jsonl(tmp_path / "p.jsonl", rows))
    with pytest.raises(BadResource, match=rf"(?s)row \d+ of .*p\.jsonl: .*{words}"):
        check_encoded(prompts, chatting(template))
    if template == ALTERNATING:
        with pytest.raises(BadResource, match=r"row 13 of .*, whose roles are system, user: roles must alternate"):
            check_encoded(prompts, chatting(template))


def test_a_transcript_that_the_template_refuses_is_told_by_its_row() -> None:
    twice = Prompt("Human: a\n\nHuman: b", None, 3, "p")
    with pytest.raises(BadResource, match="row 3 of p"):
        check_encoded(Prompts([Prompt("a", None, 1, "p"), twice], []), chatting(ALTERNATING))


def test_a_conversation_needs_a_template() -> None:
    prompts = Prompts(["a", Prompt("b", [{"role": "user", "content": "b"}], 2, "p.jsonl")], [])
    assert check_encoded(Prompts(["a"], ["b"]), tiny_tokenizer()) == ()
    with pytest.raises(BadResource, match=r"row 2 of p\.jsonl is a conversation, and .* no chat template") as fault:
        encode_prompt(tiny_tokenizer(), prompts.train[1])
    assert "texts" in str(fault.value.hint)
    with pytest.raises(BadResource, match=r"row 2 of p\.jsonl"):
        check_encoded(Prompts([prompts.train[1]], []), tiny_tokenizer())


def test_what_the_template_leaves_out_is_told() -> None:
    template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }} {% endfor %}"
    talk = [{"role": "system", "content": "x"}, {"role": "user", "content": "b"}]
    prompts = [Prompt("…", talk, number, "p") for number in (4, 9)]
    assert check_encoded(Prompts([prompts[0]], [prompts[1]]), chatting(template)) == (
        "the model's chat template leaves out what the system says in 2 conversations (rows 4, 9)",
    )
    assert check_encoded(Prompts([prompts[0]], [prompts[1]]), chatting()) == ()


def test_a_prompt_without_tokens_is_named() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(BadResource, match=r"row 6 of p\.txt has no tokens"):
        encode_prompt(tokenizer, Prompt("\u2028", None, 6, "p.txt"))


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"messages": [*TALK[:-1], {"role": "user", "content": t}]} for t in TEXTS])
    table.save_to_disk(tmp_path / "one")
    assert len(every(load(tmp_path / "one"))) == 20
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "dict")
    prompts = load(tmp_path / "dict")
    assert as_messages(every(prompts)[3])[-1]["content"] == TEXTS[3]
    datasets.DatasetDict({"validation": table, "test": table}).save_to_disk(tmp_path / "other")
    with pytest.raises(BadResource, match="no split train; there are validation, test") as fault:
        load(tmp_path / "other")
    assert "to_json" in str(fault.value.hint)


def test_a_directory_of_files_is_read_as_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    jsonl(folder / "train.jsonl", ROWS)
    jsonl(folder / "test.jsonl", [{"prompt": "other", "answer": 1}])
    assert every(load(folder)) == TEXTS


def test_a_directory_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(BadResource, match="cannot read"):
        load(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"\n', encoding="utf-8")
    with pytest.raises(BadResource, match="cannot read"):
        load(tmp_path)


def test_several_configurations_are_named(tmp_path: Path) -> None:
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
        jsonl(tmp_path / name / "train.jsonl", ROWS)
    configs = [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("short", "long")]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n", encoding="utf-8")
    with pytest.raises(BadResource, match=r"several configurations, \['short', 'long'\]") as fault:
        load(tmp_path)
    assert "load_dataset" in str(fault.value.hint)


def test_a_data_set_that_is_not_to_be_had() -> None:
    with pytest.raises(MissingResource, match="organisation/nothing"):
        load(Path("organisation/nothing"))


def test_a_conversation_written_out_as_a_text_is_refused(tmp_path: Path) -> None:
    for number, written in enumerate((json.dumps(TALK), repr(TALK))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(BadResource, match=r"row 1 of .*: prompt is a conversation that is written out"):
            of_rows(folder, padded([{"prompt": written}]))
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(json.dumps({"prompt": text}) for text in TEXTS), encoding="utf-8")
    with pytest.raises(BadResource, match="an object that is written out") as fault:
        load(lines)
    assert ".jsonl" in str(fault.value.hint)
    kept = ["[{ is how it begins", '{"a": not JSON}', "[1, 2]"]
    assert of_rows(tmp_path, padded([{"prompt": text} for text in kept]))[:3] == kept


def test_a_text_that_begins_with_a_speakers_name_stays_as_it_is() -> None:
    plain, chat = tiny_tokenizer(), chatting()
    for text in ("Human: hi 0\nAssistant:", "Human: a being of some kind", "\n\nHuman: alone"):
        assert encode_prompt(plain, Prompt(text)) == plain(text)["input_ids"]
        assert as_messages(text) == [{"role": "user", "content": text}]
        assert encode_prompt(chat, text) == chat(f"u {text} e z", add_special_tokens=False)["input_ids"]
    asked = "\n\nHuman: what?\n\nAssistant:"
    assert as_messages(asked) == [{"role": "user", "content": "what?"}]


def test_an_end_token_that_the_tokenizer_appends_ends_no_prompt() -> None:
    tokenizer = tiny_tokenizer()
    end = str(tokenizer.eos_token)
    ids = encode_prompt(tokenizer, "a b")
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    assert tokenizer("a b")["input_ids"] == [*ids, tokenizer.eos_token_id]
    assert encode_prompt(tokenizer, "a b") == ids
    assert encode_prompt(tokenizer, f"a b{end}")[-1] == tokenizer.eos_token_id, "what the user wrote stays"


def test_roles_are_known_by_their_other_names(tmp_path: Path) -> None:
    talk = [{"role": r, "content": c} for r, c in (("User", "one"), ("Model", "two"), ("HUMAN", "three"))]
    (prompt, *_) = of_rows(tmp_path, padded([{"messages": [*talk, {"role": "bot", "content": "answer"}]}]))
    assert [m["role"] for m in as_messages(prompt)] == ["user", "assistant", "user"]


def test_what_the_template_leaves_out_is_measured_by_turns_and_tools() -> None:
    last = chatting("{% for m in messages[-1:] %}{{ m['role'][0] }} {{ m['content'] }} e {% endfor %}z")
    talk = [{**m, "content": c} for m, c in zip(TALK, ("a", "b", "c", "a b c"), strict=True)]
    told = check_encoded(Prompts([Prompt("x", talk, 1, "it")], []), last)
    assert [next(r for r in ("system", "user", "assistant") if f"the {r} says" in t) for t in told] == [
        "system", "user", "assistant",
    ]  # fmt: skip
    calling = [TALK[1], {"role": "assistant", "content": "", "tool_calls": [{"name": "rain"}]}, TALK[3]]
    (tools,) = check_encoded(Prompts([Prompt("x", calling, 1, "it")], []), chatting())
    assert "tools are called with" in tools


def test_rows_and_lists_of_other_names_are_told(tmp_path: Path) -> None:
    mixed = load(jsonl(tmp_path / "mixed.jsonl", padded([{"text": "another column"}])))
    assert any("have no prompt, and of which another column is read: 1 (row 1)" in told for told in mixed.notices)
    for key, words in (("answers", "the list 'answers' is read"), ("prompts", "")):
        file = tmp_path / f"{key}.json"
        file.write_text(json.dumps({"name": "x", key: TEXTS}), encoding="utf-8")
        notices = " ".join(load(file).notices)
        assert (words in notices) if words else not notices


def test_what_is_not_read_of_a_folder_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "mix"
    folder.mkdir()
    jsonl(folder / "train.jsonl", [{"prompt": text} for text in TEXTS])
    jsonl(folder / "test.jsonl", [{"prompt": f"test {text}"} for text in TEXTS])
    pandas.DataFrame({"prompt": TEXTS}).to_csv(folder / "more.csv", index=False)
    found = load(folder)
    assert len(every(found)) == len(TEXTS)
    assert any("the split train is read, and not test" in told for told in found.notices)
    assert any("ends in .csv" in told for told in found.notices)


def test_gzip_by_another_name_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(gzip.compress(b'{"prompt": "a"}\n', mtime=0))
    with pytest.raises(BadResource, match="gzipped") as fault:
        load(file)
    assert "p.jsonl.gz" in str(fault.value.hint)

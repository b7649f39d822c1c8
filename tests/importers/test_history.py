"""Histories of other trainers: every form they come in, and everything that can be wrong with one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from safebench.errors import BadResource, MissingResource, SafebenchError, UsageError
from safebench.importers.history import LARGEST, History, Steps, by_step, gaps, number, read, whole

ROWS: list[dict[str, Any]] = [{"step": 1, "kl": 0.5, "note": "a"}, {"step": 2, "kl": -1e-07}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def steps(*rows: dict[str, Any], counters: tuple[str, ...] = ("step",)) -> Steps:
    return by_step(History(Path("log.jsonl"), rows), counters)


# Forms


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.jsonl", '{"step": 1, "kl": 0.5, "note": "a"}\n\n{"step": 2, "kl": -1e-07}\n'),
        ("log.txt", '\ufeff{"step": 1, "kl": 0.5, "note": "a"}\n{"step": 2, "kl": -1e-07}'),
        ("log.json", '[{"step": 1, "kl": 0.5, "note": "a"},\n {"step": 2, "kl": -1e-07}]'),
        ("verl.jsonl", '{"step": 1, "data": {"kl": 0.5, "note": "a"}}\n{"step": 2, "data": {"kl": -1e-07}}\n'),
        (
            "state.json",
            '{"max_steps": 9, "log_history": [{"step": 1, "kl": 0.5, "note": "a"}, {"step": 2, "kl": -1e-7}]}',
        ),
    ],
)
def test_json_in_every_form_is_the_same_history(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = read(path)
    assert list(found.rows) == ROWS
    assert found.notices == ()
    assert dict(found.config) == ({"max_steps": 9} if name == "state.json" else {})


@pytest.mark.parametrize(("name", "mark"), [("log.csv", ","), ("log.tsv", "\t"), ("log", ",")])
def test_csv_leaves_out_empty_cells_and_keeps_the_text_of_the_others(tmp_path: Path, name: str, mark: str) -> None:
    path = tmp_path / name
    path.write_text(mark.join(("step", "kl", "note")) + "\n" + mark.join(("1", "0.50", '"a,b"')) + f"\n2{mark}{mark}\n")
    assert list(read(path).rows) == [{"step": "1", "kl": "0.50", "note": "a,b"}, {"step": "2"}]


def test_a_folder_is_its_trainer_state_or_that_of_its_last_checkpoint(tmp_path: Path) -> None:
    for place, last in (("checkpoint-9", 9), ("checkpoint-10", 10), ("checkpoint-best", 99)):
        state = {"log_history": [{"step": last}]}
        (tmp_path / place).mkdir()
        (tmp_path / place / "trainer_state.json").write_text(json.dumps(state))
    assert [dict(row) for row in read(tmp_path).rows] == [{"step": 10}]
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 12}]}')
    assert [dict(row) for row in read(tmp_path).rows] == [{"step": 12}]


def test_a_last_line_that_is_cut_off_is_left_out_and_said(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", ROWS)
    log.write_text(log.read_text() + '{"step": 3, "kl": 0.')
    found = read(log)
    assert list(found.rows) == ROWS
    assert found.notices == ("line 3, the last, is cut off and left out",)
    table = tmp_path / "log.csv"
    table.write_text("step,kl\n1,0.5\n2")
    found = read(table)
    assert list(found.rows) == [{"step": "1", "kl": "0.5"}]
    assert found.notices == ("the last line is cut off and left out",)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", BadResource, "holds no metrics"),
        ("[]", BadResource, "holds no metrics"),
        ('{"log_history": []}', BadResource, "holds no metrics"),
        ("step,kl\n", BadResource, "holds no metrics"),
        ("hello\n", UsageError, "none of the forms"),
        ('{"step": 1}\n{"step": 2\n{"step": 3}\n', BadResource, "line 2 is no JSON object"),
        ('{"step": 1}\n{"step": 2\n', BadResource, "line 2 is no JSON object"),  # damaged, not cut off
        ('{"step": 1', BadResource, "line 1 is no JSON object"),
        ('{"step": 1}\n7\n', UsageError, "entry 2 is a int, not an object"),
        ("step,kl\n1\n2,3\n", BadResource, "line 2 has 1 cells where the header has 2"),
        ("step,kl,kl\n1,2,3\n", BadResource, "several columns kl"),
        ('step,kl\n1,"2\n', BadResource, "is damaged"),
    ],
)
def test_what_is_no_history_says_so(tmp_path: Path, text: str, error: type[SafebenchError], says: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(error, match=says) as caught:
        read(path)
    assert caught.value.hint
    assert str(path) in str(caught.value)


def test_paths_that_hold_no_history(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="there is no"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(UsageError, match=r"no W&B run and no trainer_state\.json") as caught:
        read(tmp_path)
    assert "JSONL" in str(caught.value.hint)
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UsageError, match="is no text"):
        read(tmp_path / "picture")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0), (0.5, 0.5), ("1e-3", 1e-3), ("Infinity", math.inf), ("-Infinity", -math.inf), ("inf", math.inf),
        (None, None), (True, None), ("", None), ("warmup", None), ([1], None), ({"_type": "table"}, None),
    ],
)  # fmt: skip
def test_numbers(value: object, expected: float | None) -> None:
    assert number(value) == expected


def test_not_a_number_is_a_number() -> None:
    assert all(math.isnan(number(value) or 0.0) for value in (math.nan, "NaN", "nan"))
    assert whole("NaN") is whole(0.5) is whole(None) is None
    assert whole("7") == whole(7.0) == 7


# Steps


def test_rows_of_one_step_become_one() -> None:
    found = steps(
        {"step": 1, "loss": 0.5, "_t": 1}, {"step": 1, "eval_reward": 2.0, "loss": "0.50", "_t": 2}, {"step": 2}
    )
    assert found.rows == {1: {"step": 1, "loss": "0.50", "eval_reward": 2.0, "_t": 2}, 2: {"step": 2}}
    assert found.notices == ("1 rows were merged into the row of the same step",)
    assert (found.last, found.every, found.counted) == (2, 1, "step")
    assert found.keys == ["step", "loss", "_t", "eval_reward"]


def test_a_row_without_a_step_belongs_to_the_one_before() -> None:
    found = steps({"val": 1.0}, {"step": 1, "loss": 0.5}, {"val": 2.0})
    assert found.rows == {0: {"val": 1.0}, 1: {"step": 1, "loss": 0.5, "val": 2.0}}
    assert found.notices == ("2 rows without a step were put with the step before them",)


def test_rows_without_any_step_are_numbered() -> None:
    found = steps({"episode": 64}, {"episode": 128})
    assert list(found.rows) == [1, 2]
    assert found.counted is None
    assert found.notices == ("no column of steps: the rows are numbered from 1, in their order",)


def test_the_first_counter_that_was_logged_counts() -> None:
    found = steps({"global_step": 5, "_step": 0}, counters=("step", "global_step", "_step"))
    assert list(found.rows) == [5]
    assert found.counted == "global_step"


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ([{"step": 5}, {"step": 4}], BadResource, r"step 4 comes after step 5 \(entry 2\)"),
        ([{"step": 1, "kl": 0.5}, {"step": 1, "kl": 0.6}], BadResource, "step 1 has two values of kl: 0.5 and 0.6"),
        ([{"step": 1.5}], BadResource, "step is 1.5, no step"),
        ([{"step": -1}], BadResource, "step is -1, no step"),
        ([{"step": "NaN"}], BadResource, "step is 'NaN', no step"),
        ([{"step": LARGEST + 1}], UsageError, "more than 1000000 steps"),
    ],
)
def test_steps_that_cannot_be_are_refused(rows: list[dict[str, Any]], error: type[SafebenchError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        steps(*rows)
    assert caught.value.hint


def test_what_is_logged_at_each_call_may_repeat_where_it_is_of_no_column() -> None:
    rows = [
        {"step": 1, "reward": 2.0, "time": 0.5},
        {"step": 1, "time": 0.25, "reward": 2.0},
        {"step": 1, "time": 0.75},
    ]
    found = by_step(History(Path("log"), rows), ("step",), lambda key: key == "reward")
    assert found.rows == {1: {"step": 1, "reward": 2.0, "time": 0.75}}
    assert found.entries == tuple((1, row) for row in rows)
    assert found.notices[-1] == "logged more than once in a step, where the last value stands: time"


def test_nan_twice_is_no_contradiction() -> None:
    assert len(steps({"step": 1, "kl": math.nan}, {"step": 1, "kl": "NaN"}).rows) == 1


@pytest.mark.parametrize(
    ("logged", "every", "said"),
    [
        ([1, 2, 3], 1, []),
        ([0, 1, 2], 1, []),
        ([10, 20, 30, 35], 10, ["logged every 10 steps: what is shorter than that cannot be seen"]),
        ([301, 302], 1, ["steps 1–300 were not logged"]),
        ([1, 2, 5, 6, 7], 1, ["steps 3–4 were not logged"]),
        ([7], 1, ["steps 1–6 were not logged"]),
        ([1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20], 1, ["steps 3–3 were not logged"]),
    ],
)
def test_what_was_not_logged_is_said(logged: list[int], every: int, said: list[str]) -> None:
    found = steps(*({"step": step} for step in logged))
    assert found.every == every
    told = gaps(found)
    assert told[: len(said)] == said
    assert len(told) == (6 if len(logged) == 14 else len(said))
    if len(logged) == 14:
        assert told[-1] == "1 more stretches were not logged"

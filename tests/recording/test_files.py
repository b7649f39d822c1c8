"""The files of a run: what is written reads back bit for bit, and what is damaged or impossible is said."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safebench.crashes.detect import Event
from safebench.errors import BadResource, MissingResource, SafebenchError, UsageError
from safebench.metrics import KEYS, METRICS
from safebench.recording import jsonl, layout, manifest, metrics_csv
from safebench.recording.files import Appender, FolderLock, is_locked, storing, write_atomic
from safebench.recording.layout import Status, StatusRecord
from safebench.recording.metrics_csv import MetricsWriter
from safebench.telemetry import QUIET, quiet
from tests.support import rows
from tools import metrics_page

ROOT = Path(__file__).parents[2]


def write_csv(path: Path, steps: range) -> bytes:
    writer = MetricsWriter(path)
    for step in steps:
        writer.write(rows.complete(step))
    writer.close()
    return path.read_bytes()


# metrics.csv


def test_columns_are_the_schema_in_its_order(tmp_path: Path) -> None:
    write_csv(tmp_path / "metrics.csv", range(1, 3))
    assert (tmp_path / "metrics.csv").read_text().split("\n")[0].split(",") == list(KEYS)


@given(value=st.floats(width=64), step=st.integers(min_value=0, max_value=1))
def test_floats_read_back_bit_for_bit(value: float, step: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    writer = MetricsWriter(path)
    kept = writer.write({**rows.complete(step), "reward/mean": value})["reward/mean"]
    writer.close()
    read = float(pd.read_csv(path)["reward/mean"][0])
    assert isinstance(kept, float)
    same = np.array([value, value]).view(np.int64) if not math.isnan(value) else None
    if same is None:
        assert math.isnan(read) and math.isnan(kept)
        assert ",nan," in path.read_text()
    else:
        assert (np.array([read, kept]).view(np.int64) == same).all()


def test_infinities_stand_by_name_and_none_is_empty(tmp_path: Path) -> None:
    given_row = {**rows.complete(1), "reward/mean": math.inf, "reward/std": -math.inf, "kl/mean": None}
    cells = dict(zip(KEYS, metrics_csv.format_row(given_row).split(","), strict=True))
    assert (cells["reward/mean"], cells["reward/std"], cells["kl/mean"]) == ("inf", "-inf", "")


@pytest.mark.parametrize("number", [np.float64(0.1), np.float32(0.1), np.int64(3), 3, 0.1])
def test_any_number_is_written_as_python_would_write_it(number: float) -> None:
    text = metrics_csv.cell(METRICS[3], number)
    assert text == repr(number.item() if isinstance(number, np.generic) else number)


@pytest.mark.parametrize("wrong", [True, "0.1", b"1", [1.0], complex(1)])
def test_what_is_no_number_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(SafebenchError, match="reward/mean takes a number or None"):
        metrics_csv.format_row({**rows.complete(1), "reward/mean": wrong})  # type: ignore[dict-item]


@pytest.mark.parametrize("wrong", [1.0, "", "two\nlines", "nul\x00"])
def test_what_is_no_name_is_refused(wrong: object) -> None:
    with pytest.raises(SafebenchError, match="controller/phase takes a name"):
        metrics_csv.format_row({**rows.complete(1), "controller/phase": wrong})  # type: ignore[dict-item]


def test_names_with_commas_and_quotes_read_back() -> None:
    line = metrics_csv.format_row({**rows.complete(1), "controller/phase": 'a,"b"'})
    assert metrics_csv.parse_row(line)["controller/phase"] == 'a,"b"'


def test_unknown_and_missing_keys_are_named_together(tmp_path: Path) -> None:
    wrong = {**rows.complete(1), "reward/men": 1.0}
    del wrong["reward/mean"]
    writer = MetricsWriter(tmp_path / "metrics.csv")
    with pytest.raises(SafebenchError, match=r"unknown: reward/men; missing: reward/mean"):
        writer.write(wrong)
    writer.close()
    assert (tmp_path / "metrics.csv").read_text() == metrics_csv.HEADER + "\n"


@pytest.mark.parametrize("start", [0, 1])
def test_steps_rise_by_one(tmp_path: Path, start: int) -> None:
    writer = MetricsWriter(tmp_path / "metrics.csv")
    writer.write(rows.complete(start))
    for wrong in (start, start + 2):
        with pytest.raises(SafebenchError, match=f"step {wrong} came where that of step {start + 1} was due"):
            writer.write(rows.complete(wrong))
    writer.write(rows.complete(start + 1))
    writer.close()


def test_every_row_is_in_the_file_when_the_process_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from safebench.recording.metrics_csv import MetricsWriter
from tests.support import rows
writer = MetricsWriter(Path({str(tmp_path)!r}) / "metrics.csv")
for step in range(1, 6):
    writer.write(rows.complete(step))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "metrics.csv").read_bytes() == write_csv(tmp_path / "other.csv", range(1, 6))


@given(cut=st.integers(min_value=0), step=st.integers(min_value=-1, max_value=6))
def test_a_file_cut_anywhere_goes_on_from_any_row_it_still_has(
    cut: int, step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    data = write_csv(folder / "whole.csv", range(0, 7))
    lines = data.splitlines(keepends=True)
    path = folder / "metrics.csv"
    path.write_bytes(data[: cut % (len(data) + 1)])
    if path.read_bytes().count(b"\n") < step + 2 and step >= 0:
        with pytest.raises(BadResource):
            metrics_csv.drop_after(path, step)
        return
    had_header = path.read_bytes().count(b"\n") > 0
    kept = metrics_csv.drop_after(path, step)
    assert [row["step"] for row in kept] == list(range(step + 1))
    assert path.read_bytes() == b"".join(lines[: step + 2 if step >= 0 else int(had_header)])


def test_a_last_line_without_its_end_is_not_taken_for_a_shorter_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    writer = MetricsWriter(path)
    writer.write({**rows.complete(0), KEYS[-1]: 123.5})
    writer.close()
    for cut in (1, 2, 3, 4):
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BadResource, match="ends at step None"):
            metrics_csv.drop_after(path, 0)
        assert path.read_text().endswith("123.5"[: 6 - cut])


def test_damage_behind_the_cut_is_no_matter_before_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    whole = write_csv(path, range(1, 5))
    path.write_bytes(whole + b"\x00\x00\xff\n7,rubbish\n")
    assert len(metrics_csv.drop_after(path, 4)) == 4
    assert path.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    for bad in (b"2,3\n", b"\xff\xfe\n", lines[1], lines[4], lines[2].replace(b"2,", b"x,", 1)):
        path.write_bytes(b"".join([*lines[:2], bad, *lines[3:]]))
        with pytest.raises(BadResource, match="line 3"):
            metrics_csv.drop_after(path, 4)


def test_another_versions_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,2\n")
    with pytest.raises(BadResource, match="metric schema"):
        metrics_csv.drop_after(path, 1)


def test_a_row_that_does_not_fit_on_the_disk_leaves_the_others_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    writer = MetricsWriter(path)
    for step in (1, 2):
        writer.write(rows.complete(step))
    before = path.read_bytes()
    with pytest.raises(MissingResource, match="no room to write") as caught, rows.full_disk(len(before) + 10):
        writer.write(rows.complete(3))
    assert path.read_bytes() == before
    assert caught.value.hint is not None and "Free some space" in caught.value.hint
    writer.write(rows.complete(3))  # and with room again it goes on where it was
    writer.close()
    assert path.read_bytes() == write_csv(tmp_path / "other.csv", range(1, 4))


# samples.jsonl and events.jsonl


def test_samples_read_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    writer = jsonl.SamplesWriter(path)
    writer.write(1, rows.samples(1))
    writer.write(2, [replace(rows.samples(2)[0], reward=math.inf)])
    writer.close()
    first = json.loads(path.read_text().splitlines()[0])
    assert list(first) == ["step", "row", "prompt", "reply", "reward", "judge", "split"]
    assert first["judge"] is None
    kept = jsonl.drop_samples_after(path, 9)
    assert all("messages" not in line for line in path.read_text(encoding="utf-8").split("\n"))
    assert kept == {1: rows.samples(1), 2: [replace(rows.samples(2)[0], reward=math.inf)]}


def test_a_sample_keeps_its_conversation(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    talk = [{"role": "system", "content": "be\u2028brief"}, {"role": "user", "content": "hi"}]
    talking = replace(rows.samples(1)[0], messages=talk)
    writer = jsonl.SamplesWriter(path)
    writer.write(1, [talking, rows.samples(1)[1]])
    writer.close()
    first, second = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["messages"] == talk
    assert "messages" not in json.loads(second)
    assert jsonl.drop_samples_after(path, 9) == {1: [talking, rows.samples(1)[1]]}


def test_lines_are_strict_json_whatever_they_hold() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    line = jsonl.format_line({"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": "\u2028\n\x85"})
    assert json.loads(line, parse_constant=refuse) == {"a": "nan", "b": ["inf", {"c": "-inf"}], "d": "\u2028\n\x85"}
    assert len(line.splitlines()) == 1


@given(cut=st.integers(min_value=0), step=st.integers(min_value=-1, max_value=4))
def test_samples_cut_anywhere_lose_only_what_was_not_whole(
    cut: int, step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "samples.jsonl"
    writer = jsonl.SamplesWriter(path)
    for number in (0, 1, 1, 3):
        writer.write(number, rows.samples(number))
    writer.close()
    data = path.read_bytes()
    path.write_bytes(data[: cut % (len(data) + 1)])
    whole = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    kept = jsonl.drop_samples_after(path, step)
    expected = [record for record in whole if record["step"] <= step]
    assert sum(len(found) for found in kept.values()) == len(expected)
    assert path.read_bytes() == b"".join(json.dumps(record).encode() + b"\n" for record in expected)


def test_a_damaged_line_in_the_middle_is_said_a_torn_last_one_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\n')
    assert jsonl.drop_after(path, 3) == [{"step": 1}]
    assert path.read_bytes() == b'{"step": 1}\n'
    path.write_bytes(b'{"step": 1}\n\x00\x00\n{"step": 2}\n')
    with pytest.raises(BadResource, match="line 2"):
        jsonl.drop_after(path, 3)
    assert jsonl.drop_after(tmp_path / "none.jsonl", 3) == []


def test_events_say_whether_they_begin_or_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    begun = Event("numeric", 4, None, math.inf, math.inf)
    writer = jsonl.EventsWriter(path, [(4, [begun])])
    writer.write(5, [replace(begun, end=4)])
    writer.write(9, [begun], "open")
    writer.close()
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["step"], one["what"], one["end"], one["peak"]) for one in read] == [
        (4, "begins", None, "inf"),
        (5, "ends", 4, "inf"),
        (9, "open", None, "inf"),
    ]


# status.json


def record() -> StatusRecord:
    return StatusRecord(Status.RUNNING, 3, 60, "2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00+00:00")


def test_status_reads_back(tmp_path: Path) -> None:
    assert layout.read_status(tmp_path) is None
    ended = replace(
        record(),
        state=Status.UNSTABLE,
        exit_code=4,
        notices=("one",),
        message="loss",
        summary={"r": 0.5, "n": math.nan},
    )
    layout.write_status(tmp_path, ended)
    assert layout.read_status(tmp_path) == replace(ended, summary={"r": 0.5, "n": "nan"})


def test_exit_codes_are_those_of_the_command_line() -> None:
    assert {state.value: state.exit_code for state in Status} == {
        "running": None,
        "finished": 0,
        "unstable": 4,
        "interrupted": 130,
        "failed": 1,
    }


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "dancing"}', '{"state": "running"}'])
def test_a_damaged_status_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(BadResource, match=r"status\.json is damaged"):
        layout.read_status(tmp_path)


def test_a_status_that_does_not_fit_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    layout.write_status(tmp_path, record())
    with pytest.raises(MissingResource), rows.full_disk(50):
        layout.write_status(tmp_path, replace(record(), step=4))
    assert layout.read_status(tmp_path) == record()
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


# files


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_is_a_missing_resource_with_a_hint(code: int) -> None:
    with pytest.raises(MissingResource, match=r"results/metrics\.csv") as caught, storing(Path("results/metrics.csv")):
        raise OSError(code, os.strerror(code))
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_other_faults_pass_through() -> None:
    with pytest.raises(OSError, match="Input/output"), storing(Path("x")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_device_without_room_is_told_at_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    lines = Appender(tmp_path / "full")
    with pytest.raises(MissingResource, match="No space left"):
        lines.write("x")
    lines.close()


def test_a_closed_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="Permission denied"), rows.closed_to_us(tmp_path):
        write_atomic(tmp_path / "a", b"x")


def test_one_writer_at_a_time_even_across_processes(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from safebench.recording.files import FolderLock
lock = FolderLock(Path({str(tmp_path)!r}))
print("held", flush=True)
input()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert is_locked(tmp_path)
        with pytest.raises(UsageError, match="another process"):
            FolderLock(tmp_path)
        other.kill()
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "nowhere")
    with FolderLock(tmp_path):
        assert is_locked(tmp_path)


# manifest.json


def test_the_manifest_names_versions_machine_and_constants(tmp_path: Path) -> None:
    made = manifest.collect(
        device="cpu",
        hashes={"model": "00"},
        sigma0=0.5,
        vocabulary=1024,
        measured={"judge_sigma0": 0.25},
        command=["safebench", "run", "my experiment"],
    )
    assert made["command"] == "safebench run 'my experiment'"
    assert (made["sigma0"], made["vocabulary"], made["judge_sigma0"], made["hashes"]) == (
        0.5,
        1024,
        0.25,
        {"model": "00"},
    )
    assert made["versions"]["pandas"] == pd.__version__
    assert made["hardware"]["device"] == "cpu"
    assert made["hardware"]["memory_mib"] > 100
    assert 1 <= made["hardware"]["usable_cores"] <= made["hardware"]["cores"]
    manifest.write(tmp_path, made)
    assert manifest.read(tmp_path) == made


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert manifest.versions(("pytest", "no-such-package-of-ours")) == {
        "pytest": pytest.__version__,
        "no-such-package-of-ours": None,
    }


@pytest.mark.parametrize("text", [None, "", "[1]", "{"])
def test_a_missing_or_damaged_manifest_is_said(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadResource, match=r"manifest\.json is"):
        manifest.read(tmp_path)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_dirtiness_are_those_of_the_packages_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "repository" / "safebench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert manifest.checkout(package) is None  # no repository at all
    git(tmp_path, "init", "-q", "repository")
    assert manifest.checkout(package) is None  # somebody's repository, in which the package is not tracked
    git(package.parent, "add", "safebench")
    git(package.parent, "commit", "-qm", "one")
    commit = git(package.parent, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))  # as inside a hook of another repository
    assert manifest.checkout(package) == {"commit": commit, "dirty": False}
    (package.parent / "notes.txt").write_text("not code")
    assert manifest.checkout(package) == {"commit": commit, "dirty": False}
    (package / "new.py").write_text("")
    assert manifest.checkout(package) == {"commit": commit, "dirty": True}


def test_a_hash_is_of_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "w.bin").write_bytes(b"\x00" * 1000)
        (folder / "config.json").write_text("{}")
    (tmp_path / "b" / ".cache").write_text("not part of it")
    (tmp_path / "b" / "__pycache__").mkdir()
    (tmp_path / "b" / "__pycache__" / "m.pyc").write_text("nor this")
    first = manifest.hash_folder(tmp_path / "a")
    assert first == manifest.hash_folder(tmp_path / "b")
    (tmp_path / "b" / "sub" / "w.bin").rename(tmp_path / "b" / "sub" / "v.bin")
    assert first != manifest.hash_folder(tmp_path / "b")
    (tmp_path / "a" / "config.json").write_text("{ }")
    assert first != manifest.hash_folder(tmp_path / "a")


def test_a_files_hash_is_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")  # FIPS 180-4, first example
    assert manifest.hash_folder(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(MissingResource, match="nowhere"):
        manifest.hash_folder(tmp_path / "nowhere")


# the page, and quiet


def test_the_page_is_the_schemas() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page.render(), (
        "python -m tools.metrics_page > docs/metrics.md"
    )


def test_the_page_has_every_column_once_with_unit_and_definition() -> None:
    lines = [line for line in metrics_page.render().splitlines() if line.startswith("| ") and "`" in line]
    assert len(lines) == len(METRICS)
    for number, metric in enumerate(METRICS, start=1):
        (line,) = [line for line in lines if line.startswith(f"| {number} |")]
        assert f"`{metric.key}`" in line and f"| {metric.unit} |" in line
        assert ("⏱" in line) == metric.environment


def test_quiet_sets_what_is_unset_and_leaves_what_was_asked_for() -> None:
    environment = {"WANDB_ERROR_REPORTING": "true"}
    quiet(environment)
    assert environment == {**QUIET, "WANDB_ERROR_REPORTING": "true"}


def test_the_files_need_no_heavy_library() -> None:
    script = """
import sys
import safebench.recording.recorder, safebench.recording.checkpoints, safebench.recording.manifest
heavy = {"torch", "transformers", "pandas", "wandb", "tensorboard", "trackio"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LARGE", 4)
    file, reads = tmp_path / "weights", []
    read = manifest._read_and_hash
    monkeypatch.setattr(manifest, "_read_and_hash", lambda path: reads.append(path) or read(path))
    file.write_bytes(b"aaaaaaaa")
    first = manifest.hash_folder(tmp_path)
    assert manifest.hash_folder(tmp_path) == first and len(reads) == 1
    file.write_bytes(b"bbbbbbbb")
    assert manifest.hash_folder(tmp_path) != first and len(reads) == 2

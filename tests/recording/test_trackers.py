"""Trackers: every step reaches them, and nothing they do reaches the training."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from safebench.errors import MissingResource, UsageError
from safebench.importers import history
from safebench.recording import trackers as trackers_module
from safebench.recording.jsonl import Sample
from safebench.recording.layout import Status, read_status
from safebench.recording.metrics_csv import HEADER, Row
from safebench.recording.recorder import Recorder
from safebench.recording.trackers import Guarded, Limits, NullTracker, ProcessTracker, RunInfo, check_names
from tests.support import rows

ROOT = Path(__file__).parents[2]
STEPS = 12


class Notes(NullTracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.abandoned = 0

    def start(self, info: RunInfo) -> None:
        self.told.append(("start", info.name))

    def log(self, step: int, row: Row) -> None:
        self.told.append(("log", step, row["reward/mean"], row["crash/kl_spike"]))

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        self.told.append(("samples", step, list(rows)))

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        self.told.append(("finish", summary["status"], summary.get("reward")))
        return "goodbye"

    def abandon(self) -> None:
        self.abandoned += 1


class Raises(Notes):
    """Raises in one of its calls."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def __getattribute__(self, name: str) -> Any:
        if name != "where" and name == self.where:
            return self.fail
        return super().__getattribute__(name)

    def fail(self, *arguments: Any) -> None:
        raise RuntimeError(f"no {self.where} today")


class Hangs(Notes):
    """Never returns from one of its calls until it is abandoned."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.entered, self.released = threading.Event(), threading.Event()

    def __getattribute__(self, name: str) -> Any:
        if name not in ("where", "wait") and name == self.where:
            return self.wait
        return super().__getattribute__(name)

    def wait(self, *arguments: Any) -> None:
        self.entered.set()
        self.released.wait()

    def abandon(self) -> None:
        super().abandon()
        self.released.set()


def record(folder: Path, tracker: NullTracker, limits: Limits) -> list[str]:
    """Record a run with ``tracker`` and return what the user was told; the files must be whole whatever it does."""
    told: list[str] = []
    trackers = {"fake": tracker}
    with Recorder.open(
        folder, rows.settings(), rows.MANIFEST, trackers=trackers, limits=limits, notify=told.append
    ) as recorder:
        for step in range(1, STEPS + 1):
            recorder.step(rows.row(step))
            recorder.samples(step, rows.samples(step))
        recorder.finish(Status.FINISHED, {"reward": 1.5})
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == HEADER
    assert [line.split(",")[0] for line in lines[1:]] == [str(step) for step in range(1, STEPS + 1)]
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 2 * STEPS
    ended = read_status(folder)
    assert ended is not None and ended.state is Status.FINISHED and ended.exit_code == 0
    assert list(ended.notices) == [line for line in told if "dropped" in line]
    return told


def test_a_tracker_is_told_everything_in_order(tmp_path: Path) -> None:
    notes = Notes()
    assert record(tmp_path, notes, Limits()) == ["goodbye"]
    expected: list[tuple[Any, ...]] = [("start", "ppo/seed-3")]
    for step in range(1, STEPS + 1):
        expected += [("log", step, rows.row(step)["reward/mean"], 0.0), ("samples", step, rows.samples(step))]
    assert notes.told == [*expected, ("finish", "finished", 1.5)]
    assert notes.abandoned == 0


@pytest.mark.parametrize("where", ["start", "log", "samples", "finish"])
def test_a_tracker_that_raises_is_dropped_with_one_notice(tmp_path: Path, where: str) -> None:
    tracker = Raises(where)
    (notice,) = record(tmp_path, tracker, Limits())
    assert f"RuntimeError: no {where} today" in notice
    assert tracker.abandoned == 1
    assert not any(call[0] == "finish" for call in tracker.told)


@pytest.mark.parametrize("where", ["start", "log", "samples", "finish"])
def test_a_tracker_that_hangs_is_dropped_with_one_notice(tmp_path: Path, where: str) -> None:
    tracker = Hangs(where)
    (notice,) = record(tmp_path, tracker, Limits(start=60.0, call=60.0, finish=0.05))
    assert "tracker fake dropped at step 12: did not finish within 0.05 s" in notice
    assert tracker.abandoned == 1


def test_a_call_that_takes_too_long_is_noticed_at_the_next_step(tmp_path: Path) -> None:
    tracker = Hangs("log")
    guarded = Guarded("fake", tracker, Limits(call=0.0))
    guarded.start(info(tmp_path))
    guarded.log(1, rows.complete(1))
    assert tracker.entered.wait(10)
    guarded.log(2, rows.complete(2))
    assert guarded.failure == "log took more than 0 s"
    assert tracker.abandoned == 1
    guarded.log(3, rows.complete(3))
    assert guarded.finish({"status": "finished"}) is None


def test_a_tracker_that_falls_behind_is_dropped_not_waited_for(tmp_path: Path) -> None:
    tracker = Hangs("log")
    guarded = Guarded("fake", tracker, Limits(waiting=3))
    guarded.start(info(tmp_path))
    guarded.log(1, rows.complete(1))
    assert tracker.entered.wait(10)
    for step in range(2, 6):
        guarded.log(step, rows.complete(step))
    assert guarded.failure == "3 calls were waiting"


def test_one_bad_tracker_does_not_touch_another(tmp_path: Path) -> None:
    good, bad = Notes(), Raises("log")
    told: list[str] = []
    with Recorder.open(
        tmp_path, rows.settings(), rows.MANIFEST, trackers={"bad": bad, "good": good}, notify=told.append
    ) as recorder:
        rows.play(recorder, 1, STEPS, checkpoints=False)
        recorder.finish(Status.FINISHED)
    assert [call[1] for call in good.told if call[0] == "log"] == list(range(1, STEPS + 1))
    assert len(told) == 2 and "goodbye" in told


def test_a_resumed_run_tells_its_trackers_what_was_kept(tmp_path: Path) -> None:
    first, second = Notes(), Notes()
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, trackers={"fake": first}, notify=print) as recorder:
        rows.play(recorder, 0, 8, checkpoints=False)
    assert first.told[-1] == ("finish", "interrupted", None)
    with Recorder.open(
        tmp_path, rows.settings(), rows.MANIFEST, after_step=5, trackers={"fake": second}, notify=print
    ) as recorder:
        rows.play(recorder, 6, 8, checkpoints=False)
    assert second.told == first.told


def info(folder: Path) -> RunInfo:
    return RunInfo(str(folder), "ppo", "embedded", 3, "abc123", {"algorithm": "ppo"}, rows.MANIFEST)


# Names


def test_an_unknown_tracker_gets_the_nearest_match(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tracker 'wanbd'") as caught:
        Recorder.open(tmp_path / "run", rows.settings(trackers=("wanbd",)), rows.MANIFEST)
    assert caught.value.hint == "Did you mean wandb?"
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
    with pytest.raises(MissingResource, match="trackio, which is not installed") as caught:
        check_names(["trackio"])
    assert caught.value.hint is not None and "pip install trackio" in caught.value.hint


# The real ones, each in its child process


def track(folder: Path, name: str, limits: Limits | None = None, *, stop: int | None = None) -> list[str]:
    """Record a run with the tracker ``name``, stopped after step ``stop`` and gone on with after ``stop - 3``."""
    told: list[str] = []
    loaded = set(sys.modules)
    settings = rows.settings(trackers=(name,))
    first = None
    if stop is not None:
        with Recorder.open(folder, settings, rows.MANIFEST, limits=limits, notify=told.append) as recorder:
            rows.play(recorder, 0, stop, checkpoints=False)
        first = stop - 3
    with Recorder.open(
        folder, settings, rows.MANIFEST, after_step=first, limits=limits, notify=told.append
    ) as recorder:
        rows.play(recorder, 0 if first is None else first + 1, STEPS, checkpoints=False)
        recorder.finish(Status.FINISHED, {"final reward": 1.25})
    assert not {"wandb", "tensorboard", "trackio"} & (set(sys.modules) - loaded), "a library got into this process"
    return told


def wandb_records(path: Path) -> Iterator[Any]:
    """Read the records of a .wandb file with W&B's own definition of them."""
    from wandb.proto import wandb_internal_pb2

    records, truncated = history.frames(path)
    assert not truncated
    for record in records:
        parsed = wandb_internal_pb2.Record()
        parsed.ParseFromString(record)
        yield parsed


def pairs(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_wandb_keeps_everything_offline_in_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")  # "wandb" stays offline all the same
    told = track(tmp_path, "wandb", stop=8)
    (file,) = tmp_path.rglob("*.wandb")  # the part before the stop was replaced by the whole
    assert told[-1] == f"W&B run kept offline; to upload it: wandb sync {file.parent}"
    found = list(wandb_records(file))
    history = [pairs(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]
    for step, logged in enumerate(history):
        expected = {key: value for key, value in rows.row(step).items() if value is not None}
        assert {key: logged[key] for key in expected} == expected
        assert logged["crash/kl_spike"] == 0
        assert logged["_step"] == step
        assert "eval/kl" not in logged
    assert len(history) == STEPS + 1
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (run.run_group, run.display_name, run.project) == ("ppo", "ppo/seed-3", "safebench")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["update"]["learning_rate"] == 1e-3
    assert config["manifest"]["sigma0"] == rows.MANIFEST["sigma0"]
    summary: dict[str, Any] = {}
    for record in found:
        if record.WhichOneof("record_type") == "summary":
            summary |= pairs(record.summary.update)
    assert (summary["final reward"], summary["status"]) == (1.25, "finished")
    exits = [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"]
    assert exits == [0]
    tables = sorted(file.parent.rglob("*.table.json"), key=lambda path: path.stat().st_size)
    table = json.loads(tables[-1].read_text())
    assert table["columns"] == ["step", "row", "prompt", "reply", "reward", "judge"]
    assert [line[0] for line in table["data"]] == [step for step in range(STEPS + 1) for _ in range(2)]
    assert table["data"][0][2] == rows.samples(0)[0].prompt


def test_wandb_online_that_hangs_is_killed_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers at this address, and wandb would wait for minutes, also at the process's exit."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    started: list[ProcessTracker] = []
    before = ProcessTracker.start

    def start(self: ProcessTracker, info: RunInfo) -> None:
        started.append(self)
        before(self, info)

    monkeypatch.setattr(ProcessTracker, "start", start)
    told = track(tmp_path, "wandb-online", Limits(finish=1.5))
    assert len(told) == 1 and "did not finish within 1.5 s" in told[0]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == STEPS + 2
    for tracker in started:
        child = tracker._child
        assert child is not None and child.wait(10) == -9


def test_tensorboard_files_read_back(tmp_path: Path) -> None:
    told = track(tmp_path, "tensorboard", stop=8)
    place = tmp_path / "trackers" / "tensorboard"
    assert told[-1] == f"TensorBoard: tensorboard --logdir {place}"
    script = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
events.Reload()
scalars = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
texts = {
    tag: [(one.step, one.tensor_proto.string_val[0].decode()) for one in events.Tensors(tag)]
    for tag in events.Tags()["tensors"]
}
json.dump([scalars, texts], sys.stdout)
"""
    done = subprocess.run([sys.executable, "-c", script, str(place)], capture_output=True, text=True, check=True)
    scalars, texts = json.loads(done.stdout)
    for key in ("reward/mean", "kl/mean", "crash/kl_spike", "eval/judge"):
        expected = [
            [step, struct.unpack("f", struct.pack("f", float(value)))[0]]  # TensorBoard keeps 32 bits
            for step in range(STEPS + 1)
            if (value := {**rows.complete(step)}[key]) is not None
        ]
        assert scalars[key] == expected, key
    assert "eval/kl" not in scalars
    assert texts["controller/phase"] == [[0, "warmup"], [10, "climbing"]]
    assert [step for step, _ in texts["samples"]] == list(range(STEPS + 1))
    assert '"final reward": 1.25' in texts["summary"][0][1]


def test_trackio_keeps_its_files_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")  # would send everything there
    told = track(tmp_path, "trackio")
    place = tmp_path / "trackers" / "trackio"
    assert told[-1] == f"trackio: TRACKIO_DIR={place} trackio show --project safebench"
    with sqlite3.connect(place / "safebench.db") as database:
        lines = database.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
    database.close()
    logged: dict[int, dict[str, Any]] = {}
    for name, step, metrics in lines:
        assert name == "ppo/seed-3"
        logged.setdefault(step, {}).update(json.loads(metrics))
    for step in range(STEPS + 1):
        assert logged[step]["reward/mean"] == rows.row(step)["reward/mean"]
        assert [line["prompt"] for line in logged[step]["samples"]["_value"]] == [
            'hi,\n"there"',
            "\x00?",  # half a character is not for libraries
        ]


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    guarded = Guarded("nonsense", ProcessTracker("nonsense"))
    guarded.start(info(tmp_path))
    guarded.finish({"status": "finished"})
    assert guarded.failure is not None
    assert f"there is no tracker 'nonsense' (see {tmp_path}/trackers/nonsense.log)" in guarded.failure


def test_a_child_whose_parent_is_gone_closes_the_run_as_interrupted(tmp_path: Path) -> None:
    told = {"folder": str(tmp_path), "experiment": "ppo", "model": "m", "seed": 1, "run_id": "x"}
    calls = [
        {"call": "start", "info": {**told, "config": {}, "manifest": {}}},
        {"call": "log", "step": 1, "row": {"step": 1.0, "reward/mean": 2.0}},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "safebench.recording.tracker_child", "tensorboard"],
        input="".join(json.dumps(call) + "\n" for call in calls),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == '{"closing": null}\n' * 2
    (file,) = (tmp_path / "trackers" / "tensorboard").iterdir()
    assert b'"status": "interrupted"' in file.read_bytes()


def test_no_tracker_is_imported_or_started_unless_asked_for(tmp_path: Path) -> None:
    script = f"""
import subprocess, sys
from pathlib import Path
from safebench.recording.recorder import Recorder
from safebench.recording.layout import Status
from tests.support import rows
def refuse(*arguments, **options):
    raise AssertionError("a process was started")
subprocess.Popen = refuse
with Recorder.open(Path({str(tmp_path)!r}), rows.settings(), rows.MANIFEST) as recorder:
    rows.play(recorder, 0, 12, checkpoints=False)
    recorder.finish(Status.FINISHED)
found = {{"wandb", "tensorboard", "trackio", "torch"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    assert not (tmp_path / "trackers").exists()

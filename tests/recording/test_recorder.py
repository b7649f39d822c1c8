"""The recorder: a run stopped anywhere and gone on with leaves the files of one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from safebench.config import yaml_text
from safebench.config.schema import Settings
from safebench.crashes.detect import detect
from safebench.errors import BadResource, Instability, Interrupted, MissingResource, SafebenchError, UsageError
from safebench.metrics import CRASH_KINDS
from safebench.recording import checkpoints, layout, manifest
from safebench.recording.layout import Status
from safebench.recording.recorder import NullRecorder, Recorder
from tests.support import rows

ROOT = Path(__file__).parents[2]
FILES = ("metrics.csv", "samples.jsonl", "events.jsonl")


def silent(text: str) -> None:
    """Take a line for the user and lose it."""


def record(place: Path, *, settings: Settings | None = None) -> Path:
    """Record a whole run in ``place``."""
    with Recorder.open(place, settings or rows.settings(), rows.MANIFEST, notify=silent) as recorder:
        rows.play(recorder, 0, rows.STEPS)
        recorder.finish(Status.FINISHED, {"reward": 1.5})
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("whole"))


def contents(place: Path) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in FILES}


def test_the_run_used_here_has_crashes_of_many_kinds(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    begun = {line["kind"] for line in lines if line["what"] == "begins"}
    assert {"numeric", "reward_crash", "kl_spike", "kl_runaway", "entropy_collapse", "degenerate"} <= begun
    assert {line["kind"] for line in lines if line["what"] == "open"} >= {"reward_crash", "unrecovered"}


def test_crash_columns_are_what_the_detectors_find_in_the_file(whole: Path) -> None:
    table = pd.read_csv(whole / "metrics.csv")
    read = table.astype(object).where(table.notna(), None).to_dict("records")
    found = detect(read, rows.STEPS, 0.7, 1500, judge_sigma0=0.5, reply_limit=24)
    for kind in set(CRASH_KINDS) - {"unrecovered", "numeric"}:  # NaN is lost in a table read this way
        assert table[f"crash/{kind}"].iloc[-1] == sum(event.kind == kind for event in found), kind
    assert list(table["crash/numeric"]) == [int(step >= 50) for step in range(rows.STEPS + 1)]
    assert list(table["crash/ratio_blowout"]) == [int(step >= 40) for step in range(rows.STEPS + 1)]


def test_step_returns_what_begins_and_ends(tmp_path: Path) -> None:
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent) as recorder:
        happened = {step: [(e.kind, e.end) for e in recorder.step(rows.row(step))] for step in range(0, 17)}
    assert {step: events for step, events in happened.items() if events} == {
        15: [("kl_spike", None)],
        16: [("kl_spike", 15)],
    }


@pytest.mark.parametrize("stop", [1, 15, 27, 33, 40, 50, 59, 60])
def test_a_resumed_runs_files_are_those_of_one_that_was_not_stopped(tmp_path: Path, whole: Path, stop: int) -> None:
    """Stopped at ``stop`` (with episodes open from 27 on), resumed after the last checkpoint."""
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent) as recorder:
        rows.play(recorder, 0, stop)
    ended = layout.read_status(tmp_path)
    assert ended is not None and ended.state is Status.INTERRUPTED and ended.step == stop
    found = checkpoints.load_latest(tmp_path / "checkpoints")
    after = found[0] if found else -1
    assert after == (stop // 10 * 10 or -1)
    again = {**rows.MANIFEST, "run_id": "ignored"}
    with Recorder.open(tmp_path, rows.settings(), again, after_step=after, notify=silent) as recorder:
        rows.play(recorder, after + 1, rows.STEPS)
        recorder.finish(Status.FINISHED)
    assert contents(tmp_path) == contents(whole)
    assert checkpoints.steps(tmp_path / "checkpoints") == [50, 60]


def test_resuming_after_any_row_at_all(tmp_path: Path, whole: Path) -> None:
    """Also where no checkpoint is, and twice over, with later checkpoints dropped."""
    record(tmp_path)
    for after in (37, 30, -1):
        with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, after_step=after, notify=silent) as recorder:
            assert all(step <= after for step in checkpoints.steps(tmp_path / "checkpoints"))
            rows.play(recorder, after + 1, rows.STEPS)
            recorder.finish(Status.FINISHED)
        assert contents(tmp_path) == contents(whole)
    resumed = manifest.read(tmp_path)["resumed"]
    assert [part["after_step"] for part in resumed] == [37, 30, -1]


def test_a_killed_run_goes_on(tmp_path: Path, whole: Path) -> None:
    """Killed without warning, its last lines torn besides."""
    script = f"""
import os, signal
from pathlib import Path
from safebench.recording.recorder import Recorder
from tests.support import rows
recorder = Recorder.open(Path({str(tmp_path)!r}), rows.settings(), rows.MANIFEST)
rows.play(recorder, 0, 34, checkpoints=False)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    left = layout.read_status(tmp_path)
    assert left is not None and (left.state, left.step) == (Status.RUNNING, 34)
    for name in FILES:
        with (tmp_path / name).open("ab") as file:
            file.write(b'35,{"half')
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, after_step=30, notify=silent) as recorder:
        rows.play(recorder, 31, rows.STEPS)
        recorder.finish(Status.FINISHED)
    assert contents(tmp_path) == contents(whole)


def test_a_new_run_never_writes_over_another(tmp_path: Path) -> None:
    record(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="holds a run already"):
        Recorder.open(tmp_path, rows.settings(), rows.MANIFEST)
    assert contents(tmp_path) == before
    (tmp_path / "notes.txt").write_text("the user's own")
    layout.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    record(tmp_path)
    assert contents(tmp_path) == before


def test_two_recorders_never_share_a_folder(tmp_path: Path) -> None:
    with (
        Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent),
        pytest.raises(UsageError, match="another process is writing"),
    ):
        Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, after_step=-1)
    Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, after_step=-1, notify=silent).__exit__(None, None, None)


def test_another_runs_settings_or_constants_are_refused_all_at_once(tmp_path: Path) -> None:
    record(tmp_path)
    before = contents(tmp_path)
    other = rows.settings(seed=4).model_copy(update={"algorithm": "safe"})
    changed = {**rows.MANIFEST, "sigma0": 0.8, "hashes": {"model": "cd"}}
    with pytest.raises(BadResource) as caught:
        Recorder.open(tmp_path, other, changed, after_step=30)
    for fault in ("algorithm was 'ppo', is 'safe'", "seed was 3, is 4", "sigma0 was 0.7, is 0.8", "hashes.model was"):
        assert fault in str(caught.value)
    assert contents(tmp_path) == before


def test_recording_and_device_may_change_between_the_parts_of_a_run(tmp_path: Path) -> None:
    record(tmp_path)
    base = rows.settings()
    changed = base.model_copy(update={"recording": base.recording.model_copy(update={"keep_checkpoints": 5})})
    with Recorder.open(tmp_path, changed, rows.MANIFEST, after_step=30, notify=silent):
        pass
    assert Settings.model_validate(yaml_text.read((tmp_path / "config.yaml").read_text())) == changed


def test_rows_recorded_under_other_thresholds_are_not_gone_on_with(tmp_path: Path) -> None:
    record(tmp_path)
    path = tmp_path / "metrics.csv"
    lines = path.read_text().splitlines()
    at = lines[0].split(",").index("crash/kl_spike")
    cells = lines[11].split(",")
    assert cells[at] == "0"
    cells[at] = "1"
    lines[11] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadResource, match="at step 10, crash/kl_spike was recorded as"):
        Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, after_step=20)


def test_config_and_manifest_describe_the_run(whole: Path) -> None:
    assert Settings.model_validate(yaml_text.read((whole / "config.yaml").read_text())) == rows.settings()
    described = manifest.read(whole)
    assert len(described.pop("run_id")) == 12
    assert described == rows.MANIFEST


def test_the_detectors_constants_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SafebenchError, match="lacks sigma0 and vocabulary"):
        Recorder.open(tmp_path, rows.settings(), {})


def test_a_row_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent) as recorder:
        recorder.step(rows.row(0))
        before = contents(tmp_path)
        missing = rows.row(1)
        del missing["kl/mean"]
        for wrong, said in (
            (rows.row(2), "step 2 came where that of step 1"),
            (missing, "missing: kl/mean"),
            ({**rows.row(1), "crash/numeric": 0}, "recorder's to fill"),
            ({**rows.row(1), "reward/mean": torch.tensor(1.0)}, "not tensor"),
        ):
            with pytest.raises(SafebenchError, match=said):
                recorder.step(wrong)  # type: ignore[arg-type]
        assert contents(tmp_path) == before
        recorder.step(rows.row(1))


@pytest.mark.parametrize(
    ("fault", "state", "code"),
    [
        (KeyboardInterrupt(), Status.INTERRUPTED, 130),
        (Interrupted("stopped"), Status.INTERRUPTED, 130),
        (SystemExit(143), Status.INTERRUPTED, 130),
        (Instability("loss is nan"), Status.UNSTABLE, 4),
        (MissingResource("no model"), Status.FAILED, 3),
        (ZeroDivisionError("oops"), Status.FAILED, 1),
    ],
)
def test_whatever_ends_a_run_is_in_its_status(tmp_path: Path, fault: BaseException, state: Status, code: int) -> None:
    with (
        pytest.raises(type(fault)),
        Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent) as recorder,
    ):
        rows.play(recorder, 0, 3)
        raise fault
    ended = layout.read_status(tmp_path)
    assert ended is not None
    assert (ended.state, ended.exit_code, ended.step, ended.steps) == (state, code, 3, rows.STEPS)
    assert type(fault).__name__ in ended.message


def test_status_follows_the_run_and_keeps_its_notices(tmp_path: Path) -> None:
    told: list[str] = []
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=told.append) as recorder:
        for step in range(3):
            recorder.step(rows.row(step))
            current = layout.read_status(tmp_path)
            assert current is not None and (current.state, current.step) == (Status.RUNNING, step)
        recorder.notice("the judge is slow")
        recorder.finish(Status.UNSTABLE, {"reward": float("nan")}, "loss is nan")
        with pytest.raises(SafebenchError, match="finished already"):
            recorder.finish(Status.FINISHED)
    ended = layout.read_status(tmp_path)
    assert ended is not None and ended.state is Status.UNSTABLE
    assert (ended.notices, ended.summary, ended.message) == (("the judge is slow",), {"reward": "nan"}, "loss is nan")
    assert told == ["the judge is slow"] == list(recorder.notices)


def test_what_cannot_be_watched_is_told_once_at_the_first_step(tmp_path: Path) -> None:
    told: list[str] = []
    full = {"reply/length": float(rows.settings().rollout.reply_tokens)}
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=told.append) as recorder:
        recorder.step({**rows.row(0), "reply/length": None})
        assert told == []
        for step in (1, 2):
            recorder.step({**rows.row(step), **full})
            assert told == ["not watched: length_blowup (reply/length beyond its limit before training)"]
        assert list(recorder.notices) == told


def test_episodes_stay_open_in_the_file_only_where_the_run_is_over(tmp_path: Path) -> None:
    for name, state, expected in (("a", Status.INTERRUPTED, set()), ("b", Status.UNSTABLE, {"entropy_collapse"})):
        with Recorder.open(tmp_path / name, rows.settings(), rows.MANIFEST, notify=silent) as recorder:
            for step in range(0, 36):
                recorder.step(rows.row(step))
            recorder.finish(state)
        lines = [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]
        assert {line["kind"] for line in lines if line["what"] == "open"} & {"entropy_collapse"} == expected


def test_checkpoints_never_know_more_than_the_rows_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real_fsync(handle)

    def rename(source: Path, target: Path) -> None:
        order.append(f"-> {Path(target).name}")
        real_replace(source, target)

    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent) as recorder:
        recorder.step(rows.row(0))
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", rename)
        recorder.checkpoint(0, {})
        monkeypatch.undo()
    assert order == [*FILES, "step-0.pt.part", "-> step-0.pt", "checkpoints"]


def test_a_full_disk_ends_the_run_and_leaves_it_valid_and_resumable(tmp_path: Path, whole: Path) -> None:
    recorder = Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent)
    with pytest.raises(MissingResource, match="no room") as caught, recorder:
        rows.play(recorder, 0, 12)
        with rows.full_disk((tmp_path / "metrics.csv").stat().st_size + 100):
            rows.play(recorder, 13, 20)
    assert caught.value.exit_code == 3
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table["step"]) == list(range(13))
    ended = layout.read_status(tmp_path)
    assert ended is not None and (ended.state, ended.exit_code) == (Status.FAILED, 3)
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, after_step=10, notify=silent) as recorder:
        rows.play(recorder, 11, rows.STEPS)
        recorder.finish(Status.FINISHED)
    assert contents(tmp_path) == contents(whole)


def test_when_not_even_the_status_fits_the_first_fault_is_the_one_raised(tmp_path: Path) -> None:
    recorder = Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent)
    recorder.step(rows.row(0))
    with pytest.raises(ZeroDivisionError) as caught, rows.full_disk(10), recorder:
        raise ZeroDivisionError("the first fault")
    assert "status could not be written" in caught.value.__notes__[0]
    assert layout.read_status(tmp_path) is not None


@pytest.mark.parametrize("where", ["run", "run/seed-1"])
def test_a_closed_folder_is_a_missing_resource(tmp_path: Path, where: str) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(MissingResource, match="Permission denied") as caught, rows.closed_to_us(tmp_path / "run"):
        Recorder.open(tmp_path / where, rows.settings(), rows.MANIFEST)
    assert caught.value.hint is not None and "another folder" in caught.value.hint


def test_a_file_in_the_folders_place_is_a_missing_resource(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(MissingResource, match="results"):
        Recorder.open(tmp_path / "results" / "seed-1", rows.settings(), rows.MANIFEST)


def test_a_process_that_does_not_record_sees_the_same_events(tmp_path: Path) -> None:
    null = NullRecorder(rows.settings(), rows.MANIFEST)
    with Recorder.open(tmp_path, rows.settings(), rows.MANIFEST, notify=silent) as recorder:
        for step in range(0, 36):
            assert null.step(rows.row(step)) == recorder.step(rows.row(step))
    null.samples(1, rows.samples(1))
    null.checkpoint(1, {})
    null.notice("nothing")
    null.finish(Status.FINISHED)

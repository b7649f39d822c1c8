"""Launching: in turn and in worker processes, faults, interruptions, progress lines, exit codes. Real, tiny runs."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safebench.config.schema import Settings
from safebench.runner.pool import launch
from safebench.runner.progress import LiveView, PlainView, Result, duration, exit_code, open_view
from tests.support.runs import make_parts, rows, tiny_run


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(autouse=True)
def in_parts(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward functions lie in the current folder, where workers find them too."""
    monkeypatch.chdir(parts)


class Listener(PlainView):
    """Keeps the lines, and does something at a row."""

    def __init__(self, at: Callable[[str, dict[str, Any]], None] | None = None) -> None:
        self.lines = io.StringIO()
        super().__init__(self.lines)
        self.at = at

    def row(self, label: str, row: Any, events: list[str]) -> None:
        super().row(label, row, events)
        if self.at is not None:
            self.at(label, row)

    @property
    def text(self) -> str:
        return self.lines.getvalue()


def statuses(results: list[Result]) -> list[str]:
    return [result.status for result in results]


def test_runs_in_turn_one_fault_stops_no_other(parts: Path, tmp_path: Path) -> None:
    view = Listener()
    wanted = [
        tiny_run(parts, "ppo", update__steps=2),
        tiny_run(parts, "ppo", update__steps=2, reward__name="tiny_rewards:short"),
        tiny_run(parts, "ppo", update__steps=2, model__name="./nowhere"),
        tiny_run(parts, "safe", update__steps=2),
    ]
    results = launch(wanted, tmp_path, view)
    assert statuses(results) == ["finished", "failed", "failed", "finished"]
    assert [result.exit_code for result in results] == [0, 3, 3, 0]
    assert "error: ppo seed 0: the reward tiny_rewards:short returned 1 values" in view.text
    assert "hint:" in view.text
    assert all(result.folder.is_dir() for result in results if result.status == "finished")
    assert [result.settings for result in results] == wanted


@pytest.mark.processes
def test_workers_do_what_turns_do_and_one_fault_or_death_stops_no_other(parts: Path, tmp_path: Path) -> None:
    """One test for all this: each worker spends seconds on importing torch."""
    deadly = "import os\n\ndef die(prompts, replies):\n    print('last words', flush=True)\n    os._exit(9)\n"
    (parts / "deadly.py").write_text(deadly, encoding="utf-8")
    wanted = [tiny_run(parts, "safe", seed=seed, update__steps=3) for seed in range(3)]
    wanted.insert(1, tiny_run(parts, "ppo", update__steps=3, reward__name="deadly:die"))
    wanted.insert(2, tiny_run(parts, "ppo", seed=1, update__steps=3, reward__name="tiny_rewards:raising"))
    threads, view = threading.active_count(), Listener()
    before = signal.getsignal(signal.SIGINT)
    results = launch(wanted, tmp_path / "pool", view, jobs=2)
    assert statuses(results) == ["finished", "failed", "failed", "finished", "finished"]
    assert exit_code(results) == 1
    assert "last words" in results[1].message
    assert "the worker process ended with code 9" in results[1].message
    assert "error: ppo seed 1: the reward function tiny_rewards:raising raised RuntimeError: out of tea" in view.text
    for seed in range(3):
        assert f"safe seed {seed}: step 3/3" in view.text
    assert threading.active_count() == threads
    assert signal.getsignal(signal.SIGINT) is before

    (alone,) = launch(wanted[4:], tmp_path / "turn", Listener())
    assert rows(results[4].folder).equals(rows(alone.folder)), "rows do not depend on what runs beside"

    again = Listener()
    kept = launch([wanted[0], *wanted[3:]], tmp_path / "pool", again, jobs=2)
    assert [result.fresh for result in kept] == [False] * 3
    assert "safe seed 2: finished before, kept" in again.text


@pytest.mark.processes
def test_an_interruption_stops_all_workers_after_their_step_and_is_resumable(parts: Path, tmp_path: Path) -> None:
    wanted = [tiny_run(parts, "ppo", seed=seed, update__steps=2000) for seed in range(3)]
    seen: set[str] = set()

    def interrupt(label: str, row: dict[str, Any]) -> None:
        if row["step"] >= 1 and label not in seen:
            seen.add(label)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    results = launch(wanted, tmp_path, Listener(interrupt), jobs=2)
    assert statuses(results) == ["interrupted", "interrupted", "waiting"]
    assert exit_code(results) == 130
    for result in results[:2]:
        done = len(rows(result.folder)) - 1
        assert 1 <= done < 2000
        assert (result.folder / "checkpoints" / f"step-{done}.pt").is_file()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_in_turn_leaves_the_rest_waiting(parts: Path, tmp_path: Path) -> None:
    wanted = [tiny_run(parts, "ppo", seed=seed, update__steps=5) for seed in range(2)]
    first = Listener(lambda label, row: os.kill(os.getpid(), signal.SIGINT) if row["step"] == 2 else None)
    results = launch(wanted, tmp_path, first)
    assert statuses(results) == ["interrupted", "waiting"]
    assert statuses(launch(wanted, tmp_path, Listener())) == ["finished", "finished"]


def result(code: int, settings: Settings) -> Result:
    return Result(settings, Path(), "x", exit_code=code)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0], 0), ([4], 4), ([3], 3), ([130], 130), ([0, 4], 0), ([4, 4], 0), ([0, 3], 3), ([1, 3], 1), ([3, 130], 130),
     ([2, 0], 2)],
)  # fmt: skip
def test_exit_codes(parts: Path, codes: list[int], expected: int) -> None:
    settings = tiny_run(parts, "ppo")
    assert exit_code([result(code, settings) for code in codes]) == expected


def test_plain_lines_say_tenths_crashes_and_the_time_left() -> None:
    stream, now = io.StringIO(), [0.0]
    view = PlainView(stream, clock=lambda: now[0])
    view.started("ppo seed 0", 100)
    for step in range(101):
        view.row("ppo seed 0", {"step": step, "reward/mean": step / 100}, ["kl_spike"] if step == 55 else [])
        now[0] += 2
    view.ended("ppo seed 0", "finished")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "ppo seed 0: 100 steps"
    assert lines[2] == "ppo seed 0: step 10/100  reward 0.1  3 min 00 s left"
    assert "ppo seed 0: step 55: alarm: kl_spike" in lines
    assert lines[-1] == "ppo seed 0: finished (3 min 22 s)"
    assert len(lines) == 1 + 11 + 1 + 1


def test_a_slow_run_is_heard_of_every_minute() -> None:
    stream, now = io.StringIO(), [0.0]
    view = PlainView(stream, clock=lambda: now[0])
    view.started("r", 1000)
    for step in range(5):
        view.row("r", {"step": step}, [])
        now[0] += 40
    assert [line for line in stream.getvalue().splitlines() if "step 2/" in line or "step 4/" in line]


def test_a_judge_measured_now_and_then_stays_on_the_line() -> None:
    stream = io.StringIO()
    view = PlainView(stream)
    view.started("r", 10)
    view.row("r", {"step": 0, "reward/mean": None, "eval/judge": 0.5}, [])
    view.row("r", {"step": 1, "reward/mean": 0.25, "eval/judge": None}, [])
    assert stream.getvalue().splitlines()[-1].startswith("r: step 1/10  reward 0.25  judge 0.5")


def test_live_bars_end_with_the_cursor_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView(2) as view:
        view.started("a", 2)
        view.row("a", {"step": 1, "kl/mean": 0.5}, ["kl_spike"])
        view.ended("a", "finished")
    out, err = capsys.readouterr()
    assert out == "", "stdout is for data"
    assert "a: step 1: alarm: kl_spike" in err
    assert "a: finished" in err


def test_only_the_thread_that_reports_draws() -> None:
    """A second one that draws while a line is written above the bars leaves stale bars behind."""
    before = threading.active_count()
    with LiveView(2) as view:
        view.started("a", 2)
        assert threading.active_count() == before


def test_without_a_terminal_the_view_is_plain() -> None:
    assert isinstance(open_view(1), PlainView)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (125, "2 min 05 s"), (7260, "2 h 01 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text

"""events.jsonl, written row by row while a run goes on, holds what the detectors find in its metrics.csv afterwards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from safebench.analysis import runs
from safebench.analysis.scalars import summarise
from safebench.crashes.detect import Event, detect
from safebench.recording.layout import Status
from safebench.recording.recorder import Recorder
from tests.support.rows import MANIFEST, STEPS, play, settings


def record(folder: Path, stops: tuple[int, ...] = (), after: dict[int, int] | None = None) -> Path:
    """Record a whole run, left at each of ``stops`` and gone on with after that step, or an ``after`` before it."""
    first, done = 0, None
    for stop in (*stops, STEPS):
        with Recorder.open(folder, settings(), MANIFEST, done, notify=lambda text: None) as recorder:
            play(recorder, first, stop)
            if stop == STEPS:
                recorder.finish(Status.FINISHED)
        done = (after or {}).get(stop, stop)
        first = done + 1
    return folder


def written(folder: Path) -> tuple[list[Event], list[Event]]:
    """Return the events that ended and those left open, as events.jsonl has them."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    fields = [field.name for field in dataclasses.fields(Event)]
    told = {
        what: [Event(*(line[f] for f in fields)) for line in lines if line["what"] == what] for what in ("ends", "open")
    }
    begun = [(line["kind"], line["start"]) for line in lines if line["what"] == "begins"]
    assert sorted(begun) == sorted((e.kind, e.start) for e in told["ends"] + told["open"] if e.kind != "unrecovered")
    return told["ends"], told["open"]


def recomputed(folder: Path) -> tuple[list[Event], list[Event]]:
    run = runs.read(folder)
    events = detect(
        run.watched(),
        run.planned_steps,
        run.sigma0,
        run.vocabulary,
        judge_sigma0=run.judge_sigma0,
        reply_limit=run.reply_limit,
    )
    assert sorted(events, key=repr) == sorted(summarise(run).events[1.0], key=repr)
    return [event for event in events if event.end is not None], [event for event in events if event.end is None]


@pytest.mark.parametrize(
    ("stops", "after"),
    [((), {}), ((27,), {}), ((33, 47), {}), ((35,), {35: 30}), ((52, 54), {52: 40, 54: 20}), ((15,), {15: -1})],
)
def test_events_written_live_are_those_found_in_the_file(tmp_path, stops, after):
    folder = record(tmp_path / "embedded" / "ppo" / "seed-3", stops, after)
    ended, left = written(folder)
    assert (ended, left) == recomputed(folder)
    kinds = {event.kind for event in ended + left}
    assert {
        "numeric",
        "reward_crash",
        "unrecovered",
        "kl_spike",
        "kl_runaway",
        "entropy_collapse",
        "degenerate",
    } <= kinds
    whole = record(tmp_path / "embedded" / "whole" / "seed-3")
    assert (folder / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()

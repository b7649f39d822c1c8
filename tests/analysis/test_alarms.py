"""What an alarm is worth: counted by hand on runs of a few rows, and on the reference runs against their events."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from safebench.analysis import alarms, runs
from safebench.analysis.alarms import Course, chance, course, worth
from safebench.crashes.detect import detect
from safebench.metrics import ALARM_KINDS, CRASH_KINDS, HARM_KINDS

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def made(harms: tuple[int, ...], **firings: tuple[int, ...]) -> Course:
    return Course(tuple(range(1, 11)), {kind: firings.get(kind, ()) for kind in ALARM_KINDS}, harms)


def test_every_kind_is_an_alarm_or_a_harm() -> None:
    """The classes are those of version 2 of the specification."""
    assert sorted([*ALARM_KINDS, *HARM_KINDS]) == sorted(CRASH_KINDS)
    assert set(HARM_KINDS) == {
        "numeric", "reward_crash", "judge_crash", "unrecovered", "degenerate", "entropy_collapse", "length_collapse",
        "length_blowup",
    }  # fmt: skip


def test_worth_by_hand() -> None:
    courses = [
        made((5, 9), kl_spike=(2, 4, 7)),  # 5 comes one step after 4, 9 two after 7
        made((3,), kl_spike=(3, 8)),  # none before the harm: at the same step is not before
        made((), kl_spike=(1,)),
        made((6,)),
    ]
    found = worth(courses, "kl_spike")
    assert (found.preceded.value, found.preceded.n) == (2 / 4, 4)
    assert (found.followed.value, found.followed.n) == (3 / 6, 6)
    assert found.lead == 1.5
    # Steps that a harm follows: 1 to 8, 1 and 2, none, 1 to 5, of ten each.
    assert (chance(courses).value, chance(courses).n) == (15 / 40, 40)


def test_a_kind_that_never_fired_is_worth_nothing_that_is_known() -> None:
    found = worth([made((5,))], "kl_runaway")
    assert (found.preceded.value, found.lead) == (0.0, None)
    assert math.isnan(found.followed.value) and (found.followed.low, found.followed.high) == (0.0, 1.0)


def test_an_alarm_fires_where_its_episode_opens_and_a_harm_begins_where_its_does() -> None:
    """A degenerate episode needs its window, 4 of 100 planned steps, and begins at its first; a spike has none."""
    rows = [
        {
            "step": str(step), "kl/mean": "0.9" if step == 3 else "0.01", "reward/mean": "0", "entropy/mean": "2",
            "reply/distinct": "0.01" if step >= 5 else "0.9", "reply/distinct_2": "0.9", "reply/ended": "1",
        }
        for step in range(1, 12)
    ]  # fmt: skip
    found = course(rows, 100, 1.0, 64)
    events = detect(rows, 100, 1.0, 64)
    assert found.steps == tuple(range(1, 12))
    assert found.firings["kl_spike"] == (3,)
    assert found.harms == tuple(sorted(e.start for e in events if e.kind in HARM_KINDS)) != ()
    one = worth([found], "kl_spike")
    assert (one.preceded.value, one.followed.value, one.lead) == (1.0, 1.0, float(found.harms[0] - 3))


@pytest.mark.parametrize("run", runs.find(REFERENCE), ids=lambda run: f"{run.variant}-{run.seed}")
def test_the_reference_runs_have_the_episodes_of_their_events(run: runs.Run) -> None:
    """Counted a second way, by the survey of whole runs."""
    found = alarms.course_of(run)
    events = detect(
        run.watched(), run.planned_steps, run.sigma0, run.vocabulary, judge_sigma0=run.judge_sigma0,
        reply_limit=run.reply_limit,
    )  # fmt: skip
    assert found.harms == tuple(sorted(e.start for e in events if e.kind in HARM_KINDS and e.kind != "unrecovered"))
    for kind, fired in found.firings.items():
        starts = [event.start for event in events if event.kind == kind]
        assert len(fired) == len(starts)
        assert all(start <= step for start, step in zip(sorted(starts), fired, strict=True))

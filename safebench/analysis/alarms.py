"""What an alarm is worth: whether harm follows it, and how many steps later.

*Harms* are kinds that damage the policy, *alarms* kinds that may announce it (``metrics.HARM_KINDS``, ``ALARM_KINDS``;
crash specification, version 2). An alarm *fires* at the step at which its episode opens, when a watcher is first told.
A harm *begins* at the first step of its episode. An alarm precedes a harm if it fired at an earlier step of that run.
"""

from __future__ import annotations

import statistics as stdlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from safebench.analysis import statistics
from safebench.analysis.runs import Run
from safebench.analysis.statistics import Estimate
from safebench.crashes.detect import SPEC, CrashSpec, Detectors, Row
from safebench.metrics import ALARM_KINDS, HARM_KINDS


@dataclass(frozen=True)
class Course:
    """What happened in one run."""

    steps: tuple[int, ...]
    """Steps that were watched, rising."""
    firings: Mapping[str, tuple[int, ...]]
    """Steps at which each kind of alarm fired, rising."""
    harms: tuple[int, ...]
    """First steps of the episodes of harm, rising."""


@dataclass(frozen=True)
class Worth:
    """What one kind of alarm was worth over all runs. Shares are in [0, 1] with exact intervals.

    The intervals take harms and firings for independent; several of one run are not, so read them as a lower bound
    of the uncertainty.
    """

    kind: str
    preceded: Estimate
    """Share of the harms that a firing preceded."""
    followed: Estimate
    """Share of the firings that a harm followed."""
    lead: float | None
    """Median steps from the latest firing before a harm to the harm's first step; None where none preceded one."""


def course(
    rows: Iterable[Row],
    planned_steps: int,
    sigma0: float | None,
    vocabulary: int | None,
    *,
    judge_sigma0: float | None = None,
    reply_limit: int | None = None,
    spec: CrashSpec = SPEC,
) -> Course:
    """Return what happened in a run of these rows; arguments as ``crashes.survey``.

    ``unrecovered`` is left out: it repeats a ``reward_crash`` that is counted already.
    """
    watching = Detectors(
        spec, planned_steps, sigma0, vocabulary, judge_sigma0=judge_sigma0, reply_limit=reply_limit
    )
    steps: list[int] = []
    firings: dict[str, list[int]] = {kind: [] for kind in ALARM_KINDS}
    harms: list[int] = []
    for row in rows:
        opened = [event for event in watching.update(row) if event.end is None]
        steps.append(int(float(str(row["step"]))))
        for event in opened:
            if event.kind in firings:
                firings[event.kind].append(steps[-1])
            elif event.kind in HARM_KINDS:
                harms.append(event.start)
    return Course(tuple(steps), {kind: tuple(at) for kind, at in firings.items()}, tuple(sorted(harms)))


def course_of(run: Run) -> Course:
    """Return what happened in a recorded run."""
    return course(
        run.watched(),
        run.planned_steps,
        run.sigma0,
        run.vocabulary,
        judge_sigma0=run.judge_sigma0,
        reply_limit=run.reply_limit,
    )


def worth(courses: Sequence[Course], kind: str) -> Worth:
    """Return what alarms of ``kind`` were worth in these runs."""
    leads: list[int] = []
    harms = sum(len(one.harms) for one in courses)
    fired = followed = 0
    for one in courses:
        at = one.firings[kind]
        fired += len(at)
        followed += sum(any(harm > step for harm in one.harms) for step in at)
        leads += [harm - max(before) for harm in one.harms if (before := [step for step in at if step < harm])]
    return Worth(
        kind,
        statistics.clopper_pearson(len(leads), harms),
        statistics.clopper_pearson(followed, fired),
        float(stdlib.median(leads)) if leads else None,
    )


def chance(courses: Sequence[Course]) -> Estimate:
    """Return the share of all watched steps that a harm follows: what a firing at random would be worth."""
    followed = sum(sum(any(harm > step for harm in one.harms) for step in one.steps) for one in courses)
    return statistics.clopper_pearson(followed, sum(len(one.steps) for one in courses))

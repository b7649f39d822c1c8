"""Measure the predictive value of alarms: whether harm follows an alarm, and how many steps later.

*Harms* are kinds that damage the policy, *alarms* are kinds that may announce harm (``metrics.HARM_KINDS``,
``ALARM_KINDS``; crash specification, version 2). An alarm *fires* at the step at which its episode opens, which is when
a live detector first reports it. A harm *begins* at the first step of its episode. An alarm precedes a harm if it fired
at an earlier step of that run.
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
    """The watched steps, alarms and harms of one run."""

    steps: tuple[int, ...]
    """Steps that were watched, in ascending order."""
    firings: Mapping[str, tuple[int, ...]]
    """Steps at which each kind of alarm fired, in ascending order."""
    harms: tuple[int, ...]
    """First steps of the episodes of harm, in ascending order."""


@dataclass(frozen=True)
class Worth:
    """Predictive value of one kind of alarm over all runs. Shares are in [0, 1] with exact intervals.

    The intervals assume independent harms and firings. Several of one run are not independent, so the intervals are a
    lower bound of the uncertainty.
    """

    kind: str
    preceded: Estimate
    """Share of the harms that a firing preceded."""
    followed: Estimate
    """Share of the firings that a harm followed."""
    lead: float | None
    """Median steps from the latest firing before a harm to the harm's first step; None if no firing preceded a harm."""


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
    """Return the course of a run from its rows; the arguments are those of ``crashes.survey``.

    ``unrecovered`` is left out, because it repeats a ``reward_crash`` that is already counted.
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
    """Return the course of a recorded run."""
    return course(
        run.watched(),
        run.planned_steps,
        run.sigma0,
        run.vocabulary,
        judge_sigma0=run.judge_sigma0,
        reply_limit=run.reply_limit,
    )


def worth(courses: Sequence[Course], kind: str) -> Worth:
    """Return the predictive value of alarms of ``kind`` in these runs."""
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
    """Return the share of all watched steps that a harm follows, which is the value of a firing at random."""
    followed = sum(sum(any(harm > step for harm in one.harms) for step in one.steps) for one in courses)
    return statistics.clopper_pearson(followed, sum(len(one.steps) for one in courses))

"""Claims about crashes: fewer crashed runs (2), and none in a run four times as long (8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safebench.evidence import statistics
from safebench.evidence.claims.parts import share
from safebench.evidence.claims.types import Case, Finding, Part
from safebench.evidence.claims.verdicts import all_of, enough
from safebench.evidence.crashes import SCALES
from safebench.evidence.filled import filled
from safebench.evidence.runs import Run
from safebench.evidence.summary import Summary

LONGER = 4
"""How many times as long a long run is."""
FREE = ("experiment", "description", "seed", "recording.", "compute.", "evaluation.every", "update.steps")
"""Settings in which a long run may differ from the one it lengthens."""


def crashes(case: Case) -> Finding:
    """Claim 2: fewer crashed runs."""
    found = all_of([share("crashed runs", case, lambda summary: summary.crashed)])
    first, second = ([pair[i] for pair in case.pairs] for i in (0, 1))
    if not first:
        return found
    if len({summary.unmeasured_harms for summary in (*first, *second)}) > 1:
        return replace(found, verdict="not shown", why="the runs were not all watched for the same kinds of crash")
    scales = " / ".join(f"{scale:g}×" for scale in SCALES)
    told = f"crashed at {scales} thresholds: {case.arm} {_at_scales(first)}, {case.other} {_at_scales(second)}"
    drops = f"with a reward crash: {_with_drop(first)} against {_with_drop(second)}"
    return replace(found, why=f"{found.why}; {told}; {drops}")


def long_run(case: Case) -> Finding:
    """Claim 8: no crash in a run four times as long; one crashed run is a counterexample.

    ``case.second`` are the same arm's runs of ordinary length, which say how long four times is.
    """
    if not case.first:
        return Finding("not shown", "no long runs")
    part = _share_crashed(case.first)
    if not case.second:
        return Finding("not shown", "nothing says how long the ordinary run is", (part,))
    if reason := _not_longer(case.first[0].run, case.second[0].run):
        return Finding("not shown", reason, (part,))
    crashed = [summary for summary in case.first if summary.crashed]
    beside = "".join(f"; at this length {name}: {_crashed(runs)}" for name, runs in case.context.items() if runs)
    if crashed:
        told = "; ".join(f"seed {s.run.seed}: {_kinds(s)}" for s in crashed)
        return Finding("fails", f"{part.why} ({told}){beside}", (replace(part, side=-1),), certain=True)
    if blind := sorted({kind for summary in case.first for kind in summary.unmeasured_harms}):
        return Finding("not shown", f"{part.why}, but nobody watched {', '.join(blind)}", (part,))
    if len(case.first) < enough():
        return Finding("not shown", f"{part.why}; a verdict needs {enough()} runs{beside}", (part,))
    return Finding("holds", f"{part.why}{beside}", (replace(part, side=1),))


def _share_crashed(summaries: Sequence[Summary]) -> Part:
    hit = sum(summary.crashed for summary in summaries)
    estimate = statistics.clopper_pearson(hit, len(summaries))
    why = f"{_crashed(summaries)}, which allows a rate from {estimate.low:.2f} to {estimate.high:.2f}"
    return Part("crashed long runs", "share of runs", "down", estimate, (estimate.value, float("nan")), 0, why, "share")


def _kinds(summary: Summary) -> str:
    return ", ".join(dict.fromkeys(event.kind for event in summary.harms(1.0)))


def _crashed(summaries: Sequence[Summary]) -> str:
    return f"{sum(summary.crashed for summary in summaries)} of {len(summaries)} runs crashed"


def _not_longer(long: Run, short: Run) -> str:
    """Return why these are not runs of one experiment, the one four times as long; empty where they are."""
    if long.planned_steps < LONGER * short.planned_steps:
        return f"{long.planned_steps} steps are not {LONGER} times {short.planned_steps}"
    one, other = filled(long), filled(short)
    keys = [key for key in {**one, **other} if not key.startswith(FREE) and one.get(key) != other.get(key)]
    return f"the long runs differ in more than their length: {', '.join(keys)}" if keys else ""


def _at_scales(summaries: Sequence[Summary]) -> str:
    return " / ".join(str(sum(bool(summary.harms(scale)) for summary in summaries)) for scale in SCALES)


def _with_drop(summaries: Sequence[Summary]) -> str:
    return f"{sum(summary.count('reward_crash') > 0 for summary in summaries)} of {len(summaries)}"

"""Claims about parts of the control, asked by leaving them out: the entropy gate (5) and the PID (6).

What a part does to the threshold or the penalty can matter only through the penalty's gradient. Where that is
zero although the penalty is not (the term is inert), a run without the part is the same run: the claim fails
without an ablation.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from safebench.evidence import fairness, statistics
from safebench.evidence.claims.parts import difference, share
from safebench.evidence.claims.types import Case, Claim, Finding
from safebench.evidence.claims.verdicts import all_of, any_of
from safebench.evidence.inert import never_acted
from safebench.evidence.statistics import ALPHA
from safebench.evidence.summary import Summary

COLLAPSES = ("entropy_collapse", "degenerate", "length_collapse")
"""Crashes that are a loss of variety: what the gate is to keep apart from exploration."""
SAME = 1.25
"""Ratio of mean penalties up to which, and down to whose inverse, they count as the same."""
TESTED = 3
"""Figures among which claim 6 looks for one that gets worse; they share the level."""


def gate(case: Case) -> Finding:
    """Claim 5: at the same mean penalty, more runs collapse without the entropy gate."""
    if found := _beforehand(case):
        return found
    found = all_of([share("collapsed runs", case, _collapsed)])
    same, told = _same_penalty(case)
    if not same:
        return Finding("not shown", f"{told}; {found.why}", tuple(replace(part, side=0) for part in found.parts))
    return replace(found, why=f"{found.why}; {told}")


def pid(case: Case) -> Finding:
    """Claim 6: without the PID one of the three primary metrics gets worse; each is tested at a third of 5 %."""
    if found := _beforehand(case):
        return found
    level = ALPHA / TESTED
    return any_of(
        [
            difference("judge reward, end", "judge's σ₀", case, _judge, "up", alpha=level),
            difference("crashed runs", "runs", case, _crashed, "down", alpha=level, exact=True),
            difference("judge reward at matched KL", "judge's σ₀", case, _judge_matched, "up", alpha=level),
        ]
    )


def unlike(claim: Claim, case: Case) -> str:
    """Return the settings, besides what the claim drops, in which arm and ablation differ; empty where none."""
    groups = {name: [summary.run for summary in found] for name, found in _sides(case)}
    keys = [item.key for item in fairness.differences(groups) if not item.key.startswith(claim.drops)]
    return ", ".join(keys)


def mean_penalty(summary: Summary) -> float:
    """Mean of loss/penalty over the run's steps; NaN where it was not measured."""
    column = summary.run.column("loss/penalty")
    known = column[np.isfinite(column) & (summary.run.column("step") >= 1)]
    return float(known.mean()) if known.size else math.nan


def _beforehand(case: Case) -> Finding | None:
    if not case.first:
        return Finding("not shown", f"no runs of {case.arm}")
    if all(never_acted(summary.run, "penalty") for summary in case.first):
        why = (
            f"in {len(case.first)} of {len(case.first)} runs the penalty is inert, without a gradient at every "
            "measured step: what shapes it changes no weight, and a run without that is the same run"
        )
        return Finding("fails", why, certain=True)
    return None if case.pairs else Finding("not shown", "nothing to hold it against")


def _same_penalty(case: Case) -> tuple[bool, str]:
    """Tell whether the 95 % interval of the mean penalties' ratio lies within SAME on either side."""
    values = [(mean_penalty(first), mean_penalty(second)) for first, second in case.pairs]
    if not all(math.isfinite(v) and v > 0 for pair in values for v in pair):
        return False, "the mean penalty is not known, or zero, in some run"
    found = statistics.mean([math.log(first / second) for first, second in values])
    centre, low, high = (math.exp(x) for x in (found.value, found.low, found.high))
    told = f"mean penalty {centre:.2f} times that without, 95 % interval {low:.2f} to {high:.2f}"
    within = f"within {1 / SAME:.2f} to {SAME:.2f}"
    if low > 1 / SAME and high < SAME:
        return True, f"{told}, {within}"
    return False, f"{told}, must lie {within}: multiply the ablation's coefficient by {centre:.2g}"


def _collapsed(summary: Summary) -> bool:
    return any(summary.count(kind) for kind in COLLAPSES)


def _crashed(summary: Summary) -> float:
    return float(summary.crashed)


def _judge_matched(summary: Summary) -> float:
    sigma = summary.run.judge_sigma0
    return summary.values["judge_matched"] / sigma if sigma else math.nan


def _judge(summary: Summary) -> float:
    sigma = summary.run.judge_sigma0
    return summary.values["judge_final"] / sigma if sigma else math.nan


def _sides(case: Case) -> list[tuple[str, tuple[Summary, ...]]]:
    return [(case.arm, case.first), (case.other, case.second)]
